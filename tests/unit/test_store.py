"""The run folder: whole or absent, committed by the manifest, one attempt at a time."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lion_ray.core.errors import InfrastructureError, RunConflictError
from lion_ray.core.store import RunStore

TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})


def test_a_stage_without_a_manifest_is_not_committed(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    stage = store.stage("iteration-1/student")
    stage.write_part(0, TABLE)
    stage.write_part(1, TABLE.slice(1))
    assert stage.manifest() is None
    assert stage.part_indexes() == {0, 1}
    stage.commit({"parts": 2})
    assert stage.manifest() == {"parts": 2}
    assert stage.read(2)["n"].to_pylist() == [1, 2, 2]


def test_a_refused_write_leaves_nothing_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stage").write_text("a file where a folder should be")
    store = RunStore(str(tmp_path / "run"))
    with pytest.raises(InfrastructureError, match=r"stage/x\.json: the storage refused"):
        store.write_json("stage/x.json", {})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["stage"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write_json("a.json", {"v": 1})
    store.write_json("a.json", {"v": 2})
    assert store.read_json("a.json") == {"v": 2}
    assert store.names("") == ["a.json"]


def test_an_address_can_be_opened_by_others(tmp_path: Path) -> None:
    assert RunStore(str(tmp_path)).address("journal") == str(tmp_path / "journal")
    options = "?region=us-east-1&endpoint_override=127.0.0.1%3A9"  # named, so that nobody is asked for them
    for root in ("s3://bucket/runs/a", "s3://bucket/runs/a/"):
        assert RunStore(root + options).address("journal") == f"s3://bucket/runs/a/journal{options}"


def test_json_that_is_not_json_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InfrastructureError, match=r"a\.json: damaged.*not JSON"):
        RunStore(str(tmp_path)).read_json("a.json")


class Objects(RunStore):
    """As behind a URL, with a plan of what reads give."""

    reads: list[bytes]

    def read_bytes(self, name: str) -> bytes:
        return self.reads.pop(0)


def test_an_object_that_was_replaced_while_it_was_read_is_read_again(tmp_path: Path) -> None:
    store = Objects(str(tmp_path))
    store.is_local = False
    torn = b'{"step": 1}": 0}'
    store.reads = [torn, torn, b'{"step": 2}']
    assert store.read_json("progress.json") == {"step": 2}
    store.reads = [torn] * 9
    with pytest.raises(InfrastructureError, match=r"progress\.json: damaged.*not JSON"):
        store.read_json("progress.json")
    assert store.reads, "not for ever"


def test_a_second_attempt_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first, second = RunStore(str(tmp_path)), RunStore(str(tmp_path))
    assert first.claim() == 1
    with pytest.raises(RunConflictError, match="another attempt"):
        second.claim()
    first.heartbeat(ended=True)
    assert second.claim() == 2


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = f"from lion_ray.core.store import RunStore; import os; RunStore({str(tmp_path)!r}).claim(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert RunStore(str(tmp_path)).claim() == 2


def test_an_attempt_that_was_replaced_cannot_commit(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.claim()
    stage = store.stage("pool-0")
    RunStore(str(tmp_path)).write_json("attempt.json", {"attempt": 2, "token": "other", "host": "h", "pid": 1})
    with pytest.raises(RunConflictError, match="host h, process 1"):
        stage.commit({"parts": 0})
    assert stage.manifest() is None
    with pytest.raises(RunConflictError):
        store.heartbeat()


def test_a_store_travels_to_another_process(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.claim()
    there = pickle.loads(pickle.dumps(store))
    there.stage("s").write_part(3, TABLE)
    assert store.stage("s").part_indexes() == {3}
    there.check_fence()


def test_a_url_is_a_storage_too(tmp_path: Path) -> None:
    store = RunStore(f"file://{tmp_path}/run")
    store.write_json("x/y.json", [1])
    assert store.read_json("x/y.json") == [1]
    with pytest.raises(InfrastructureError, match="no such storage"):
        RunStore("nowhere://bucket/run")
