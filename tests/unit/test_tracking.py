"""How trackers are told: from the run's folder, each in its own thread, whatever they do; and how they are chosen."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lion_ray.config.file import differences, load_values
from lion_ray.config.plugins import Own
from lion_ray.config.tracking import MlflowTracking, TensorBoardTracking, TrackingConfig, WandbTracking
from lion_ray.core import layout, step_log
from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.progress import Progress
from lion_ray.core.step_log import ROWS, StepLog, read_steps
from lion_ray.core.store import RunStore
from lion_ray.pipeline.history import History, identity, run_info
from lion_ray.testing.trackers import STEPS, TrackerContract, info, result, tell, the_run
from lion_ray.tracking import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep
from lion_ray.tracking.fan_out import WAITING, Named, Trackers
from lion_ray.tracking.loading import load_trackers
from lion_ray.tracking.numbers import numbers, result_numbers, step_numbers
from tests.object_store import BUCKET, s3_server
from tests.run_folder import RunFolder

STAGE = "iteration-1/checkpoint"


class Kept(Tracker):
    """Keeps everything it is told in the order in which it was told."""

    def __init__(self, held: Held | None = None) -> None:
        self.held = held
        self.told: list[Any] = []
        self.threads: set[int] = set()

    def _keep(self, what: Any) -> None:
        self.threads.add(threading.get_ident())
        self.told.append(what)

    def begin(self, run: RunInfo) -> Held | None:
        self._keep(run)
        return self.held

    def step(self, step: TrainingStep) -> None:
        self._keep(step)

    def iteration(self, result: IterationResult) -> None:
        self._keep(result)

    def stage(self, event: StageEvent) -> None:
        self._keep(event)

    def spend(self, spend: Spend) -> None:
        self._keep(spend)

    def end(self, outcome: Outcome) -> None:
        self._keep(outcome)

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]


class TestKept(TrackerContract):
    """One that keeps nothing from an attempt to the next is told everything each time."""

    def make(self, folder: Path) -> Tracker:
        return Kept()

    def read(self, folder: Path) -> None:
        return None


def history(held: Held) -> Iterator[TrainingStep | IterationResult]:
    for one in the_run():
        if one.number > held.step if isinstance(one, TrainingStep) else one.iteration > held.iteration:
            yield one


# -- the threads ------------------------------------------------------------------------------------------------------


def test_it_is_told_in_order_and_from_one_thread(tmp_path: Path) -> None:
    kept = Kept()
    tell(kept, tmp_path)
    assert [type(one) for one in kept.told[:1]] == [RunInfo]
    assert [one for one in kept.told if isinstance(one, TrainingStep | IterationResult)] == the_run()
    assert isinstance(kept.told[-1], Outcome)
    assert len(kept.threads - {threading.get_ident()}) == len(kept.threads) == 1


def test_it_is_told_what_follows_on_what_it_holds(tmp_path: Path) -> None:
    kept = Kept(Held(step=STEPS + 2, iteration=1))
    tell(kept, tmp_path)
    assert [one.number for one in kept.of(TrainingStep)] == list(range(STEPS + 3, 2 * STEPS + 1))
    assert [one.iteration for one in kept.of(IterationResult)] == [2]


class Faulty(Kept):
    """Raises in some of its methods, for some of the calls."""

    def __init__(self, method: str, times: int) -> None:
        super().__init__()
        self._method, self.left = method, times

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name != self._method:
            return found

        def raising(*arguments: Any) -> Any:
            if self.left:
                self.left -= 1
                raise OSError("no\nnetwork")
            return found(*arguments)

        return raising


@pytest.mark.parametrize("method", ["begin", "step", "iteration", "stage", "spend", "flush", "end"])
def test_what_raises_is_told_once_and_tried_again(tmp_path: Path, method: str) -> None:
    """Two tries fail, of three: nothing is lost, and a healthy tracker beside it notices nothing."""
    said: list[str] = []
    faulty, healthy = Faulty(method, 2), Kept()
    trackers = Trackers([Named("faulty", faulty), Named("healthy", healthy)], pauses_s=(0.0, 0.0))
    _whole(trackers, tmp_path, said)
    assert said == ["tracker faulty: OSError: no network; the run continues without waiting for it"]
    for one in (faulty, healthy):
        assert [what for what in one.told if isinstance(what, TrainingStep | IterationResult)] == the_run()
        assert len(one.of(StageEvent)) == 2
        assert len(one.of(Outcome)) == 1


def test_one_that_raises_over_everything_is_passed_over_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    faulty = Faulty("step", 10_000)
    _whole(Trackers([Named("faulty", faulty)], pauses_s=(0.0,)), tmp_path, said)
    assert said[1:] == [f"tracker faulty: {2 * STEPS} of the calls to it failed"]
    assert [one.iteration for one in faulty.of(IterationResult)] == [0, 1, 2], "what does not raise is told"
    assert 10_000 - faulty.left == 2 * STEPS + 2, "only a step that follows on what went well is tried twice"


def test_one_that_does_not_begin_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    faulty = Faulty("begin", 10_000)
    _whole(Trackers([Named("faulty", faulty)], pauses_s=()), tmp_path, said)
    assert said[1:] == ["tracker faulty: it failed to start, and is not used in this attempt"]
    assert faulty.told == []


@pytest.mark.parametrize("method", ["begin", "step", "end"])
def test_one_that_hangs_holds_nothing_up(tmp_path: Path, method: str) -> None:
    let_go = threading.Event()
    hanging = Kept()
    setattr(hanging, method, lambda _: let_go.wait())
    healthy = Kept()
    said: list[str] = []
    try:
        _whole(Trackers([Named("hanging", hanging), Named("healthy", healthy)]), tmp_path, said, within_s=0.2)
        assert said == ["tracker hanging: it did not finish within 0 s and is abandoned"]
        assert len(healthy.of(TrainingStep)) == 2 * STEPS
        assert healthy.of(Outcome)
    finally:
        let_go.set()


class Slow(Kept):
    """Begins when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def begin(self, run: RunInfo) -> None:
        self.let_go.wait()


def test_what_waits_for_a_slow_one_is_bounded(tmp_path: Path) -> None:
    slow = Slow()
    trackers = Trackers([Named("slow", slow)])
    trackers.begin(info(tmp_path, attempt=1), history, lambda _: None)
    progress = Progress(cast(Any, SimpleNamespace(write=lambda _: None, flush=lambda: None, isatty=lambda: False)))
    progress.listeners.append(trackers.stage)
    for number in range(WAITING):
        with progress.stage(f"stage {number}", 1, "rows") as stage:
            stage.advance(1)
    slow.let_go.set()
    trackers.end(Outcome())
    events = slow.of(StageEvent)
    assert len(events) == WAITING
    assert [one.state for one in events[-2:]] == ["began", "ended"]
    assert events[-1].name == f"stage {WAITING - 1}"
    assert (events[-1].done, events[-1].total) == (1, 1)


def test_a_storage_that_refuses_is_asked_again(tmp_path: Path) -> None:
    refusals = [InfrastructureError("runs: refused")]

    def refusing(held: Held) -> Iterator[TrainingStep | IterationResult]:
        yield from list(history(held))[:3]
        if refusals:
            raise refusals.pop()
        yield from history(Held(held.step + 2, 0))

    kept = Kept()
    said: list[str] = []
    trackers = Trackers([Named("kept", kept)])
    trackers.begin(info(tmp_path, attempt=1), refusing, said.append)
    while refusals:
        trackers.wake()
    trackers.wake()
    trackers.end(Outcome())
    assert len(said) == 1
    assert "refused" in said[0]
    assert [one.number for one in kept.of(TrainingStep)][-1] == 2 * STEPS


def test_spending_is_told_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    kept = Kept()
    trackers = Trackers([Named("kept", kept)])
    trackers.begin(info(tmp_path, attempt=1), history, lambda _: None)
    for cents in range(5):
        trackers.spend(Spend(float(cents), cents / 100, 0.0, cents, 0, 0, 0, 0, 0))
    trackers.end(Outcome())
    assert [one.usd for one in kept.of(Spend)] == [0.0, 0.04]


def test_none_costs_nothing() -> None:
    trackers = Trackers()
    assert not trackers
    trackers.wake()
    trackers.spend(Spend(0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0))
    trackers.end(Outcome())


def _whole(trackers: Trackers, folder: Path, said: list[str], within_s: float = 300) -> None:
    trackers.begin(info(folder, attempt=1), history, said.append)
    with Progress(cast(Any, SimpleNamespace(write=lambda _: None, flush=lambda: None, isatty=lambda: False))).stage(
        "fit", 1, "steps"
    ) as stage:
        trackers.stage(stage)
    trackers.stage(stage)
    trackers.spend(Spend(0.0, 1.0, 0.0, 0, 0, 0, 0, 0, 0))
    trackers.end(Outcome(), within_s=within_s)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_the_numbers_of_an_iteration_are_those_that_were_measured() -> None:
    found = numbers(result(1))
    assert found["heldout_loss"] == 0.5
    assert found["acceptance"] == found["acceptance_hard"] == 0.5
    assert found["check/says something"] == 1.0
    assert "quality_cache" not in found, "what was not measured is left out"
    assert all(isinstance(value, float) for value in found.values())
    names = {*result_numbers(result(1)), *step_numbers(cast(TrainingStep, the_run()[1]))}
    assert not [a for a in names for b in names if b.startswith(f"{a}/")], "in files one would be the other's folder"


# -- the steps in a run's folder --------------------------------------------------------------------------------------


def fit(store: RunStore, first: int, last: int, *, stage: str = STAGE, loss: float = 1.0) -> None:
    log = StepLog(store, stage)
    for step in range(first, last + 1):
        log.add({"step": step, "steps": 2000, "loss": loss}, at_once=step == last)


def test_steps_are_read_back_from_anywhere(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    fit(store, 1, 2 * ROWS + 10)
    assert [row["step"] for row in read_steps(store, STAGE)] == list(range(1, 2 * ROWS + 11))
    for after in (1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 10):
        assert [row["step"] for row in read_steps(store, STAGE, after)] == list(range(after + 1, 2 * ROWS + 11))
    assert len(store.names(f"{STAGE}/steps")) == 3
    assert read_steps(store, "iteration-2/checkpoint") == []


@pytest.mark.parametrize("restored_at", [0, 1, 40, ROWS - 1, ROWS, ROWS + 3])
def test_a_restored_fit_writes_each_step_once(tmp_path: Path, restored_at: int) -> None:
    """It had come to step 300 and goes on after its checkpoint."""
    store = RunStore(str(tmp_path))
    fit(store, 1, 300)
    fit(store, restored_at + 1, 310, loss=2.0)
    rows = read_steps(store, STAGE)
    assert [row["step"] for row in rows] == list(range(1, 311))
    assert [row["loss"] for row in rows] == [1.0] * restored_at + [2.0] * (310 - restored_at)


def test_the_file_is_written_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(str(tmp_path))
    written: list[str] = []
    write = store.write_bytes

    def noted(name: str, data: bytes) -> None:
        written.append(name)
        write(name, data)

    monkeypatch.setattr(store, "write_bytes", noted)
    now = [100.0]
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now[0])
    log = StepLog(store, STAGE)
    for step in range(1, 101):
        now[0] += 0.1
        log.add({"step": step}, at_once=step == 50)
    assert len(written) == pytest.approx(1 + 1 + 9, abs=1), "about every second, and before the checkpoint"


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    fit(store, 1, 20)
    file = tmp_path / STAGE / "steps" / "00000.jsonl"
    for data in (file.read_bytes()[:-5], b"", b"\xff\xfe\n", b"[]\n", b'{"step": 7}\n'):
        file.write_bytes(data)
        steps = [row["step"] for row in read_steps(store, STAGE)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (19, 0)


def test_steps_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = RunStore(f"s3://{BUCKET}/run")
        fit(store, 1, ROWS + 5)
        assert [row["step"] for row in read_steps(store, STAGE, ROWS - 2)] == list(range(ROWS - 1, ROWS + 6))


def test_a_runs_history_is_numbered_over_all_of_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, iterations=1).finish()
    for iteration in (1, 2):
        fit(run.store, 1, 10, stage=f"iteration-{iteration}/checkpoint")
    read = History(run.store, 1)
    whole = list(read(Held()))
    assert [one.number for one in whole if isinstance(one, TrainingStep)] == list(range(1, 21))
    assert [one.in_iteration for one in whole if isinstance(one, TrainingStep)] == [*range(1, 11), *range(1, 11)]
    assert [one.iteration for one in whole if isinstance(one, IterationResult)] == [0, 1, 2]
    assert isinstance(whole[0], IterationResult)
    assert isinstance(whole[-1], IterationResult)
    later = list(read(Held(15, 1)))
    assert later == whole[-6:]
    assert read.held() == Held(20, 2)
    assert list(read(read.held())) == []


def test_on_policy_rounds_follow_their_iterations_fit(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, iterations=1).finish()
    for iteration in (1, 2):
        fit(run.store, 1, 10, stage=f"iteration-{iteration}/checkpoint")
    for round_, steps in enumerate((2, 0, 3), 1):
        folder = layout.round_checkpoint(1, round_)
        fit(run.store, 1, steps, stage=folder)
        run.store.stage(folder).commit({"steps": steps})
    fit(run.store, 1, 1, stage=layout.round_checkpoint(2, 1))
    read = History(run.store, 1, rounds=3)
    whole = [one for one in read(Held()) if isinstance(one, TrainingStep)]
    assert [(one.number, one.iteration, one.round, one.in_iteration) for one in whole[9:16]] == [
        (10, 1, 0, 10), (11, 1, 1, 1), (12, 1, 1, 2), (13, 1, 3, 1), (14, 1, 3, 2), (15, 1, 3, 3), (16, 2, 0, 1),
    ]  # fmt: skip
    assert (whole[-1].number, whole[-1].iteration, whole[-1].round) == (26, 2, 1)
    assert read.held() == Held(26, 1), "round 2 of the last iteration is not committed"
    assert [one.number for one in read(Held(14, 1)) if isinstance(one, TrainingStep)] == list(range(15, 27))


def test_a_fit_under_way_is_part_of_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, iterations=1).begin()
    fit(run.store, 1, 4)
    assert History(run.store, 1).held() == Held(4, 0)
    assert len(list(History(run.store, 1)(Held(1, 0)))) == 3


def test_a_run_is_named_once_and_for_all(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    older = run_info(run.store, 1, History(run.store, 1)).id
    assert older == run_info(run.store, 2, History(run.store, 1)).id
    assert identity(run.store, run.store.description(), "new", 1.0)["id"] == older
    assert identity(run.store, None, "new", 5.0) == {"id": "new", "began": 5.0}


# -- choosing them ----------------------------------------------------------------------------------------------------

SMALL = {
    "run_name": "r",
    "data": {"pool": "p.jsonl"},
    "endpoints": {"default": {"model": "m"}},
    "student": {"model": "s"},
}


def test_trackers_are_no_part_of_what_a_run_is() -> None:
    tracking = [{"type": "tensorboard"}, {"import_path": "mine:Tracker", "options": {"a": [1, {"b": None}]}}]
    config = load_values(SMALL | {"tracking": tracking}, Path()).config
    assert cast(Own, config.tracking[1]).options == {"a": [1, {"b": None}]}
    assert differences(config.model_dump(mode="json"), load_values(SMALL, Path()).config.model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        ({"type": "tensorbord"}, 'tracking.0: type: given the text "tensorbord"; .* did you mean tensorboard'),
        ({"project": "p"}, "tracking.0: type: missing; add it, one of tensorboard, wandb, mlflow, or import_path"),
        ({"type": "wandb", "projekt": "p"}, "tracking.0.projekt: unknown key; did you mean project"),
        ({"type": "wandb", "mode": "off"}, "tracking.0.mode: .* one of online, offline"),
        ({"import_path": "mine.Tracker"}, "tracking.0.import_path: .* package.module:name"),
    ],
)
def test_a_wrong_key_is_named(tracking: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^the configuration: {says}") as raised:
        load_values(SMALL | {"tracking": [tracking]}, Path())
    assert "\n" not in str(raised.value)


OWN = """
from lion_ray import Tracker

class Mine(Tracker):
    def __init__(self, channel):
        self.channel = channel

class Half:
    def begin(self, run): ...
"""


def test_a_class_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "own_tracker_module.py").write_text(OWN)
    config = Own(import_path="own_tracker_module:Mine", options={"channel": "#runs"})
    ((name, tracker),) = load_trackers([config], tmp_path)
    assert name == "own_tracker_module:Mine"
    assert cast(Any, tracker).channel == "#runs"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Own(import_path="own_tracker_module:Mine"), ("tracking.0.import_path", "channel")),
        (Own(import_path="own_tracker_module:Half"), ("no method step",)),
        (Own(import_path="no_such_module:Mine"), ("cannot be imported",)),
        (WandbTracking(type="wandb"), ("WANDB_API_KEY", "tracking.0.mode")),
        (MlflowTracking(type="mlflow"), ("tracking.0.tracking_uri", "MLFLOW_TRACKING_URI")),
        (TensorBoardTracking(type="tensorboard"), ("tracking.0.folder", "s3://bucket/runs")),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: TrackingConfig, says: tuple[str, ...]
) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "own_tracker_module.py").write_text(OWN)
    with pytest.raises(ConfigError) as raised:
        load_trackers([config], tmp_path, root="s3://bucket/runs")
    assert all(one in str(raised.value) for one in says), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, kind, cast(Any, None))
    configs = {
        "tensorboard": TensorBoardTracking(type="tensorboard"),
        "wandb": WandbTracking(type="wandb", mode="offline"),
        "mlflow": MlflowTracking(type="mlflow", tracking_uri="http://127.0.0.1:1"),
    }
    with pytest.raises(ConfigError, match=rf"^tracking\.0: the package {kind} .*'lion-ray\[{kind}\]'"):
        load_trackers([cast(TrackingConfig, configs[kind])], tmp_path)


def test_no_password_in_an_address() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        MlflowTracking(type="mlflow", tracking_uri="https://me:hunter2@mlflow.example.org")
    assert "hunter2" not in str(raised.value.errors(include_input=False))  # type: ignore[attr-defined]
