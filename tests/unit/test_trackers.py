"""The built-in trackers pass the contract of all trackers, read back from what they wrote."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lion_ray.testing.trackers import STEPS, Points, TrackerContract, info, the_run
from lion_ray.tracking import Tracker
from lion_ray.tracking.base import Outcome
from lion_ray.tracking.mlflow import Mlflow
from lion_ray.tracking.numbers import ITERATION, SPENT_AT, STEP
from lion_ray.tracking.tensorboard import TensorBoard
from lion_ray.tracking.wandb import Wandb

BLOCK = 32768
"""Of a log in LevelDB's format."""


class TestTensorBoard(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return TensorBoard(str(folder / "logs"))

    def read(self, folder: Path) -> Points:
        """With TensorBoard's own reader, as its pages show it."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder / "logs" / "small-0a1b2c3d"), size_guidance={"tensors": 0, "scalars": 0})
        reader.Reload()
        return {name: [(one.step, one.value) for one in reader.Scalars(name)] for name in reader.Tags()["scalars"]}

    def test_what_a_killed_attempt_wrote_is_not_written_again(self, tmp_path: Path) -> None:
        killed = self.make(tmp_path)
        killed.begin(info(tmp_path, attempt=1))
        for one in the_run()[1 : STEPS + 1]:
            killed.step(one)  # type: ignore[arg-type]
        killed.flush()
        (file,) = (tmp_path / "logs" / "small-0a1b2c3d").iterdir()
        file.write_bytes(file.read_bytes()[:-20])  # in the middle of a record
        self.test_a_resumed_run_is_complete(tmp_path)


class TestMlflow(TrackerContract):
    """Against MLflow's own store in files: what a server does with it, without a server."""

    @pytest.fixture(autouse=True)
    def _files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def make(self, folder: Path) -> Tracker:
        return Mlflow(f"file://{folder}/mlflow", "tests")

    def read(self, folder: Path) -> Points:
        client, run = self.run(folder)
        return {
            name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }

    def run(self, folder: Path) -> tuple[Any, Any]:
        from mlflow import MlflowClient

        client = MlflowClient(f"file://{folder}/mlflow")
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], "tags.`lion_ray.run` = '0a1b2c3d'")
        return client, run

    def test_it_says_how_the_run_ended_and_what_it_is(self, tmp_path: Path) -> None:
        for error, status in ((None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (OSError("x"), "FAILED")):
            tracker = self.make(tmp_path)
            tracker.begin(info(tmp_path, attempt=1))
            assert self.run(tmp_path)[1].info.status == "RUNNING"
            tracker.end(Outcome(error=error))
            _, run = self.run(tmp_path)
            assert run.info.status == status
        assert run.data.params["imitation.epochs"] == "3"
        assert run.info.run_name == "small"


class TestWandb(TrackerContract):
    """In offline mode: its files hold what `wandb sync` would send."""

    @pytest.fixture(autouse=True)
    def _beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def make(self, folder: Path) -> Tracker:
        return Wandb("tests", mode="offline")

    def read(self, folder: Path) -> Points:
        found: Points = {}
        for row in records(folder):
            by = next(by for by in (STEP, ITERATION, SPENT_AT) if by in row)
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((int(row[by]), value))
        return found

    def test_nothing_of_the_machine_is_in_its_files(self, tmp_path: Path) -> None:
        import socket
        import sys

        self.test_a_whole_run_is_recorded(tmp_path)  # and all of it is written then
        sent = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*.wandb"))
        assert b"small-0a1b2c3d" in sent
        # A short host name may stand in any file by chance.
        for own in (name for name in (socket.gethostname(), sys.argv[0], str(Path.cwd())) if len(name) > 5):
            assert own.encode() not in sent, own


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which W&B's files are after a header of 7 bytes."""
    at, record = 0, b""
    while at + 7 <= len(data):  # what is cut off is not there yet
        if BLOCK - (at + 7) % BLOCK < 7:  # the header counts into the first block
            at += BLOCK - (at + 7) % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece of one
            yield record
            record = b""


def records(folder: Path) -> list[dict[str, Any]]:
    """The rows in W&B's own files of a run, in the order in which they would be uploaded."""
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*0a1b2c3d.wandb")):
        found = parsed(file)
        while not any(one.WhichOneof("record_type") == "exit" for one in found):
            time.sleep(0.02)  # its own process writes what is left a moment after the run has ended
            found = parsed(file)
        for record in found:
            items = record.history.item if record.WhichOneof("record_type") == "history" else []
            if items:
                rows.append({"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items})
    return rows


def parsed(file: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    return [Record.FromString(data) for data in leveldb_log(file.read_bytes()[7:])]
