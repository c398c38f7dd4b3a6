"""What a power cut would leave of a folder: the bytes that were flushed, under the names that were.

Invariants:
- A file is left with what it held when it was last flushed; one that never was is left empty.
- A name is left only if its folder was flushed after it was given. See fsync(2) and rename(2).
- A deletion may have reached the disk or not: `left` gives either.
- Flushing really takes place; it is only noted.

Linux alone: a file that is open for writing is read through /proc.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest


class Disk:
    """The disk under a folder that is empty now; a context, as it holds files open."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {root.stat().st_ino: {}}
        self._held: list[int] = []
        self._fsync: Callable[[int], None] = os.fsync
        self.flushes = 0
        monkeypatch.setattr(os, "fsync", self._flush)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _flush(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.flushes += 1
        # Opened anew, as a copy of the descriptor would share its lock; held, so that its number is not given again.
        self._held.append(again := os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
        status = os.fstat(again)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(again) as entries:
                self._names[status.st_ino] = {one.name: (one.inode(), one.is_dir()) for one in entries}
        else:
            self._bytes[status.st_ino] = os.pread(again, status.st_size, 0)

    def left(self, out: Path, *, deleted: bool = False) -> Path:
        """Write what would be left into `out`, which must not exist; returns it.

        `deleted`: what was deleted is gone; else it is there as long as its folder was not flushed afterwards.
        """
        self._write(self._root, self._root.stat().st_ino, out, deleted)
        return out

    def _write(self, there: Path, folder: int, out: Path, deleted: bool) -> None:
        out.mkdir()
        for name, (inode, is_folder) in self._names.get(folder, {}).items():
            if deleted and not (there / name).exists():
                continue
            if is_folder:
                self._write(there / name, inode, out / name, deleted)
            else:
                (out / name).write_bytes(self._bytes.get(inode, b""))
