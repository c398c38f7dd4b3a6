"""Who may write a local run folder: a lock that is a lock, noticed when it goes, and nothing left lying about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from lion_ray.core.errors import RunConflictError
from lion_ray.core.leftovers import OLD_S
from lion_ray.core.store import RunStore


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("all that I have")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunConflictError, match=r"\.lock is not a lock file"):
        RunStore(str(tmp_path / "run")).claim()
    assert (tmp_path / "precious").read_text() == "all that I have"
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").mkdir()
    with pytest.raises(RunConflictError, match=r"\.lock is not a lock file"):
        RunStore(str(tmp_path / "run")).claim()


def test_a_lock_that_vanished_is_taken_again(tmp_path: Path) -> None:
    first = RunStore(str(tmp_path))
    first.claim()
    (tmp_path / ".lock").unlink()
    first.stage("pool-0").commit({"parts": 0})
    assert (tmp_path / ".lock").exists()
    with pytest.raises(RunConflictError, match="another attempt"):
        RunStore(str(tmp_path)).claim()
    first.heartbeat()


@pytest.mark.parametrize("gone", [True, False], ids=["the second has ended", "the second lives"])
def test_a_lock_that_somebody_else_took_ends_the_first(tmp_path: Path, gone: bool) -> None:
    first, second = RunStore(str(tmp_path)), RunStore(str(tmp_path))
    first.claim()
    (tmp_path / ".lock").unlink()
    assert second.claim() == 2
    if gone:
        second.heartbeat(ended=True)
    for act in (first.heartbeat, lambda: first.stage("pool-0").commit({"parts": 0})):
        with pytest.raises(RunConflictError):
            act()
    assert first.stage("pool-0").manifest() is None


def test_a_lock_that_became_a_link_is_noticed(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.claim()
    (tmp_path / ".lock").rename(tmp_path / "elsewhere")
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunConflictError, match="the lock of this run was removed while it ran"):
        store.heartbeat()


def test_what_a_killed_attempt_left_is_removed(tmp_path: Path) -> None:
    """Killed between writing aside and the new name, in the run's folder and in a stage's."""
    code = (
        "import os, sys; from pathlib import Path; from lion_ray.core.store import RunStore\n"
        f"store = RunStore({str(tmp_path)!r}); store.claim()\n"
        "Path.replace = lambda *_: os._exit(9)\n"
        "store.write_json(sys.argv[1], {'a': 1})\n"
    )
    for name in ("attempt.json", "pool-0/manifest.json"):
        assert subprocess.run([sys.executable, "-c", code, name], check=False).returncode == 9
    report, old = tmp_path / ".report.html.0123abcd", tmp_path / "evaluations" / ".x.json.0123abcd"
    kept = [tmp_path / ".hidden", report]
    old.parent.mkdir()
    for path in (*kept, old):
        path.write_text("")
    os.utime(old, (0, report.stat().st_mtime - OLD_S - 60))
    store = RunStore(str(tmp_path))
    store.claim()
    found = {path for path in tmp_path.rglob(".*") if path.is_file()}
    assert found == {*kept, tmp_path / ".lock"}


def test_a_table_in_a_stage_and_its_claim_survive_the_tidying(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.claim()
    store.stage("pool-0").write_part(0, pa.table({"id": ["a"]}))
    store.heartbeat(ended=True)
    again = RunStore(str(tmp_path))
    assert again.claim() == 2
    assert again.stage("pool-0").part_indexes() == {0}
