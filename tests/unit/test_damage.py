"""Damage to a run's folder: never read as something else, told in one line with the path, all of it by `verify`."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lion_ray.cli.main import app, guarded
from lion_ray.core.errors import ConfigError, DamagedError, InfrastructureError, LionError
from lion_ray.core.sealed import from_json, from_parquet, seal, to_parquet
from lion_ray.core.store import RunStore
from lion_ray.pipeline.status import read_status
from lion_ray.pipeline.verify import verify
from lion_ray.report.page import render
from tests.run_folder import RunFolder

TEXTS = ["river engine", "violin", None, "harbour " * 30]
TABLE = pa.table({"id": ["a", "b", "c", "d"], "text": TEXTS, "n": [1, 2, 3, None]})
OTHERS = (b"{}", b"[]", b"null", b"3", b'{"parts": "x", "rows": [], "config": {"iterations": "x"}, "alive": "x"}')


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("runs") / "small"
    return RunFolder(root, rows=4, heldout=2, new=2, iterations=1, shard_rows=9).finish()


def flipped(data: bytes, place: random.Random) -> bytes:
    changed = bytearray(data)
    changed[place.randrange(len(changed))] ^= 1 << place.randrange(8)
    return bytes(changed)


def complaint(look: Callable[[], object]) -> str:
    """The line in which a look at something ended; empty where it went on."""
    try:
        look()
    except LionError as error:
        return str(error)
    return ""


def test_no_flipped_bit_of_a_table_is_read_as_something_else() -> None:
    data, place = to_parquet(TABLE), random.Random(5)
    found: list[pa.Table] = []
    for number in range(8 * len(data) // 3):
        changed = pa.py_buffer(flipped(data, place))
        columns = ("id", "text") if number % 2 else None
        line = complaint(lambda: found.append(from_parquet(changed, "part.parquet", columns)))  # noqa: B023 - called at once
        assert "\n" not in line
        # A bit of the seal's own name: then it has none, and everything else is as it was.
        assert line.startswith("part.parquet: damaged") or found[-1].equals(TABLE.select(found[-1].column_names))
    assert len(found) < 0.05 * len(data)


def test_a_sealed_table_is_an_ordinary_one() -> None:
    read = pq.read_table(io.BytesIO(to_parquet(TABLE)), page_checksum_verification=True)
    assert read.equals(TABLE)
    assert from_parquet(pa.py_buffer(to_parquet(TABLE)), "").schema.equals(TABLE.schema, check_metadata=True)
    for empty in (TABLE.slice(0, 0), TABLE.select(["id"])):
        assert from_parquet(pa.py_buffer(to_parquet(empty)), "").equals(empty)


def test_a_table_of_an_older_version_is_read(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "part-00000.parquet", compression="zstd")
    assert RunStore(str(tmp_path)).read_table("part-00000.parquet").equals(TABLE)


def test_a_table_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write_table("t.parquet", TABLE)
    with pytest.raises(DamagedError, match=r"t\.parquet: damaged.*no column 'status'"):
        store.read_table("t.parquet", ("id", "status"))
    with pytest.raises(DamagedError, match=r"gone\.parquet: damaged.*it is missing"):
        store.read_table("gone.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InfrastructureError, match=r"folder\.parquet: the storage refused to read it"):
        store.read_table("folder.parquet")


def test_no_flipped_bit_of_a_record_is_read_as_something_else() -> None:
    value = {"rows": 12, "parts": 3, "quarantined": {"empty answer": 1}, "quality": {"ratio": 0.875}, "ä": None}
    data, place = json.dumps(seal(value), indent=2).encode(), random.Random(6)
    assert from_json(data, "") == value
    found: list[dict[str, Any]] = []
    for _ in range(8 * len(data)):
        changed = flipped(data, place)
        line = complaint(lambda: found.append(from_json(changed, "manifest.json")))  # noqa: B023 - called at once
        # A bit of the seal's own name, or between the fields.
        assert line.startswith("manifest.json: damaged") or {key: found[-1][key] for key in value} == value
    assert len(found) < len(data)


def test_a_field_that_is_not_there_is_told_with_the_file(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write_json("x/manifest.json", {"rows": 3, "relative_quality": {"ratio": 1.0}})
    manifest = store.stage("x").manifest()
    assert manifest is not None
    for ask in (lambda: manifest["parts"], lambda: manifest["relative_quality"]["low"]):
        with pytest.raises(DamagedError, match=r"x/manifest\.json: damaged.*it has no"):
            ask()


def forms(path: Path) -> Iterator[bytes | None]:
    data, place = path.read_bytes(), random.Random(path.name)
    yield from (b"", data[: len(data) // 2], flipped(data, place))
    if path.suffix == ".json":
        yield from OTHERS
    yield None


def damaged(run: RunFolder) -> Iterator[tuple[Path, bytes | None]]:
    """Every file of the folder in every form, the folder being whole again after each."""
    for path in sorted(path for path in run.root.rglob("*") if path.suffix in (".json", ".parquet")):
        data = path.read_bytes()
        for form in forms(path):
            path.unlink() if form is None else path.write_bytes(form)
            yield path, form
            path.write_bytes(data)


def test_status_and_report_tell_any_damage_in_a_line(run: RunFolder) -> None:
    lines = []
    for number, (path, form) in enumerate(damaged(run)):
        looks: list[Callable[[], object]] = [lambda: read_status(RunStore(str(run.root)))]
        if number % 6 == 0 or (path.suffix == ".parquet" and form is None):
            looks.append(lambda: render(RunStore(str(run.root))))
        lines += [line for look in looks if (line := complaint(look))]
    assert [line for line in lines if str(run.root) not in line or "\n" in line] == []
    assert len(lines) > 60


def test_verify_finds_every_damage(run: RunFolder) -> None:
    whole = verify(run.store)
    assert whole.faults == []
    assert whole.proven > 10
    assert whole.journal is not None
    for number, (path, form) in enumerate(damaged(run)):
        if number % 3 or (form is None and path.name in ("result.json", "attempt.json", "manifest.json", "run.json")):
            continue  # what is not there is not done yet
        if path.parent.name == "iteration-1" and form is None:
            continue  # candidates of no stage
        if form in OTHERS[:5] and path.name in ("attempt.json", "result.json"):
            continue  # JSON all the same, of no seal: whoever needs a field says so
        faults = verify(RunStore(str(run.root))).faults
        assert [fault for fault in faults if str(path) in fault], (path, form)
        assert not [fault for fault in faults if str(path.parent) not in fault], "nothing else is accused"


def test_verify_as_a_command(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> int:
        return guarded(lambda: app([*words], standalone_mode=False))

    assert command("verify", str(run.root)) == 0
    assert "verified by SHA-256" in capsys.readouterr().out
    part = run.root / "answers-0" / "part-00000.parquet"
    journal = next((run.root / "journal").glob("*.calls"))
    kept = part.read_bytes(), journal.read_bytes()
    part.write_bytes(flipped(kept[0], random.Random(1)))
    journal.write_bytes(kept[1][:50] + b"\x00" + kept[1][51:])
    assert command("verify", str(run.root), "--json") == 3
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["faults"]) == 2
    assert shown.err.count("\n") == 1
    for path, data in zip((part, journal), kept, strict=True):
        path.write_bytes(data)


def test_verify_proves_a_model_s_files(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    made = tmp_path / "made"
    (made / "adapter").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights" * 100)
    (made / "adapter" / "a.safetensors").write_bytes(b"adapter")
    store.adopt_folder(made, "iteration-1/checkpoint/model")
    stage = store.stage("iteration-1/checkpoint")
    stage.commit({"steps": 1})
    assert set(stage.sums()) == {"model/model.safetensors", "model/adapter/a.safetensors"}
    assert verify(store).faults == []
    weights = tmp_path / "run" / "iteration-1" / "checkpoint" / "model" / "model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), random.Random(2)))
    assert [str(weights) in fault for fault in verify(store).faults] == [True]


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write_record("run.json", {"format": 2, "config": {}})
    with pytest.raises(ConfigError, match=r"a newer lion-ray wrote it \(format 2"):
        store.description()
