"""Removes temporary files of killed processes in a run's folder, and their scratch folders.

Invariants:
- In a run's folder only the temporary files of `store` are removed (``.NAME.8 hex digits``); outside it only scratch
  folders of the same user whose process has ended.
- The attempt that has claimed the run is its only writer, so an earlier attempt's temporary files are removed at once.
  Other commands also write reports and evaluation results: their temporary files are removed after a day.

This module does not read the files.
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

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
_OTHER_COMMANDS = (layout.EVALUATIONS, f".{layout.REPORT}.")
_SKIPPED = {layout.JOURNAL, layout.FITS}
OLD_S = 24 * 3600.0
"""The age in seconds at which another command's temporary file counts as abandoned."""


def remove_leftovers(root: Path) -> int:
    """Remove the temporary files of killed attempts from a run's local folder; returns how many."""
    removed = 0
    for path in _temporary_files(root):
        inside = path.relative_to(root).as_posix()
        with contextlib.suppress(FileNotFoundError):
            if inside.startswith(_OTHER_COMMANDS) and time.time() - path.stat().st_mtime < OLD_S:
                continue
            path.unlink()
            removed += 1
    return removed


def scratch_folder(prefix: str, parent: Path | None = None, *, kept_s: float = 0.0) -> Path:
    """Make a scratch folder for this process, readable only by its user; remove those of processes that have ended.

    Args:
        parent: default: the machine's folder for temporary files.
        kept_s: how long, in seconds, an ended process's folder is kept for inspection.
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


def _temporary_files(folder: Path) -> list[Path]:
    found = []
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            found += _temporary_files(path) if path.name not in _SKIPPED else []
        elif _TEMPORARY.fullmatch(path.name):
            found.append(path)
    return found
