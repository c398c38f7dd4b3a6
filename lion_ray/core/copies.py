"""Local copies of folders of a run in an object store, for programs that read files, such as vLLM.

Invariants:
- A copy is named by a hash of its content: a run that was deleted and recreated under its name never loads old weights.
- All processes of a machine share a copy. One of them downloads it under a lock and renames it once it is complete.
- At most `KEPT` copies stay, and those used in the last `UNUSED_S` seconds.
- Only this user can write to the folder of copies, so nobody else can put weights into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from lion_ray.core.errors import InfrastructureError

KEPT = 3
"""Enough for a student, its successor, and a student of another run."""
UNUSED_S = 3600.0
_COPY = re.compile(r"\.?[0-9a-f]{32}(\.[0-9a-f]{8})?")


def copies_folder() -> Path:
    """The folder of this user's copies on this machine.

    Raises:
        InfrastructureError: the folder belongs to another user, or is a link.
    """
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / f"lion-ray-checkpoints-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise InfrastructureError(f"{folder}: not a folder that only this user may write to; remove it, or set TMPDIR")
    return folder


def copied(content: Mapping[str, object], sizes: Mapping[str, int], cache: Path, fetch: Callable[[Path], None]) -> Path:
    """The copy of a folder, downloaded if it does not exist yet.

    Args:
        content: identifies the folder's content: its files and their hashes, as JSON.
        sizes: the size of each file in bytes, by its path relative to the folder.
        fetch: writes the files into an empty folder.

    Raises:
        InfrastructureError: the download is incomplete.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    target = cache / digest
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{digest}.lock"):
        if not target.exists():
            aside = cache / f".{digest}.{uuid.uuid4().hex[:8]}"
            aside.mkdir()
            try:
                fetch(aside)
                for name, size in sizes.items():
                    if not (aside / name).is_file() or (aside / name).stat().st_size != size:
                        raise InfrastructureError(f"{name}: the download is incomplete; run the same command to retry")
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        os.utime(target)
    _remove_unused(cache, keep=target)
    return target


def _remove_unused(cache: Path, *, keep: Path) -> None:
    """Remove the least recently used copies beyond `KEPT`, and temporary folders of killed processes."""
    used = []
    for path in cache.iterdir():
        if path != keep and _COPY.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.lstat().st_mtime, path))
    copies = sorted((each for each in used if not each[1].name.startswith(".")), reverse=True)
    temporary = [each for each in used if each[1].name.startswith(".")]
    for since, path in [*copies[KEPT - 1 :], *temporary]:
        if time.time() - since > UNUSED_S:
            shutil.rmtree(path, ignore_errors=True)
