"""Making what was written survive a power cut, and locks that die with their process.

On POSIX a file and the folder that names it are flushed apart.
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
    """Make a folder and its parents so that they survive a power cut, whoever made them."""
    missing = {path for path in (folder, *folder.parents) if not path.exists()}
    folder.mkdir(parents=True, exist_ok=True)
    # Those that were there too: another process may have made them just now, or have died before it flushed them.
    for path in (folder, *folder.parents):
        try:
            sync_path(path.parent)
        except PermissionError:
            if path in missing:
                raise
            return  # a folder of the machine's, which is older than any run


@contextmanager
def whole_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block has ended well, and is gone when it has not.

    An empty folder may be there already; another only with `replace`, and it stays until the new one is whole.

    Raises:
        DataError: `out` is there already.
        InfrastructureError: the disk refused.
    """
    out = out.expanduser().absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and (replace or not any(out.iterdir())))):
        raise DataError(f"{out} is there already; name a folder that is not")
    mark = uuid.uuid4().hex[:8]
    aside, old = out.with_name(f".{out.name}.{mark}"), out.with_name(f".{out.name}.{mark}.old")
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.rglob("*"), aside):
            sync_path(path)
        if replace and out.exists():
            out.rename(old)
        aside.rename(out)  # in the place of an empty folder too: see rename(2)
        sync_path(out.parent)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise InfrastructureError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file without waiting: False where another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True
