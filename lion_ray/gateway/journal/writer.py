"""Writes a journal's segments.

Invariants:
- A writer changes only its own segments, named by a unique writer id: any number of processes and runs share a folder,
  and none waits for another.
- A commit returns once its lines are durable, in a file that still has its name.
- A segment is never continued after a failed write, a restart or another writer: lines after a torn record would be
  lost with it.
- On a local folder the open segment is locked, so that a compaction leaves it alone. A complete segment gets its
  sidecar before the lock is released.

On a local folder a segment is a file that grows. On any other filesystem a commit is one new object, because object
stores cannot append, and a writer merges its own objects from time to time.

This module knows nothing of waiting callers.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lion_ray.core.durable import lock
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.journal.compaction import merge_own
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder
from lion_ray.gateway.journal.record import Head
from lion_ray.gateway.journal.segments import SIDECAR, SUFFIX, Place, Segment, encode_sidecar, newest

SEGMENT_BYTES = 64 * 2**20
MOST_LOOSE = 256
"""The number of objects at which a writer merges them."""
_LOCK_ATTEMPTS = 10

logger = logging.getLogger(__name__)


class Line(NamedTuple):
    """A record to write: its head, and its line with the newline."""

    head: Head
    data: bytes


class Writer:
    """Writes its own segments into a folder. Use it from one thread, except `merge`."""

    def __init__(
        self, folder: Folder, *, sync: Callable[[int], None], claim: Callable[[str], None], segment_bytes: int
    ) -> None:
        """`sync` flushes a descriptor's file to the disk; `claim` is called with a segment's name before it exists."""
        self._folder = folder
        self._sync = sync
        self._claim = claim
        self._segment_bytes = segment_bytes
        self._id = ""
        self._serial = 0
        self._fd: int | None = None
        self._segment = Segment("")
        self._name = ""
        self._loose: list[str] = []

    @property
    def path(self) -> str:
        """The segment that is, or was last, written."""
        return self._folder.file(self._name)

    @property
    def loose(self) -> int:
        """Objects of this writer that could be merged."""
        return len(self._loose)

    def take_loose(self) -> list[str]:
        """Remove and return their names, for `merge`."""
        names, self._loose = self._loose, []
        return names

    def commit(self, batch: Sequence[Line]) -> list[Place]:
        """Durably write lines. Raises the storage's errors; then none of them counts as written."""
        data = b"".join(line.data for line in batch)
        if not self._folder.is_local:
            return self._places(self._write_object(data), 0, batch)
        for _ in range(2):
            start = self._append(data)
            assert self._fd is not None
            if os.fstat(self._fd).st_nlink:
                places = self._places(self._segment.name, start, batch)
                for line, place in zip(batch, places, strict=True):
                    self._segment.add(line.head, place.offset, place.length)
                self._segment.scanned = self._segment.size = start + len(data)
                return places
            # Another process has deleted the segment, so the appended lines would be lost.
            self._leave()
        raise FileNotFoundError(f"segments are removed from {self._folder.path} while they are written")

    def merge(self, names: Sequence[str]) -> None:
        """Merge objects of this writer into one, from any thread. An error is only logged.

        No record depends on it: objects that were not merged stay.
        """
        try:
            merge_own(self._folder, names)
        except (*STORAGE_ERRORS, InfrastructureError) as error:
            logger.warning("the journal %s keeps many small objects: %s", self._folder.path, error)

    def close(self) -> None:
        """Seal the open segment, or merge the objects. May be called again."""
        self._seal()
        if len(self._loose) > 1:
            self.merge(self.take_loose())

    @staticmethod
    def _places(name: str, start: int, batch: Sequence[Line]) -> list[Place]:
        places = []
        for line in batch:
            places.append(Place(name, start, len(line.data) - 1))
            start += len(line.data)
        return places

    def _append(self, data: bytes) -> int:
        """Append to the open segment and make it durable; returns the offset at which `data` starts."""
        if self._segment.size >= self._segment_bytes:
            self._seal()
        try:
            if self._fd is None:
                self._fd = self._create()
                self._folder.sync()
            start = self._segment.size
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self._sync(self._fd)
        except OSError:
            # The file's content is unknown now, and a second fsync may report success for lost pages.
            self._leave()
            raise
        return start

    def _create(self) -> int:
        """A new segment's descriptor, locked if the filesystem supports locks."""
        for _ in range(_LOCK_ATTEMPTS):
            self._segment = Segment(self._next_name())
            path = self._folder.file(self._segment.name)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o644)
            try:
                # Without lock support, a compaction leaves everything alone.
                if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
            # A compaction found it before it was locked, and assumed that it has no live writer.
            os.close(descriptor)
        raise FileNotFoundError(f"segments are removed from {self._folder.path} as soon as they are created")

    def _write_object(self, data: bytes) -> str:
        name = self._next_name()
        self._folder.write(name, data)
        self._loose.append(name)
        return name

    def _next_name(self) -> str:
        if not self._id:
            # Above all existing numbers, so that a key's first record counts whatever the clocks say: see `newest`.
            number = max(time.time_ns(), newest(self._folder.names()) + 1)
            self._id = f"{number:020d}-{secrets.token_hex(6)}"
        self._name = f"{self._id}-{self._serial:08d}{SUFFIX}"
        self._serial += 1
        self._claim(self._name)
        return self._name

    def _seal(self) -> None:
        if self._fd is None:
            return
        try:
            self._folder.write(self._segment.name + SIDECAR, encode_sidecar(self._segment))
        except STORAGE_ERRORS as error:
            # A missing sidecar only costs the next reader time.
            logger.warning("the journal's segment %s has no sidecar: %s", self._segment.name, error)
        self._leave()

    def _leave(self) -> None:
        self._segment = Segment("")
        if self._fd is not None:
            descriptor, self._fd = self._fd, None
            os.close(descriptor)
