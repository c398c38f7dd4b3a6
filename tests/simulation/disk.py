"""A simulated disk that keeps only flushed data, on top of real files.

Invariants:
- Files are in a real folder (in memory if the machine has /dev/shm), so that the code under test uses its own calls.
  The disk records what fsync(2) made durable: a file's bytes, a folder's names.
- After a power cut each unflushed name is independently in its old or its new state; of a file's unflushed bytes any
  prefix remains, perhaps followed by zeros or garbage up to its length. This is the worst case that POSIX allows, and
  more than common file systems do.
- After a power cut the disk is another folder, which objects of ended processes cannot reach.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

REAL_OPEN, REAL_CLOSE = os.open, os.close


class _Entry(NamedTuple):
    inode: int
    is_folder: bool


class Disk:
    """One machine's disk below `base`, which must be an empty folder."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._any = f"{base}/disk-"
        self._number = 0
        self._mount()
        self._bytes: dict[int, bytes] = {}
        """The durable bytes of each file, by inode."""
        self._names: dict[str, dict[str, _Entry]] = {"": {}}
        """The durable names in each folder, by its path on the disk."""
        self._pins: dict[int, int] = {}
        self.root.mkdir()

    def owns(self, path: str) -> bool:
        """Whether a path is on one of this machine's disks, before a power cut or after it."""
        return path.startswith(self._any)

    def _mount(self) -> None:
        self.root = self._base / f"disk-{self._number}"
        self._below = f"{self.root}/"

    def flush(self, descriptor: int) -> None:
        """fsync(2) of a file or a folder of this disk."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - as often as anything here
            if f"{path}/".startswith(self._below):
                self._names[path[len(self._below) :]] = _entries(path)
            return
        if found.st_ino not in self._pins:
            self._pin(found.st_ino, f"/proc/self/fd/{descriptor}")
        self._bytes[found.st_ino] = os.pread(self._pins[found.st_ino], found.st_size, 0)

    def _pin(self, inode: int, path: str) -> None:
        """Keep a file open, so that its inode number is not reused."""
        self._pins[inode] = REAL_OPEN(path, os.O_RDONLY)

    def cut_power(self, rng: random.Random) -> None:
        """Lose unflushed data; `rng` decides how much."""
        before, names, known = self.root, self._names, self._bytes
        self._number += 1
        self._mount()
        self._names, self._bytes = {}, {}
        pins, self._pins = self._pins, {}
        self._restore("", before, names, known, rng)
        for pin in pins.values():
            REAL_CLOSE(pin)
        shutil.rmtree(before)

    def _restore(
        self,
        folder: str,
        before: Path,
        names: dict[str, dict[str, _Entry]],
        known: dict[int, bytes],
        rng: random.Random,
    ) -> None:
        here = before / folder if folder else before
        durable, current = names.get(folder, {}), _entries(str(here)) if here.is_dir() else {}
        target = self.root / folder if folder else self.root
        target.mkdir()
        for name in sorted(durable.keys() | current.keys()):
            flushed, now = durable.get(name), current.get(name)
            kept = now if now == flushed or rng.random() < 0.5 else flushed
            if kept is None:
                continue
            if kept.is_folder:
                self._restore(f"{folder}/{name}" if folder else name, before, names, known, rng)
                continue
            content = known.get(kept.inode, b"")
            if kept == now:
                content = _torn(content, (here / name).read_bytes(), rng)
            (target / name).write_bytes(content)
            inode = (target / name).stat().st_ino
            self._pin(inode, str(target / name))
            self._bytes[inode] = content
        self._names[folder] = _entries(str(target))

    def close(self) -> None:
        for pin in self._pins.values():
            REAL_CLOSE(pin)
        self._pins = {}
        shutil.rmtree(self.root)


def _entries(path: str) -> dict[str, _Entry]:
    with os.scandir(path) as found:
        return {one.name: _Entry(one.inode(), one.is_dir(follow_symlinks=False)) for one in found}


def _torn(flushed: bytes, written: bytes, rng: random.Random) -> bytes:
    """The content after a power cut of a file that held `written`, of which `flushed` was durable."""
    if written == flushed:
        return written
    if not written.startswith(flushed):
        return rng.choice((flushed, written))
    tail = written[len(flushed) :]
    kept = tail[: rng.randint(0, len(tail))]
    match rng.randrange(4):
        case 0:
            return flushed
        case 1:
            return written
        case 2:
            return flushed + kept
    # The length reached the disk before the data did.
    rest = len(tail) - len(kept)
    return flushed + kept + (bytes(rest) if rng.random() < 0.5 else rng.randbytes(rest))
