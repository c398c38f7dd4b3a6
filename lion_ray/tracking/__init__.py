"""Experiment trackers, which receive a run's metrics.

Invariants:
- The run's folder is the source of truth. A tracker gets its data from there, and can get missing data again.
- No tracker stops or slows a run, whatever it does: `fan_out` ensures that.
- A tracker's package is an optional extra, imported only when the tracker is used.

`base` defines the interface of a tracker; `lion_ray.testing.trackers` holds the tests that every tracker has to pass.
"""

from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep

__all__ = ["Held", "Outcome", "RunInfo", "Spend", "StageEvent", "Tracker", "TrainingStep"]
