"""The folder: whole or not there, checkable, the same each time, and never in the place of something else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lion_ray.core.errors import ConfigError, DataError, ModelError
from lion_ray.core.store import RunStore
from lion_ray.export.folder import Exported, check_sums, export
from lion_ray.export.source import Source
from tests.export.runs import make_run


def quiet(_: str) -> None:
    """Nobody reads along."""


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_anybody_can_check_it(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    found = files(exported)
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: value for name, value in found.items() if name not in ("manifest.json", "SHA256SUMS")
    }
    assert (manifest["run"], manifest["iteration"], manifest["parts"]) == ("little", 2, ["data", "model"])
    for part in (exported, exported / "data", exported / "model"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=part, check=True)
        listed = {line.split("  ", 1)[1] for line in (part / "SHA256SUMS").read_text().splitlines()}
        assert listed == set(files(part)) - {"SHA256SUMS"}
    check_sums(exported)


def test_the_same_run_exports_to_the_same_bytes(run: RunStore, exported: Path, tmp_path: Path) -> None:
    export(Source.open(run), tmp_path / "again", say=quiet)
    assert files(tmp_path / "again") == files(exported)


def test_parts_and_iterations_can_be_chosen(run: RunStore, tmp_path: Path) -> None:
    done = export(Source.open(run, 1), tmp_path / "one", ["data"], say=quiet)
    assert done == Exported(tmp_path / "one", ("data",), made=True)
    names = set(files(tmp_path / "one"))
    assert not [name for name in names if name.startswith("model/")]
    assert {name for name in names if name.startswith("data/answers/train")} == {"data/answers/train-1.parquet"}
    assert not [name for name in names if name.endswith("-2.parquet")]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (["data", "weights"], "unknown part 'weights'; choose from data, model, adapters"),
        ([], "name at least one of data, model, adapters"),
        (["adapters"], "trained without adapters"),
    ],
)
def test_parts_that_are_not_there(run: RunStore, tmp_path: Path, what: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        export(Source.open(run), tmp_path / "out", what, say=quiet)
    assert list(tmp_path.iterdir()) == []


def test_an_iteration_that_is_not_there(run: RunStore) -> None:
    with pytest.raises(ConfigError, match="no checkpoint of iteration 3 yet"):
        Source.open(run, 3)


def test_a_folder_that_is_there(run: RunStore, tmp_path: Path) -> None:
    source = Source.open(run)
    out = tmp_path / "out"
    out.mkdir()
    export(source, out, ["data"], say=quiet)  # empty: taken
    with pytest.raises(DataError, match="replace it with --force"):
        export(source, out, ["data"], say=quiet)
    before = files(out)
    export(source, out, ["model"], force=True, say=quiet)
    assert not (out / "data").exists()
    assert files(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing beside it stays"


def test_what_is_no_export_is_never_replaced(run: RunStore, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    (out / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists already and is not an export"):
        export(Source.open(run), out, force=True, say=quiet)
    assert (out / "chapter.txt").read_text() == "years of work"


def test_a_failure_leaves_nothing_and_takes_nothing(base: Path, tmp_path: Path) -> None:
    store = make_run(str(tmp_path / "run"), base)
    out = tmp_path / "out"
    export(Source.open(store), out, say=quiet)
    before = files(out)
    checkpoint = Path(store.path("iteration-2/checkpoint/model"))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no \.safetensors files"):
        export(Source.open(store), out, force=True, say=quiet)
    assert files(out) == before
    shutil.rmtree(checkpoint)
    with pytest.raises(ModelError, match="no tokenizer can be loaded"):
        export(Source.open(store), tmp_path / "other", say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_damaged_export_is_told_by_its_file(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    path = copy / "model" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=r"config\.json was changed after the export"):
        check_sums(copy)
    path.unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        check_sums(copy)
