"""Experiment trackers: where a run's numbers go beside its own folder.

Invariants:
- The run's folder is the truth. A tracker is told what stands there, and what it lacks it can be told again.
- No tracker ends a run or slows it, whatever it does: `fan_out` sees to it.
- A tracker's package is imported when the tracker is used, by nobody else, and is an extra of this one.

`base` says what a tracker is; `lion_ray.testing.trackers` holds the tests that every one has to pass.
"""

from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep

__all__ = ["Held", "Outcome", "RunInfo", "Spend", "StageEvent", "Tracker", "TrainingStep"]
