"""The run folder's files by name, and what is said when one cannot be read or written: on a disk and behind a URL."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.core.errors import ConfigError, DamagedError, InfrastructureError
from lion_ray.core.store import FORMAT, RunStore

TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})
RETRY = "correct that and run the same command to resume"


@pytest.fixture(params=["disk", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    """A store on a disk, and one that treats the same files as objects."""
    found = RunStore(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    if request.param == "objects":
        found.is_local = False
    return found


def message(work: Any, kind: type[Exception] = InfrastructureError) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert type(caught.value) is kind
    return str(caught.value)


def test_paths_and_addresses(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    assert (store.path(), store.path("a/b"), store.address("a")) == (str(tmp_path), f"{tmp_path}/a/b", f"{tmp_path}/a")
    assert store.journal(None) == store.journal("") == f"{tmp_path}/journal"
    assert store.journal("s3://bucket/journal") == "s3://bucket/journal"
    url = RunStore("s3://bucket/runs/a?region=us-east-1&endpoint_override=127.0.0.1%3A9")
    assert url.address("x") == "s3://bucket/runs/a/x?region=us-east-1&endpoint_override=127.0.0.1%3A9"
    assert (url.path("x"), url.is_local, store.is_local) == ("bucket/runs/a/x", False, True)
    assert RunStore(str(tmp_path), "token").__getstate__() == {"root": str(tmp_path), "token": "token"}
    assert RunStore(str(tmp_path)).token is None


def test_a_file_from_its_writing_to_its_end(store: RunStore, tmp_path: Path) -> None:
    if not store.is_local:
        (tmp_path / "run" / "deep").mkdir()
    assert not store.exists("deep/a.json")
    store.write_json("deep/a.json", {"ä": [1]})
    path = tmp_path / "run" / "deep" / "a.json"
    assert path.read_text(encoding="utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'
    assert store.exists("deep/a.json")
    assert store.exists("deep")
    assert store.read_bytes("deep/a.json") == path.read_bytes()
    assert store.read_json("deep/a.json") == {"ä": [1]}
    assert store.read_json("deep/none.json") is None
    assert store.read_record("deep/none.json") is None
    store.write_bytes("deep/.hidden", b"x")
    store.write_bytes("deep/b", b"y")
    (tmp_path / "run" / "deep" / "c").mkdir()
    assert store.names("deep") == ["a.json", "b", "c"]
    assert store.entries("deep") == [(".hidden", False), ("a.json", False), ("b", False), ("c", True)]
    assert store.names("none") == []
    assert store.entries("none") == []
    assert store.sum_of("deep/b") == {"bytes": 1, "sha256": hashlib.sha256(b"y").hexdigest()}
    store.delete("deep/b")
    store.delete("deep/b")
    assert not store.exists("deep/b")
    store.delete_folder("deep")
    store.delete_folder("deep")
    assert not store.exists("deep")
    for work in (store.read_bytes, store.sum_of):
        with pytest.raises(FileNotFoundError):
            work("deep/b")


def test_records_with_their_seals(store: RunStore, tmp_path: Path) -> None:
    store.write_record("a.json", {"x": 1})
    found = store.read_record("a.json")
    assert found == {"x": 1}
    assert found is not None
    assert found.path == f"{tmp_path}/run/a.json"
    path = tmp_path / "run" / "a.json"
    path.write_text(path.read_text().replace('"x": 1', '"x": 2'))
    assert message(lambda: store.read_json("a.json"), DamagedError).startswith(
        f"{path}: damaged or of another version: "
    )
    path.write_text("[]")
    assert store.read_json("a.json") == []
    assert message(lambda: store.read_record("a.json"), DamagedError).startswith(
        f"{path}: damaged or of another version: it does not hold a JSON object. "
    )


def test_tables(store: RunStore, tmp_path: Path) -> None:
    store.write_table("a.parquet", TABLE)
    assert store.read_table("a.parquet").equals(TABLE)
    assert store.read_table("a.parquet", ["n"]).equals(TABLE.select(["n"]))
    assert store.read_table("a.parquet", ["n", "none"], optional=True).equals(TABLE.select(["n"]))
    assert message(lambda: store.read_table("none.parquet"), DamagedError).startswith(
        f"{tmp_path}/run/none.parquet: damaged or of another version: it is missing. "
    )
    with pytest.raises(DamagedError):
        store.read_table("a.parquet", ["none"])


def test_a_runs_description(store: RunStore, tmp_path: Path) -> None:
    assert store.description() is None
    assert message(store.described, ConfigError) == f"{tmp_path}/run: no run there (looked for run.json)"
    known: dict[str, Any]
    for known in ({"config": {}}, {"config": {}, "format": FORMAT}):
        store.write_record("run.json", known)
        assert store.description() == store.described() == known
    store.write_record("run.json", {"config": {}, "format": FORMAT + 1})
    assert message(store.description, ConfigError) == (
        f"{tmp_path}/run/run.json: a newer lion-ray wrote it (format {FORMAT + 1}; this version knows {FORMAT}); use "
        "that version"
    )
    store.write_record("run.json", {"config": {}, "format": "x"})
    assert message(store.description, DamagedError).startswith(f"{tmp_path}/run/run.json: ")
    store.write_record("run.json", {"config": {"endpoints": 3}})
    assert message(store.description, DamagedError).startswith(f"{tmp_path}/run/run.json: ")


def test_what_a_storage_refuses_is_said_with_the_file(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "run" / "file").write_text("x")
    at = f"{tmp_path}/run/file/a: the storage refused"
    wrote = message(lambda: store.write_bytes("file/a", b"x"))
    assert wrote.startswith(f"{at} the write (")
    assert wrote.endswith(f"); {RETRY}")
    (tmp_path / "run" / "folder").mkdir()
    for work, name in (
        (store.read_bytes, "folder"),
        (store.sum_of, "folder"),
        (store.delete, "folder"),
        (store.delete_folder, "file"),
        (store.entries, "file"),
    ):
        said = message(lambda work=work, name=name: work(name))
        assert said.startswith(f"{tmp_path}/run/{name}: the storage refused to read it (")
        assert said.endswith(f"); {RETRY}")
    assert message(lambda: store.make(tmp_path / "run" / "file" / "x")).startswith(
        f"{tmp_path}/run/file/x: the storage refused the write ("
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["file", "folder"]


def test_a_file_is_copied_out(store: RunStore, tmp_path: Path) -> None:
    store.write_bytes("a", b"x")
    store.copy_out("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x"
    said = message(lambda: store.copy_out("none", tmp_path / "other"))
    assert said.startswith(f"{tmp_path}/run/none: cannot be copied to {tmp_path}/other: ")


def test_a_folder_that_is_adopted(store: RunStore, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "in").mkdir(parents=True)
    (made / "in" / "a").write_bytes(b"1")
    (made / "b").write_bytes(b"22")
    (tmp_path / "run" / "stage" / "checkpoint").mkdir(parents=True)
    if store.is_local:
        (tmp_path / "run" / "stage" / "checkpoint" / "old").write_bytes(b"")
    store.adopt_folder(made, "stage/checkpoint")
    there = tmp_path / "run" / "stage" / "checkpoint"
    assert (there / "in" / "a").read_bytes() == b"1"
    assert not (there / "old").exists()
    assert made.exists() is not store.is_local
    assert store.read_record("stage/checkpoint.sums.json") == {
        "checkpoint/b": {"bytes": 2, "sha256": hashlib.sha256(b"22").hexdigest()},
        "checkpoint/in/a": {"bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()},
    }
    if store.is_local:
        store.adopt_folder(there, "stage/checkpoint")
        assert (there / "b").read_bytes() == b"22", "it is there already"
    local = store.local_folder("stage/checkpoint", tmp_path / "cache")
    assert (local / "in" / "a").read_bytes() == b"1"
    assert (local == there) is store.is_local
    if not store.is_local:
        assert local.parent == tmp_path / "cache"
        assert store.local_folder("stage/checkpoint", tmp_path / "cache") == local, "the same copy"
        sums = json.loads((tmp_path / "run" / "stage" / "checkpoint.sums.json").read_text())
        assert set(sums) >= {"checkpoint/b", "checkpoint/in/a"}
        # Without sums, the files' times tell copies apart.
        store.delete("stage/checkpoint.sums.json")
        assert store.local_folder("stage/checkpoint", tmp_path / "cache") != local


def test_a_folder_that_cannot_be_adopted(store: RunStore, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "b").write_bytes(b"22")
    (tmp_path / "run" / "stage").write_text("a file")
    said = message(lambda: store.adopt_folder(made, "stage/checkpoint"))
    assert said.startswith(f"{tmp_path}/run/stage")
    assert "the storage refused the write (" in said
