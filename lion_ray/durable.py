"""Making what was written survive a power cut: on POSIX a file and the folder that names it are flushed apart."""

from __future__ import annotations

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk. See fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
