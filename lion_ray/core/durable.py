"""Durable writes, which survive a power cut, and locks that are released when their process ends.

On POSIX a file and the folder that names it are flushed separately.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lion_ray.core.errors import DataError, InfrastructureError


def sync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk. See fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush them all to the disk, existing ones too."""
    missing = {path for path in (folder, *folder.parents) if not path.exists()}
    folder.mkdir(parents=True, exist_ok=True)
    # Existing parents too: another process may have just made them, or have died before it flushed them.
    for path in (folder, *folder.parents):
        try:
            sync_path(path.parent)
        except PermissionError:
            if path in missing:
                raise
            return  # a system folder, older than any run


@contextmanager
def whole_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside `out` that is renamed to `out` if the block succeeds, and removed otherwise.

    `out` may exist already if it is empty, or with `replace`; then it stays until the new folder is complete.

    Raises:
        DataError: `out` exists already.
        InfrastructureError: the disk refused.
    """
    out = out.expanduser().absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and (replace or not any(out.iterdir())))):
        raise DataError(f"{out} exists already; name a new folder")
    mark = uuid.uuid4().hex[:8]
    aside, old = out.with_name(f".{out.name}.{mark}"), out.with_name(f".{out.name}.{mark}.old")
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.rglob("*"), aside):
            sync_path(path)
        if replace and out.exists():
            out.rename(old)
        aside.rename(out)  # also replaces an empty folder: see rename(2)
        sync_path(out.parent)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise InfrastructureError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def lock(descriptor: int) -> bool | None:
    """Lock an open file without waiting. Returns False if another process holds it, None if there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True
