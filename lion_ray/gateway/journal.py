"""The durable log of calls (contract 1): what was paid for is on disk before anyone sees it.

Invariants:
- `Journal.put` returns only once its record is durable; where the storage refuses, every waiter gets an
  InfrastructureError and the record is not served.
- A writer touches only segments of its own, named by a writer id that nobody else has: any number of processes and
  runs share a folder without locks.
- A segment is never continued after a failed write, a restart or another writer: what follows a torn record would be
  lost with it.
- A record is served only if its CRC fits. A torn tail or a damaged line is counted in `dropped`, and bought again.
- Of several records with one key the first stands, by segment name and then by position: every reader that opens the
  same segments serves the same answer.
- Memory holds where the records are, not their texts.

On a local folder a segment is a file that grows, and records that wait together share one fsync. On any other
filesystem a commit is one new object, as object stores cannot append.

What a record looks like is `record`'s to say. This module knows nothing of HTTP, prices or roles' meaning.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs as pafs

from lion_ray.durable import sync_path
from lion_ray.errors import InfrastructureError
from lion_ray.gateway.calls import Completion
from lion_ray.gateway.record import decode_record, encode_record, key_of_record

SUFFIX = ".calls"
SEGMENT_BYTES = 64 * 2**20
OBJECT_GATHER_S = 0.5
_STORAGE_ERRORS = (OSError, pa.ArrowException)


class Place(NamedTuple):
    """Where a record is: its segment's path, and offset and length of its line in bytes, without the newline."""

    path: str
    offset: int
    length: int


@dataclass(slots=True)
class _Segment:
    """How far a segment has been read."""

    scanned: int = 0  # bytes up to the end of the last complete line
    size: int = -1  # when it was last read
    corrupt: int = 0

    @property
    def torn(self) -> bool:
        return self.size > self.scanned


class Journal:
    """One process's view of a folder of segments, and its writer. Use it from one event loop."""

    def __init__(
        self, filesystem: pafs.FileSystem, folder: str, *, segment_bytes: int = SEGMENT_BYTES, gather_s: float = 0.0
    ) -> None:
        """Use `Journal.open`; this reads nothing."""
        self.folder = folder
        self._fs = filesystem
        self._local = isinstance(filesystem, pafs.LocalFileSystem)
        self._segment_bytes = segment_bytes
        self._gather_s = gather_s
        self._index: dict[str, Place] = {}
        self._segments: dict[str, _Segment] = {}
        self._unreadable = 0
        # Sorts by time, so that the oldest writer's record of a key stands.
        self._writer_id = f"{time.time_ns():020d}-{secrets.token_hex(6)}"
        self._own: set[str] = set()
        self._serial = 0
        self._fd: int | None = None
        self._path = ""
        self._written = 0
        self._pending: list[tuple[str, bytes, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        # A thread of its own: a commit never queues behind reads.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._closed = False

    @classmethod
    def open(
        cls,
        root: str,
        *,
        filesystem: pafs.FileSystem | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        gather_s: float | None = None,
    ) -> Journal:
        """The journal in `root`: a local folder, or a URL that pyarrow's filesystems understand.

        Makes the folder where it is missing and reads every segment once (blocking; about a second of CPU time
        for 100,000 records of 2 kB). With `filesystem`, `root` is a path in it. `gather_s` is how long a commit waits
        for company; by default 0 on a local folder and 0.5 s elsewhere.

        Raises InfrastructureError where the folder cannot be made, listed or read.
        """
        try:
            if filesystem is None and "://" in root:
                filesystem, root = pafs.FileSystem.from_uri(root)
            elif filesystem is None:
                filesystem, root = pafs.LocalFileSystem(), str(Path(root).expanduser().absolute())
            local = isinstance(filesystem, pafs.LocalFileSystem)
            if local:
                _make_durable(Path(root))
            else:
                filesystem.create_dir(root, recursive=True)
        except (*_STORAGE_ERRORS, ValueError) as cause:
            raise InfrastructureError(f"the journal {root} cannot be opened: {cause}") from cause
        if local and not os.access(root, os.W_OK):
            # Before the first call is paid for, not after.
            raise InfrastructureError(f"the journal {root} cannot be opened: the folder is not writable")
        if gather_s is None:
            gather_s = 0.0 if local else OBJECT_GATHER_S
        journal = cls(filesystem, root, segment_bytes=segment_bytes, gather_s=gather_s)
        journal._read_segments()
        return journal

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    @property
    def dropped(self) -> int:
        """Lines that were not served because they are damaged or torn.

        A record that another process is writing right now counts until a refresh finds it whole.
        """
        return self._unreadable + sum(segment.corrupt + segment.torn for segment in self._segments.values())

    async def get(self, key: str) -> Completion | None:
        """The recorded completion, `replayed`; None where there is none that can be trusted."""
        place = self._index.get(key)
        if place is None:
            return None
        try:
            line = await asyncio.to_thread(self._read, place)
        except _STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the journal cannot read {place.path}: {cause}") from cause
        completion = decode_record(line)
        if completion is None or completion.key != key:
            # Changed under our feet since it was scanned.
            self._unreadable += 1
            self._index.pop(key, None)
            return None
        return completion

    async def put(self, completion: Completion, role: str) -> None:
        """Record a completion; returns once it is durable.

        Raises InfrastructureError where the storage refuses. A caller that is cancelled meanwhile does not stop the
        record from being written.
        """
        if self._closed:
            raise InfrastructureError(f"the journal {self.folder} is closed")
        line = encode_record(completion, role)
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((completion.key, line, durable))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all())
        await durable

    async def refresh(self) -> None:
        """Take in what other writers have added since."""
        await asyncio.to_thread(self._read_segments)

    async def close(self) -> None:
        """Wait until everything put so far is durable or refused, then end the writer. May be called again."""
        self._closed = True
        while self._committer is not None and not self._committer.done():
            await asyncio.wait({self._committer})
        await asyncio.to_thread(self._writer.shutdown)
        self._leave_segment()

    # --- writing: in the loop

    async def _commit_all(self) -> None:
        """Commit until nothing waits. What arrives during one commit shares the next."""
        batch: list[tuple[str, bytes, asyncio.Future[None]]] = []
        try:
            while self._pending:
                if self._gather_s:
                    await asyncio.sleep(self._gather_s)
                batch, self._pending = self._pending, []
                lines = [line for _, line, _ in batch]
                try:
                    places = await asyncio.get_running_loop().run_in_executor(self._writer, self._commit, lines)
                except _STORAGE_ERRORS as cause:
                    self._refuse(batch, f"the journal cannot write to {self._path or self.folder}: {cause}")
                    continue
                for (key, _, durable), place in zip(batch, places, strict=True):
                    self._index.setdefault(key, place)
                    if not durable.done():
                        durable.set_result(None)
        finally:
            # Only when this task itself is stopped is anyone left; nobody may wait for ever.
            left, self._pending = [*batch, *self._pending], []
            self._refuse(left, f"the journal {self.folder} was stopped while it wrote")

    @staticmethod
    def _refuse(batch: Iterable[tuple[str, bytes, asyncio.Future[None]]], message: str) -> None:
        for _, _, durable in batch:
            if not durable.done():
                durable.set_exception(InfrastructureError(message))

    # --- writing: in the writer's thread

    def _commit(self, lines: list[bytes]) -> list[Place]:
        data = b"".join(lines)
        start = self._append(data) if self._local else self._write_object(data)
        places = []
        for line in lines:
            places.append(Place(self._path, start, len(line) - 1))
            start += len(line)
        return places

    def _append(self, data: bytes) -> int:
        """Append to the open segment and make it durable; returns the offset at which `data` starts."""
        if self._fd is not None and self._written >= self._segment_bytes:
            self._leave_segment()
        try:
            if self._fd is None:
                self._path = self._next_name()
                flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY
                self._fd = os.open(self._path, flags, 0o644)
                self._sync_folder(self.folder)
                self._written = 0
            start = self._written
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self._sync(self._fd)
        except OSError:
            # What the file holds now is unknown, and a second fsync may report success for lost pages.
            self._leave_segment()
            raise
        self._written = start + len(data)
        return start

    def _write_object(self, data: bytes) -> int:
        self._path = self._next_name()
        with self._fs.open_output_stream(self._path) as stream:
            stream.write(data)
        return 0

    def _next_name(self) -> str:
        name = f"{self._writer_id}-{self._serial:06d}{SUFFIX}"
        self._serial += 1
        self._own.add(name)
        return f"{self.folder.rstrip('/')}/{name}"

    def _leave_segment(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _sync(self, fd: int) -> None:
        os.fsync(fd)

    def _sync_folder(self, folder: str) -> None:
        sync_path(Path(folder))

    # --- reading: in any thread

    def _read(self, place: Place) -> bytes:
        with self._fs.open_input_file(place.path) as file:
            return bytes(file.read_at(place.length, place.offset))

    def _read_segments(self) -> None:
        try:
            listed = self._fs.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True))
            known = self._segments
            changed = sorted(
                info.path
                for info in listed
                if info.is_file
                and info.path.endswith(SUFFIX)
                and info.base_name not in self._own
                and not (info.path in known and known[info.path].size == info.size)
            )
            # Object stores hold many small segments and answer slowly, so several are asked at once.
            with ThreadPoolExecutor(1 if self._local else 16) as readers:
                for path, found in zip(changed, readers.map(self._scan, changed), strict=True):
                    segment, entries = found
                    for key, offset, length in entries:
                        self._index.setdefault(key, Place(path, offset, length))
                    self._segments[path] = segment
        except _STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the journal {self.folder} cannot be read: {cause}") from cause

    def _scan(self, path: str) -> tuple[_Segment, list[tuple[str, int, int]]]:
        """Read a segment on from where it was left: what is known of it now, and (key, offset, length) of records."""
        before = self._segments.get(path, _Segment())
        with self._fs.open_input_file(path) as file:
            data = file.read_at(max(0, file.size() - before.scanned), before.scanned)
        entries = []
        corrupt = before.corrupt
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            key = key_of_record(data[start:end])
            if key is None:
                corrupt += 1
            else:
                entries.append((key, before.scanned + start, end - start))
            start = end + 1
        return _Segment(before.scanned + start, before.scanned + len(data), corrupt), entries


def _make_durable(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_path(path.parent)
