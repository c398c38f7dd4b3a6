"""How long a run will take on this machine: said before it starts, and corrected while it goes.

Invariants:
- What another attempt committed counts as done, and says nothing of this attempt's pace.
- The figures of single stages are `local_times`'; this module adds them up and holds them against the clock.

Reads the run's folder and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lion_ray.config import RunConfig
from lion_ray.core.store import RunStore
from lion_ray.pipeline.local_times import START_S, LocalTimes, in_words, left_s, stage_s
from lion_ray.pipeline.plan import Plan, share_done

LONG_S = 2 * 3600.0
"""A run of more than this is warned of."""


class Forecast:
    """How long a run will still take: its plan, corrected by how long what it has done took."""

    def __init__(self, plan: Plan, store: RunStore, config: RunConfig, clock: Callable[[], float] = time.monotonic):
        """`clock`: seconds, only going on. What is committed now was another attempt's and says nothing of the pace."""
        self._plan, self._store, self._config, self._clock = plan, store, config, clock
        self._began = clock()
        self._open = list(plan.stages)
        self._done_s = 0.0
        self._before = self._worked_off()

    def _worked_off(self) -> float:
        """Seconds of the plan; a stage that was seen to be done is not asked for again."""
        begun, still_open = 0.0, []
        for stage in self._open:
            if (share := share_done(stage, self._store, self._config)) < 1:
                still_open.append(stage)
                begun += share * stage_s(stage)
            else:
                self._done_s += stage_s(stage)
        self._open = still_open
        return self._done_s + begun

    def left_s(self) -> float | None:
        """Seconds; None where this machine computes nothing. Reads the run's folder."""
        if self._plan.local_s is None:
            return None
        elapsed = self._clock() - self._began
        # Starting up is worked off by the clock: no stage tells of it.
        done = self._worked_off() - self._before + min(elapsed, START_S)
        return left_s(self._plan.local_s - self._before, done, elapsed)


def opening_lines(plan: Plan, left: float, times: LocalTimes) -> list[str]:
    """What a run says before it starts: how long it will take here, and what makes it slow."""
    lines = [
        f"{in_words(left)} on this machine (an estimate, corrected as the run goes; `lion-ray plan` has its parts)"
    ]
    if left > LONG_S:
        longest = max(plan.stages, key=stage_s)
        lines.append(
            f"warning: that is long. {longest.stage} alone takes {in_words(stage_s(longest))}, once in each iteration "
            "that has it: a smaller served model, fewer rows, shorter answers or a GPU shorten it"
        )
    return lines + [f"warning: {line}" for line in times.slow_types()]
