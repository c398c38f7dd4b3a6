"""What killed processes left: files that were being written aside, and folders for the life of a process.

Invariants:
- In a run's folder only names that `store` gives to what it writes aside are touched (``.NAME.8 hex digits``); outside
  of one only a scratch folder of the same user, whose process has ended.
- Whoever has claimed the run is its one writer, so what an attempt writes is left over at once. A report and results of
  evaluations are written by other commands too: theirs must be a day old.

This module knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

from lion_ray.core import layout
from lion_ray.core.process_guard import start_time

_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}")
_OTHERS = (layout.EVALUATIONS, f".{layout.REPORT}.")
_LET_BE = {layout.JOURNAL, layout.FITS}
OLD_S = 24 * 3600.0
"""So old, in seconds, is a file that nobody is writing any more."""


def remove_leftovers(root: Path) -> int:
    """Remove what killed attempts left in a run's local folder; returns how many files."""
    removed = 0
    for path in _asides(root):
        inside = path.relative_to(root).as_posix()
        with contextlib.suppress(FileNotFoundError):
            if inside.startswith(_OTHERS) and time.time() - path.stat().st_mtime < OLD_S:
                continue
            path.unlink()
            removed += 1
    return removed


def scratch_folder(prefix: str, parent: Path | None = None, *, kept_s: float = 0.0) -> Path:
    """Make a folder for the life of this process, which only its user can read, and remove those of ended ones.

    Args:
        parent: None: where the machine has temporary files.
        kept_s: how long, in seconds, an ended process's folder stays: what is in it may be looked at.
    """
    parent = parent or Path(tempfile.gettempdir())
    for folder in parent.glob(f"{prefix}*"):
        pid, _, rest = folder.name.removeprefix(prefix).partition("-")
        with contextlib.suppress(OSError):
            about = folder.lstat()
            old = time.time() - about.st_mtime >= kept_s
            ended = pid.isdigit() and start_time(int(pid)) != rest.partition("-")[0]
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and ended and old:
                shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-{start_time(os.getpid())}-", dir=parent))


def _asides(folder: Path) -> list[Path]:
    found = []
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            found += _asides(path) if path.name not in _LET_BE else []
        elif _ASIDE.fullmatch(path.name):
            found.append(path)
    return found
