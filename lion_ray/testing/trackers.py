"""Contract tests for trackers. Inherit from `TrackerContract` in a pytest module:

    class TestMine(TrackerContract):
        def make(self, folder):
            return Mine(folder / "here")

        def read(self, folder):
            return {"training/loss": [(1, 2.0), …], …}

Of pytest, this module needs only the fixture `tmp_path`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lion_ray.core.errors import BudgetError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep
from lion_ray.tracking.fan_out import Named, Trackers

Points = dict[str, list[tuple[int, float]]]
"""By metric: (x, value) pairs in order, where x is a step, an iteration or a second."""
STEPS = 6
"""Training steps of each iteration."""
BEGAN = 1_800_000_000.0


class TrackerContract:
    """The properties that a run relies on in every tracker."""

    def make(self, folder: Path) -> Tracker:
        """A tracker that stores its data in or below `folder`."""
        raise NotImplementedError

    def read(self, folder: Path) -> Points | None:
        """The stored data, by the names of `tracking.numbers`; None if it cannot be read back."""
        raise NotImplementedError

    def test_a_whole_run_is_recorded(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path)
        found = self.read(tmp_path)
        if found is None:
            return
        assert found["training/loss"] == [(n, 2.0**-n) for n in range(1, 2 * STEPS + 1)], "every step, once, in order"
        assert found["training/learning_rate"][0] == (1, 0.5)
        assert [step for step, _ in found["training/tokens_per_second"]] == list(range(1, 2 * STEPS + 1))
        assert found["iteration/heldout_loss"] == [(1, 0.5), (2, 0.25)], "the base model was not trained"
        assert [number for number, _ in found["iteration/checks"]] == [0, 1, 2]
        assert found["iteration/quality_heldout"] == [(0, 0.5), (1, 0.75), (2, 0.875)]
        assert found["iteration/train_rows"] == [(1, 40.0), (2, 8.0)]
        assert found["iteration/acceptance"] == [(1, 0.5)]
        assert found["spend/usd"][-1][1] == 0.75

    def test_a_resumed_run_continues_without_duplicates(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path, items=4, error=BudgetError("the budget is spent"))
        tell(self.make(tmp_path), tmp_path, items=STEPS + 2, attempt=2)
        self.test_a_resumed_run_is_complete(tmp_path)

    def test_an_attempt_without_progress_adds_nothing(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path)
        tell(self.make(tmp_path), tmp_path, attempt=2, error=KeyboardInterrupt())
        self.test_a_resumed_run_is_complete(tmp_path)

    def test_a_resumed_run_is_complete(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path, attempt=3)
        found = self.read(tmp_path)
        if found is not None:
            assert [step for step, _ in found["training/loss"]] == list(range(1, 2 * STEPS + 1))
            assert [number for number, _ in found["iteration/checks"]] == [0, 1, 2]

    def test_a_new_run_of_the_same_name_starts_empty(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path)
        tracker = self.make(tmp_path)
        held = tracker.begin(info(tmp_path, attempt=1, identity="ffff0000"))
        tracker.end(Outcome())
        assert held in (None, Held()), "a tracker has no data of a new run"

    def test_it_accepts_an_empty_attempt(self, tmp_path: Path) -> None:
        tell(self.make(tmp_path), tmp_path, items=0, error=BudgetError("the budget is spent"))


def info(folder: Path, *, attempt: int, identity: str = "0a1b2c3d") -> RunInfo:
    """A run's description for a tracker."""
    config = {"run_name": "small", "iterations": 1, "imitation": {"epochs": 3}, "tracking": []}
    return RunInfo(identity, "small", str(folder / "run"), attempt, BEGAN, config)


def tell(
    tracker: Tracker, folder: Path, *, items: int | None = None, attempt: int = 1, error: BaseException | None = None
) -> Sequence[str]:
    """Send a run of two iterations to a tracker, as a run does; returns the lines of the run's log.

    `items`: how many steps and results exist at the end of the attempt; None: all.
    """
    logged: list[str] = []
    trackers = Trackers([Named("it", tracker)], pauses_s=())
    run = info(folder, attempt=attempt)

    def history(held: Held) -> Iterator[TrainingStep | IterationResult]:
        for one in the_run()[:items]:
            new = one.number > held.step if isinstance(one, TrainingStep) else one.iteration > held.iteration
            if new:
                yield one

    trackers.begin(run, history, logged.append)
    trackers._enqueue("stage", StageEvent("iteration 1: fine-tuning", "began", 0, STEPS, "steps", 0.0))
    trackers.spend(Spend(BEGAN + 10 * attempt, 0.75, 0.0, 10, 0, 1, 100, 50, 2))
    trackers.end(Outcome(error=error), within_s=300)
    assert not logged, logged
    return logged


def the_run() -> list[TrainingStep | IterationResult]:
    """The base model's result, then two iterations of `STEPS` steps and a result each."""
    found: list[TrainingStep | IterationResult] = [result(0)]
    for iteration in (1, 2):
        for n in range(1, STEPS + 1):
            number = STEPS * (iteration - 1) + n
            metrics = {"loss": 2.0**-number, "learning_rate": 0.5, "grad_norm": 1.0, "tokens": 8.0 * n}
            at = BEGAN + number
            found.append(TrainingStep(number, iteration, n, at, metrics | {"tokens_per_second": 100.0}))
        found.append(result(iteration))
    return found


def result(iteration: int) -> IterationResult:
    """An iteration's result."""
    share = 1 - 0.5 ** (iteration + 1)
    interval = {"low": share - 0.1, "high": share + 0.1}
    return IterationResult(
        iteration,
        train_rows={1: 40, 2: 8}.get(iteration),
        hard=5 if iteration == 1 else None,
        quarantined={"student answers: too long": 1},
        generation={"hard": {"requests": 10, "accepted": 5, "rejected": {}}} if iteration == 1 else {},
        loss_before=1.0 if iteration else None,
        loss_after=0.5**iteration if iteration else None,
        quality_heldout={"ratio": share, **interval},
        checks={"mean": {"value": share, "n": 4, **interval}, "by_check": {"says something": {"value": 1.0}}},
        stages={"fine-tuning": {"seconds": 3.0, "calls": 2}},
    )
