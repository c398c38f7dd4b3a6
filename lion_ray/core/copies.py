"""Copies of folders of a run in an object store, on this machine: for programs that read files, such as vLLM.

Invariants:
- A copy is named by what is in it: a run that was deleted and made again under its name never loads old weights.
- All processes of a machine share a copy. One of them fetches it, under a lock, aside, and renames it once it is whole.
- At most `KEPT` copies stay, beside those used in the last `UNUSED_S` seconds.
- The folder of copies belongs to this user alone: nobody else can put weights into it.
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
"""A student and its successor, and one of another run."""
UNUSED_S = 3600.0
_COPY = re.compile(r"\.?[0-9a-f]{32}(\.[0-9a-f]{8})?")


def copies_folder() -> Path:
    """Where this user's copies are on this machine.

    Raises:
        InfrastructureError: the folder is somebody else's, or a link.
    """
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / f"lion-ray-checkpoints-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise InfrastructureError(f"{folder}: not a folder that this user alone may write to; remove it, or set TMPDIR")
    return folder


def copied(content: Mapping[str, object], sizes: Mapping[str, int], cache: Path, fetch: Callable[[Path], None]) -> Path:
    """The copy of a folder.

    Args:
        content: what tells this folder from all others: its files and their sums, as JSON.
        sizes: of each file, relative to the folder, in bytes.
        fetch: writes the files into an empty folder.

    Raises:
        InfrastructureError: what came is not whole.
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
                        raise InfrastructureError(f"{name}: it did not arrive whole; the same command fetches it again")
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        os.utime(target)
    _remove_unused(cache, but=target)
    return target


def _remove_unused(cache: Path, *, but: Path) -> None:
    """Remove the copies that were not used lately, beyond `KEPT`, and what killed processes left."""
    used = []
    for path in cache.iterdir():
        if path != but and _COPY.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.lstat().st_mtime, path))
    copies = sorted((each for each in used if not each[1].name.startswith(".")), reverse=True)
    asides = [each for each in used if each[1].name.startswith(".")]
    for since, path in [*copies[KEPT - 1 :], *asides]:
        if time.time() - since > UNUSED_S:
            shutil.rmtree(path, ignore_errors=True)
