"""Files that were being written aside when their process was killed.

Invariants:
- Only names that `store` gives to what it writes aside are touched (``.NAME.8 hex digits``), and only below a run's
  folder.
- Whoever has claimed the run is its one writer, so what an attempt writes is left over at once. A report and results of
  evaluations are written by other commands too: theirs must be a day old.

This module knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from lion_ray.core import layout

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
