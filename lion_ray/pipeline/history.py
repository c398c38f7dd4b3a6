"""A run's steps and results so far, in order, read from its folder and sent to trackers, which may have some already.

Invariants:
- Steps are numbered over the whole run: a fit's first step follows the last one of the previous fit, which is committed
  by then. So a step has the same number in every attempt. A fit is an iteration's fine-tuning or an on-policy round's.
- An iteration's result comes after its steps, and only once it is concluded.

This module does not know what trackers do with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from lion_ray.core import layout
from lion_ray.core.errors import as_raised
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.progress import Progress
from lion_ray.core.sealed import Record
from lion_ray.core.step_log import read_steps
from lion_ray.core.store import RunStore
from lion_ray.pipeline.results import results, summarise
from lion_ray.tracking import Held, Outcome, RunInfo, TrainingStep
from lion_ray.tracking.fan_out import Trackers

ID_DIGITS = 8
_COUNTERS = ("step", "steps", "time")
"""The fields of a step's row that are not metrics."""


class History:
    """A run's steps and results. May be read from several threads."""

    def __init__(self, store: RunStore, iterations: int, rounds: int = 0) -> None:
        """
        Args:
            iterations: as configured, without the last imitation.
            rounds: the on-policy rounds of each iteration.
        """
        self._store = store
        self._iterations = iterations
        self._rounds = rounds
        self._steps: dict[str, int] = {}
        """Number of steps of committed fits, by folder."""

    @classmethod
    def of(cls, store: RunStore) -> History:
        """The history of the run in a folder. Raises as `store.described`."""
        config = store.described()["config"]
        return cls(store, config["iterations"], (config.get("on_policy") or {}).get("rounds", 0))

    def __call__(self, held: Held) -> Iterator[TrainingStep | IterationResult]:
        """The entries in the folder after `held`. Raises InfrastructureError if the storage fails."""
        before = 0
        for iteration in range(self._iterations + 2):
            for round_, folder in self._fits(iteration):
                steps = self._committed(folder)
                if steps is None or held.step < before + steps:
                    yield from self._fit(folder, iteration, round_, before, held.step)
                if steps is None:
                    return
                before += steps
            if iteration > held.iteration:
                if not self._store.exists(layout.result(iteration)):
                    return
                yield summarise(self._store, iteration)

    def held(self) -> Held:
        """The position after the last step and the last result."""
        step, last = 0, -1
        for iteration in range(self._iterations + 2):
            for _, folder in self._fits(iteration):
                steps = self._committed(folder)
                if steps is None:
                    return Held(step + len(read_steps(self._store, folder)), last)
                step += steps
            last = iteration if self._store.exists(layout.result(iteration)) else last
        return Held(step, last)

    def _fits(self, iteration: int) -> Iterator[tuple[int, str]]:
        """An iteration's fits as (on-policy round or 0, folder), in order."""
        if iteration:
            yield 0, layout.checkpoint(iteration)
            for round_ in range(1, self._rounds + 1):
                yield round_, layout.round_checkpoint(iteration, round_)

    def _committed(self, folder: str) -> int | None:
        """The number of steps of a fit. Returns None if it is not committed."""
        if folder not in self._steps:
            manifest = self._store.stage(folder).manifest()
            if manifest is None:
                return None
            self._steps[folder] = int(manifest.get("steps", 0))
        return self._steps[folder]

    def _fit(self, folder: str, iteration: int, round_: int, before: int, held: int) -> Iterator[TrainingStep]:
        for row in read_steps(self._store, folder, max(0, held - before)):
            yield TrainingStep(
                number=before + row["step"],
                iteration=iteration,
                in_iteration=row["step"],
                time=row["time"],
                metrics={name: value for name, value in row.items() if name not in _COUNTERS},
                round=round_,
            )


@contextmanager
def tracked(trackers: Trackers, store: RunStore, attempt: int, progress: Progress) -> Iterator[None]:
    """Send an attempt's progress to the trackers while the block runs, then its outcome."""
    if not trackers:
        yield
        return
    history = History.of(store)
    trackers.begin(run_info(store, attempt, history), history, progress.say)
    progress.listeners.append(trackers.stage)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = as_raised(raised)
        raise
    finally:
        progress.listeners.remove(trackers.stage)
        trackers.end(Outcome(() if error else tuple(results(store)), error))


def run_info(store: RunStore, attempt: int, history: History) -> RunInfo:
    """The description of a run that trackers receive."""
    described = store.described()
    return RunInfo(
        id=described.get("id") or older_id(store),
        name=described["config"]["run_name"],
        root=store.root,
        attempt=attempt,
        began=described.get("began", 0.0),
        config=dict(described["config"]),
        done=history.held(),
    )


def older_id(store: RunStore) -> str:
    """The id of a run from before runs had ids."""
    return hashlib.sha256(store.root.encode()).hexdigest()[:ID_DIGITS]


def identity(store: RunStore, known: Record | None, new_id: str, now: float) -> dict[str, str | float]:
    """A run's unique id and start time: from its folder, else `new_id` and `now`."""
    if known is None:
        return {"id": new_id, "began": round(now, 2)}
    return {"id": known.get("id") or older_id(store), "began": known.get("began", round(now, 2))}
