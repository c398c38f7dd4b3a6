"""The Python API, as far as it goes without Ray: cheap to import, mistakes in one line, finished runs read back."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lion_ray
from lion_ray import LionError, RunConfig, RunResult, api, distil, distil_async, open_run
from lion_ray.core.errors import ConfigError, DataError, EndpointError
from lion_ray.pipeline.interrupts import Stop, signals_given_back
from lion_ray.testing.trackers import result
from lion_ray.tracking import Tracker
from tests.ray.cells import state
from tests.run_folder import RunFolder


def test_importing_it_costs_next_to_nothing() -> None:
    code = "from lion_ray import *; from lion_ray import RunConfig, distil, open_run; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"ray", "torch", "vllm", "openai", "transformers", "pyarrow", "rich", "wandb", "mlflow"} & {*loaded}


def test_its_names_are_there() -> None:
    assert all(getattr(lion_ray, name) is not None for name in lion_ray.__all__)
    assert {*lion_ray.__all__} <= {*dir(lion_ray)}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lion_ray.no_such_name


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """A run's folder, and beside it the configuration that it is of."""
    return RunFolder(tmp_path / "runs" / "small", iterations=1).finish()


def values(run: RunFolder, tmp_path: Path) -> dict[str, Any]:
    key = {"default": run.settings.endpoints["default"].model_dump(mode="json") | {"api_key_env": None}}
    return run.settings.model_dump(mode="json") | {"storage_path": str(tmp_path / "runs"), "endpoints": key}


# -- what came out ----------------------------------------------------------------------------------------------------


def test_a_run_is_opened_and_read(finished: RunFolder) -> None:
    run = open_run(finished.root)
    assert isinstance(run, RunResult)
    assert [one.iteration for one in run.iterations] == [0, 1, 2]
    assert run.checkpoint == finished.store.path("iteration-2/checkpoint/model")
    assert run.report.endswith("small/report.html")
    assert run.status().state == "finished"
    assert run.pool(0).num_rows == run.answers(0).num_rows == finished.rows
    assert run.pool(1)["source"].to_pylist() == ["hard", "hard", "easy", "easy"]
    assert run.verdicts(1)["id"].equals(run.student(1)["id"])
    frame = run.table().to_pandas()
    assert list(frame["iteration"]) == [0, 1, 2]
    assert frame["heldout_loss"].isna().tolist() == [True, False, False]
    assert run.steps().num_rows == 0, "an older run wrote none down"


def test_held_out_answers_stand_side_by_side(finished: RunFolder) -> None:
    run = open_run(finished.root)
    rows = run.heldout().to_pylist()
    assert len(rows) == finished.heldout
    by_id = {row["id"]: row for row in run.answers("heldout").to_pylist()}
    scores = {row["id"]: row for row in run.verdicts(2, heldout=True).to_pylist()}
    for row in rows:
        assert row["teacher"] == by_id[row["id"]]["text"]
        assert row["teacher_score"] == scores[row["id"]]["teacher_score"]
        assert row["version"] == "iteration-2"
    assert run.heldout(1)["version"].to_pylist() == ["iteration-1"] * finished.heldout


def test_what_is_not_there_is_said(finished: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pool-7"):
        open_run(finished.root).pool(7)
    with pytest.raises(ConfigError, match="nowhere"):
        open_run(tmp_path / "nowhere")


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = open_run(RunFolder(tmp_path / "new").begin().root)
    assert run.checkpoint is None
    assert [one.iteration for one in run.iterations] == [0, 1], "the teacher's answers are the first iteration's"
    assert run.heldout()["version"].to_pylist() == ["iteration-0"] * 6


# -- running ----------------------------------------------------------------------------------------------------------


def in_a_loop(config: Any, **settings: Any) -> RunResult:
    async def cell() -> RunResult:
        return distil(config, **settings)

    return asyncio.run(cell())


def awaited(config: Any, **settings: Any) -> RunResult:
    return asyncio.run(distil_async(config, **settings))


WAYS = pytest.mark.parametrize("way", [distil, in_a_loop, awaited], ids=["script", "notebook", "async"])


@WAYS
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, way: Callable[..., RunResult], finished: RunFolder
) -> None:
    config = values(finished, tmp_path) | {"run_name": "new"}
    config["endpoints"]["default"]["api_key_env"] = "A_KEY_THAT_IS_NOT_SET"
    before = state()
    said = io.StringIO()
    with pytest.raises(EndpointError, match="A_KEY_THAT_IS_NOT_SET") as raised:
        way(config, progress=said)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, LionError)
    after = state()
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert not (tmp_path / "runs" / "new").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "lion-ray"]


class Heard(Tracker):
    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.ended: Any = None

    def iteration(self, result: Any) -> None:
        self.iterations.append(result.iteration)

    def end(self, outcome: Any) -> None:
        self.ended = outcome


@WAYS
def test_a_finished_run_is_there_at_once(
    tmp_path: Path, way: Callable[..., RunResult], finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = Heard()
    run = way(values(finished, tmp_path), trackers=[heard])
    assert run.root == str(finished.root)
    assert [one.iteration for one in run.iterations] == heard.iterations == [0, 1, 2]
    assert heard.ended.error is None
    assert len(heard.ended.results) == 3
    assert "this run is finished" in capsys.readouterr().out


def test_a_tracker_that_is_added_later_hears_it_all(tmp_path: Path, finished: RunFolder) -> None:
    tracking = [{"type": "tensorboard"}]
    for _ in range(2):
        distil(values(finished, tmp_path) | {"tracking": tracking}, progress=False)
    assert list((finished.root / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", ["a file", "a RunConfig", "values"])
def test_a_configuration_comes_in_three_forms(
    tmp_path: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = values(finished, tmp_path)
    if kind == "a RunConfig":
        config = RunConfig.model_validate(config)
    if kind == "a file":
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        config = tmp_path / "c.yaml"
    loaded = api.load(config, overrides=["imitation.num_cpus=2"])
    assert loaded.config.imitation.num_cpus == 2
    assert loaded.base_dir == tmp_path
    assert api.load(config, base_dir="/elsewhere").base_dir == Path("/elsewhere")
    assert len(distil(config, progress=False).iterations) == 3


def test_mistakes_in_values_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"the configuration: data: missing; .*") as raised:
        api.load({"run_name": "r", "endpoints": {"default": {"model": "m"}}, "student": {"model": "s"}})
    assert "\n" not in str(raised.value)


def test_a_program_that_is_connected_to_ray_is_told(
    tmp_path: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"ray\.shutdown\(\)"):
        distil(values(finished, tmp_path) | {"run_name": "new"})


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_cancelling_ends_the_run_in_order(tmp_path: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own loop is cancelled, and is waited for."""
    came, ended = threading.Event(), []

    def run(loaded: Any, progress: Any, write_report: Any, trackers: Any, stop: Stop) -> Any:
        async def loop() -> None:
            with stop.cancels():
                came.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append("in order")

        try:
            asyncio.run(loop())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("lion_ray.pipeline.runner.run", run)

    async def cell() -> None:
        task = asyncio.create_task(distil_async(values(finished, tmp_path)))
        await asyncio.to_thread(came.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["in order"]

    asyncio.run(cell())


def test_an_interrupt_in_a_notebook_ends_the_run_in_order(
    tmp_path: Path, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def run(loaded: Any, progress: Any, write_report: Any, trackers: Any, stop: Stop) -> Any:
        os.kill(os.getpid(), signal.SIGINT)  # heard in the main thread, which waits
        while True:
            try:
                stop.look()
            except KeyboardInterrupt:
                ended.append("in order")
                raise
            time.sleep(0.01)

    monkeypatch.setattr("lion_ray.pipeline.runner.run", run)

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            distil(values(finished, tmp_path))
        assert ended == ["in order"]

    def left_behind(_number: int, _frame: object) -> None:  # as Ray Train leaves one after a fit
        raise RuntimeError("can't find the actor")

    before = signal.signal(signal.SIGINT, left_behind)
    loop = asyncio.new_event_loop()  # asyncio.run would take the signal for itself, which a notebook's loop does not
    try:
        loop.run_until_complete(cell())
        assert signal.getsignal(signal.SIGINT) is left_behind
    finally:
        signal.signal(signal.SIGINT, before)
        loop.close()


def test_a_stop_that_came_too_early_is_not_forgotten() -> None:
    stop = Stop()
    stop.look()
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        stop.look()

    async def loop() -> None:
        with stop.cancels():
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(loop())


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_given_back():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_empty_result_has_no_checkpoint(finished: RunFolder) -> None:
    assert RunResult(finished.store, [result(0)]).checkpoint is None
