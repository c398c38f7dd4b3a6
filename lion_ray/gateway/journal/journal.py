"""The durable log of calls (contract: bought once): an answer is on disk before any caller gets it.

Invariants:
- `Journal.put` returns only when its record is durable; if the storage refuses, every waiter gets an
  InfrastructureError and the record is not served.
- Any number of processes and runs share a folder: each writes its own segments (`writer`), and any may compact it
  meanwhile (`compaction`).
- A record is served only if its CRC matches; of several intact records with one key the first counts (`reader`). A torn
  tail or a damaged line is counted in `dropped`, and bought again; a line of another version is `foreign`.
- A journal that a newer version has written to is not opened.
- Every paid line counts in `spending`, including duplicates of a key, and so do calls that may have been billed without
  an answer (`uncertain`).
- Memory holds the records' positions, not their texts.

`record` defines a record's format. This module knows nothing of HTTP, prices or the roles' meaning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pyarrow import fs as pafs

from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.storage import explain
from lion_ray.gateway.calls import Account, Completion
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder
from lion_ray.gateway.journal.reader import ATTEMPTS, Reader
from lion_ray.gateway.journal.record import VERSION, decode_record, encode_record, head_of
from lion_ray.gateway.journal.spending import Spent, add_to
from lion_ray.gateway.journal.uncertain import Uncertain, UncertainFile, read_uncertain
from lion_ray.gateway.journal.writer import MOST_LOOSE, SEGMENT_BYTES, Line, Writer

OBJECT_GATHER_S = 0.5
MOST_SEGMENTS = 1000
"""If a journal with more segments is opened for writing, those without a live writer are merged in the background, so
that later runs open fewer files."""
logger = logging.getLogger(__name__)
_Waiting = tuple[Line, asyncio.Future[None]]


class Shared:
    """Work that runs one round at a time; callers that wait meanwhile share the next round."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._last: asyncio.Task[None] | None = None

    @property
    def running(self) -> asyncio.Task[None] | None:
        return None if self._last is None or self._last.done() else self._last

    async def done_from_now(self) -> None:
        """Wait for a round that begins after now; raises its errors."""
        last = self._last
        if (running := self.running) is not None:
            # It may have begun before the caller's data was there.
            await asyncio.wait({running})
        if self._last is last:
            # Callers that waited together share the next round.
            self._last = asyncio.create_task(self._work())
        assert self._last is not None
        await asyncio.shield(self._last)


class Journal:
    """One process's view of a folder of segments, and its writer. Use it from one event loop."""

    def __init__(
        self,
        folder: Folder,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        most_loose: int = MOST_LOOSE,
        gather_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use `Journal.open`; this reads nothing."""
        self.folder = folder.path
        self.root = folder.path
        """The folder as passed to `open`, perhaps a URL."""
        self._gather_s = gather_s
        self._most_loose = most_loose
        self._clock = clock
        self._reader = Reader(folder)
        self._writer = Writer(folder, sync=self._sync, claim=self._reader.claim, segment_bytes=segment_bytes)
        self._lost = UncertainFile(folder)
        self._losing = Shared(self._write_lost)
        self._lost_unwritten = False  # whether its last write failed
        self._pending: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None
        self._refreshing = Shared(self._refresh)
        self._refreshed_at = clock()
        # A separate thread, so that a commit never queues behind reads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        # Another one for merging small objects, which takes longer than a commit may.
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="journal-merger")
        self._merges: list[Future[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        root: str,
        *,
        filesystem: pafs.FileSystem | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        most_loose: int = MOST_LOOSE,
        most_segments: int = MOST_SEGMENTS,
        gather_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Journal:
        """Open the journal in `root`: a local folder, or a URL that pyarrow's filesystems support.

        Creates a missing folder and reads the segments' sidecars, and the segments that have none (blocking;
        `bench/README.md` says how long that takes). With `filesystem`, `root` is a path in it. `gather_s` is how long a
        commit waits to batch more records; by default 0 on a local folder and 0.5 s elsewhere. On an object store the
        writer merges its objects whenever there are `most_loose`. If there are more than `most_segments` segments,
        those without a live writer are merged in the background. `refresh_if_older` uses `clock`.

        Raises InfrastructureError if the folder cannot be created, listed or read, ConfigError if a newer lion-ray has
        written to it.
        """
        folder = Folder.at(root, filesystem)
        try:
            folder.make()
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the journal {folder.path} cannot be opened: {explain(cause)}") from cause
        if gather_s is None:
            gather_s = 0.0 if folder.is_local else OBJECT_GATHER_S
        journal = cls(folder, segment_bytes=segment_bytes, most_loose=most_loose, gather_s=gather_s, clock=clock)
        journal.root = root
        journal._reader.update()
        if newer := journal._reader.newer:
            # Its calls would be bought again, and its spending would not count against a cap.
            raise ConfigError(
                f"the journal {folder.path}: a newer lion-ray has written to it (version {newer}; this version knows "
                f"{VERSION}); use that version, or another journal"
            )
        if len(journal._reader.segments) > most_segments:
            journal._merges.append(journal._merger.submit(journal._tidy))
        return journal

    def __len__(self) -> int:
        return len(self._reader.index)

    def __contains__(self, key: str) -> bool:
        return bool(self._reader.find(key))

    @property
    def dropped(self) -> int:
        """Lines that are not served because they are damaged or torn.

        A record that another process is writing now counts until a refresh finds it complete.
        """
        return self._reader.damaged

    @property
    def foreign(self) -> int:
        """Intact lines of another version or another tool: neither served nor counted, and kept by a compaction."""
        return self._reader.foreign

    def spending(self, run: str, *, never_billed: Collection[str] = ()) -> dict[Account, Spent]:
        """A run's certain and possible spending by account (blocking).

        The sum of the records on disk at the last refresh, the records put here since, and the dollars that endpoints
        other than `never_billed` may have billed without an answer. A call that was bought twice counts twice. A line
        that was damaged before its segment was sealed is not counted.

        Raises InfrastructureError if the possible spending cannot be read.
        """
        found = {account: spent for account, spent in self._reader.sums().items() if account.run == run}
        for one in self.uncertain(run):
            if one.endpoint not in never_billed:
                add_to(found, one.account, Spent(usd=one.usd))
        return found

    def uncertain(self, run: str) -> list[Uncertain]:
        """What may have been billed to a run without an answer (blocking), by all processes.

        Raises InfrastructureError if it cannot be read.
        """
        everyone = [*read_uncertain(self._reader.folder, but=self._lost.name), *self._lost.sums]
        return [one for one in everyone if one.account.run == run]

    async def lose(self, account: Account, endpoint: str, usd: float) -> None:
        """Durably record that a call without an answer may have been billed up to `usd`.

        Raises InfrastructureError if the storage refuses.
        """
        self._lost.add(account, endpoint, usd)
        await self._losing.done_from_now()

    async def get(self, key: str) -> Completion | None:
        """The recorded completion, as `replayed`. Returns None if there is no intact one."""
        for _ in range(ATTEMPTS):
            for place in self._reader.find(key):
                try:
                    line = await asyncio.to_thread(self._reader.read, place)
                except FileNotFoundError:
                    # Compacted by another process: refresh to find the record's new position.
                    break
                except STORAGE_ERRORS as cause:
                    raise InfrastructureError(
                        f"the journal cannot read {self._shown(place.segment)}: {explain(cause)}"
                    ) from cause
                completion = decode_record(line)
                if completion is not None and completion.key == key:
                    return completion
                # Changed since it was scanned. There may be another copy.
                self._reader.distrust(key, place)
            else:
                return None
            await self.refresh()
        raise InfrastructureError(f"the journal {self.folder} changes faster than it can be read")

    async def put(self, completion: Completion, account: Account) -> None:
        """Durably record a completion and its account.

        Raises InfrastructureError if the storage refuses. Cancelling the caller does not stop the record from being
        written.
        """
        if self._closed:
            raise InfrastructureError(f"the journal {self.folder} is closed")
        data = encode_record(completion, account)
        line = Line(head_of(completion, account), data)
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((line, durable))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all())
        await durable

    async def refresh(self) -> None:
        """Apply what other writers have added and compactions have moved.

        Raises InfrastructureError if the folder cannot be listed or read.
        """
        await self._refreshing.done_from_now()

    async def refresh_if_older(self, seconds: float) -> bool:
        """Refresh if the last refresh began at least this long ago, or join a running one; returns whether it did."""
        if (running := self._refreshing.running) is not None:
            await asyncio.shield(running)
        elif self._clock() - self._refreshed_at >= seconds:
            await self.refresh()
        else:
            return False
        return True

    async def close(self) -> None:
        """Wait until all records put so far are durable or refused, then close the writer. May be called again.

        Raises InfrastructureError if what may have been billed could not be recorded, and still cannot.
        """
        self._closed = True
        while (losing := self._losing.running) is not None:
            await asyncio.wait({losing})
        while self._committer is not None and not self._committer.done():
            await asyncio.wait({self._committer})
        if self._closing is None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._end))
        await asyncio.shield(self._closing)
        if self._lost_unwritten:
            await self._write_lost()

    async def _refresh(self) -> None:
        began = self._clock()
        await asyncio.to_thread(self._reader.update)
        self._refreshed_at = began

    # --- writing: in the loop

    async def _write_lost(self) -> None:
        data = self._lost.encoded()
        try:
            self._lost_unwritten = True
            await asyncio.to_thread(self._lost.write, data)
            self._lost_unwritten = False
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"what may have been billed cannot be recorded in {self._lost.path}: {explain(cause)}"
            ) from cause

    async def _commit_all(self) -> None:
        """Commit until no record waits. Records that arrive during one commit share the next."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
        try:
            while self._pending:
                if self._gather_s:
                    await asyncio.sleep(self._gather_s)
                batch, self._pending = self._pending, []
                try:
                    await loop.run_in_executor(self._thread, self._commit, [line for line, _ in batch])
                except STORAGE_ERRORS as cause:
                    self._refuse(batch, f"the journal cannot write to {self._writer.path}: {explain(cause)}")
                    continue
                for _, durable in batch:
                    if not durable.done():
                        durable.set_result(None)
        finally:
            # Waiters are left only if this task is cancelled; none may wait for ever.
            left, self._pending = [*batch, *self._pending], []
            self._refuse(left, f"the journal {self.folder} was stopped while it wrote")

    @staticmethod
    def _refuse(batch: Iterable[_Waiting], message: str) -> None:
        for _, durable in batch:
            if not durable.done():
                durable.set_exception(InfrastructureError(message))

    # --- writing: in the writer's thread

    def _commit(self, batch: list[Line]) -> None:
        places = self._writer.commit(batch)
        self._reader.add_own(zip((line.head for line in batch), places, strict=True))
        if self._writer.loose >= self._most_loose:
            self._merges.append(self._merger.submit(self._writer.merge, self._writer.take_loose()))

    def _sync(self, fd: int) -> None:
        """Flush a segment to the disk."""
        os.fsync(fd)

    def _tidy(self) -> None:
        """Merge segments without a live writer. An error, or a compaction in another process, is only logged."""
        try:
            compact(self._reader.folder)
        except InfrastructureError as error:
            logger.warning("%s; it keeps many segments until `lion-ray journal compact`", error)

    def _end(self) -> None:
        self._thread.submit(self._writer.close).result()
        self._thread.shutdown()
        self._merger.shutdown()
        for merge in self._merges:
            merge.result()

    def _shown(self, segment: str) -> str:
        return f"{self.folder}/{segment}"
