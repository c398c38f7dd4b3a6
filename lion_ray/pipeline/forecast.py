"""Forecast how long a run takes on this machine, before it starts and, corrected, while it runs.

Invariants:
- Work committed by earlier attempts counts as done, and does not affect this attempt's pace.
- `local_times` estimates single stages; this module adds them up and compares them with the clock.

It reads only the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lion_ray.config import RunConfig
from lion_ray.config.file import LoadedConfig
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.pipeline.local_times import START_S, LocalTimes, in_words, left_s, stage_s
from lion_ray.pipeline.plan import Plan, make_plan, share_done, what_is_left
from lion_ray.pipeline.status import read_doubts

LONG_S = 2 * 3600.0
"""A run longer than this gets a warning."""


class Forecast:
    """The time that a run still needs: its plan, corrected by the pace so far."""

    def __init__(self, plan: Plan, store: RunStore, config: RunConfig, clock: Callable[[], float] = time.monotonic):
        """`clock`: monotonic seconds. Work that is already committed does not affect the pace."""
        self._plan, self._store, self._config, self._clock = plan, store, config, clock
        self._began = clock()
        self._open = list(plan.stages)
        self._done_s = 0.0
        self._before = self._finished_s()

    def _finished_s(self) -> float:
        """Planned seconds of work done so far; finished stages are not read again."""
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
        """Remaining seconds; None if this machine computes nothing. Reads the run's folder."""
        if self._plan.local_s is None:
            return None
        elapsed = self._clock() - self._began
        # Start-up counts by the clock, because no stage reports it.
        done = self._finished_s() - self._before + min(elapsed, START_S)
        return left_s(self._plan.local_s - self._before, done, elapsed)


def opening_lines(plan: Plan, left: float, times: LocalTimes) -> list[str]:
    """Log lines before a run starts: its estimated time here, and the reasons if it is slow."""
    lines = [f"{in_words(left)} on this machine (an estimate, updated during the run; `lion-ray plan` shows its parts)"]
    if left > LONG_S:
        longest = max(plan.stages, key=stage_s)
        lines.append(
            f"warning: that is long. {longest.stage} alone takes {in_words(stage_s(longest))} in each iteration that "
            "has it: use a smaller served model, fewer rows, shorter answers or a GPU"
        )
    return lines + [f"warning: {line}" for line in times.slow_types()]


def budget_sentence(loaded: LoadedConfig, store: RunStore, progress: Progress, error: BaseException) -> str:
    """The error message for a spent budget: how far the run got, and what the rest would cost."""
    assert loaded.config.budget is not None
    where = progress.ended_in or "the start"
    usual, worst = what_is_left(make_plan(loaded.config, loaded.base_dir), store, loaded.config)
    rest = (
        "" if usual is None or worst is None else f"; finishing would cost about ${usual:,.2f} (at most ${worst:,.2f})"
    )
    doubt = sum(one["usd"] for one in read_doubts(loaded.config.model_dump(mode="json"), store))
    if doubt:
        rest += (
            f"; ${doubt:,.4f} of it is uncertain: calls that may have been billed without an answer (see "
            "endpoints.NAME.assume_billed)"
        )
    return (
        f"the budget of ${loaded.config.budget.usd:,.2f} is spent: {error}. The run got as far as {where}, and "
        f"all received answers are kept{rest}. Raise budget.usd and run the same command to resume"
    )
