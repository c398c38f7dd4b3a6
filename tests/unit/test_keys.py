"""Keys that a driver sets aside: out of the environment while it runs, back afterwards, and nobody else's to read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lion_ray.core.leftovers import scratch_folder
from lion_ray.gateway import keys
from lion_ray.gateway.keys import PREFIX, read_key, set_aside

KEY = "sk-a-key-that-nobody-has"


@pytest.fixture(autouse=True)
def _in_a_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_IN_MEMORY", tmp_path)
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.delenv("NO_KEY", raising=False)


def test_a_key_leaves_the_environment_and_comes_back(tmp_path: Path) -> None:
    with set_aside(["A_KEY", "NO_KEY", "A_KEY"]) as file:
        assert "A_KEY" not in os.environ
        assert file is not None
        assert read_key("A_KEY", file) == KEY
        assert read_key("NO_KEY", file) is None
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(file).parent.stat().st_mode) == 0o700
        seen = subprocess.run([sys.executable, "-c", "import os; print(os.environ)"], capture_output=True, text=True)
        assert KEY not in seen.stdout
    assert os.environ["A_KEY"] == KEY
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_keys_writes_nothing(tmp_path: Path) -> None:
    with set_aside(["NO_KEY"]) as file:
        assert file is None
        assert list(tmp_path.iterdir()) == []


def test_an_error_gives_the_environment_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), set_aside(["A_KEY"]):
        raise ValueError("x")
    assert os.environ["A_KEY"] == KEY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"B": "1"}'])
def test_without_a_file_that_says_it_the_environment_does(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    assert read_key("A_KEY", str(file)) == KEY


def test_what_a_killed_driver_left_is_removed_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lion_ray.gateway import keys\n"
        f"keys._IN_MEMORY = Path({str(tmp_path)!r})\n"
        "with keys.set_aside(['A_KEY']) as file: print(file, flush=True); sys.stdin.read(); os._exit(9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        file = Path(driver.stdout.readline().decode().strip())
        scratch_folder(PREFIX, tmp_path)
        assert file.is_file(), "its driver lives"
        driver.kill()
    assert file.is_file()
    scratch_folder(PREFIX, tmp_path, kept_s=3600)
    assert file.is_file(), "it may still be looked at"
    scratch_folder(PREFIX, tmp_path)
    assert not file.parent.exists()
