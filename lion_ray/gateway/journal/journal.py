"""The durable log of calls (contract: bought once): what was paid for is on disk before anyone sees it.

Invariants:
- `Journal.put` returns only once its record is durable; where the storage refuses, every waiter gets an
  InfrastructureError and the record is not served.
- Any number of processes and runs share a folder: each writes segments of its own (`writer`), and any may compact it
  meanwhile (`compaction`).
- A record is served only if its CRC fits, and of several intact ones with one key the first stands (`reader`). A torn
  tail or a damaged line is counted in `dropped`, and bought again; a line that another version wrote is `foreign`.
- A journal by which a newer version has bought calls is not opened.
- Every line that was paid for counts in `spending`, also a second one with the same key; and so does what may have been
  billed without an answer (`uncertain`).
- Memory holds where the records are, not their texts.

What a record looks like is `record`'s to say. This module knows nothing of HTTP, prices or roles' meaning.
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
from lion_ray.core.storage import told
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
"""Of more segments a journal that was opened for writing merges those that nobody writes, beside its work: every run
that opens it afterwards has so many files less to look at."""
logger = logging.getLogger(__name__)
_Waiting = tuple[Line, asyncio.Future[None]]


class Shared:
    """Work of which one round is under way at a time, and whose rounds are shared by those who ask meanwhile."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._last: asyncio.Task[None] | None = None

    @property
    def running(self) -> asyncio.Task[None] | None:
        return None if self._last is None or self._last.done() else self._last

    async def done_from_now(self) -> None:
        """Wait for a round that begins after now; raises what it raises."""
        last = self._last
        if (running := self.running) is not None:
            # It may have begun before what the caller is after was there.
            await asyncio.wait({running})
        if self._last is last:
            # Those who waited together share the next one.
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
        """The folder as `open` was given it, perhaps a URL."""
        self._gather_s = gather_s
        self._most_loose = most_loose
        self._clock = clock
        self._reader = Reader(folder)
        self._writer = Writer(folder, sync=self._sync, claim=self._reader.claim, segment_bytes=segment_bytes)
        self._lost = UncertainFile(folder)
        self._losing = Shared(self._write_lost)
        self._pending: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None
        self._refreshing = Shared(self._refresh)
        self._refreshed_at = clock()
        # A thread of its own: a commit never queues behind reads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        # And one for merging small objects, which takes longer than a commit may.
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
        """The journal in `root`: a local folder, or a URL that pyarrow's filesystems understand.

        Makes the folder where it is missing and reads the segments' sidecars, and the segments that have none
        (blocking; `bench/README.md` says how long that takes). With `filesystem`, `root` is a path in it. `gather_s` is
        how long a commit waits for company; by default 0 on a local folder and 0.5 s elsewhere. On an object store the
        writer merges its objects whenever there are `most_loose`; of more than `most_segments` segments those that
        nobody writes are merged in the background. `clock` is what `refresh_if_older` goes by.

        Raises InfrastructureError where the folder cannot be made, listed or read, ConfigError where a newer lion-ray
        has bought calls by it.
        """
        folder = Folder.at(root, filesystem)
        try:
            folder.make()
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the journal {folder.path} cannot be opened: {told(cause)}") from cause
        if gather_s is None:
            gather_s = 0.0 if folder.is_local else OBJECT_GATHER_S
        journal = cls(folder, segment_bytes=segment_bytes, most_loose=most_loose, gather_s=gather_s, clock=clock)
        journal.root = root
        journal._reader.update()
        if newer := journal._reader.newer:
            # What it bought would be bought again, and its money would not count against a cap.
            raise ConfigError(
                f"the journal {folder.path}: a newer lion-ray has bought calls by it (version {newer}, this knows "
                f"{VERSION}); use that one, or another journal"
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
        """Lines that were not served because they are damaged or torn.

        A record that another process is writing right now counts until a refresh finds it whole.
        """
        return self._reader.damaged

    @property
    def foreign(self) -> int:
        """Intact lines of another version or another tool: neither served nor counted, and kept by a compaction."""
        return self._reader.foreign

    def spending(self, run: str, *, never_billed: Collection[str] = ()) -> dict[Account, Spent]:
        """What a run has paid for or may have (blocking), by account.

        That is what was on disk at the last refresh, all that was put here since, and in dollars what may have been
        billed without an answer by endpoints other than `never_billed`. A call that was bought twice counts twice. A
        line that was damaged before its segment was sealed is not known.

        Raises InfrastructureError where what may have been billed cannot be read.
        """
        found = {account: spent for account, spent in self._reader.sums().items() if account.run == run}
        for one in self.uncertain(run):
            if one.endpoint not in never_billed:
                add_to(found, one.account, Spent(usd=one.usd))
        return found

    def uncertain(self, run: str) -> list[Uncertain]:
        """What may have been billed to a run without an answer (blocking): all processes' on disk now, and this one's.

        Raises InfrastructureError where it cannot be read.
        """
        everyone = [*read_uncertain(self._reader.folder, but=self._lost.name), *self._lost.sums]
        return [one for one in everyone if one.account.run == run]

    async def lose(self, account: Account, endpoint: str, usd: float) -> None:
        """A call may have been billed at most `usd`, and its answer never comes; returns once that is durable.

        Raises InfrastructureError where the storage refuses.
        """
        self._lost.add(account, endpoint, usd)
        await self._losing.done_from_now()

    async def get(self, key: str) -> Completion | None:
        """The recorded completion, `replayed`; None where there is none that can be trusted."""
        for _ in range(ATTEMPTS):
            for place in self._reader.find(key):
                try:
                    line = await asyncio.to_thread(self._reader.read, place)
                except FileNotFoundError:
                    # Compacted by another process. What stands now is wherever that put it.
                    break
                except STORAGE_ERRORS as cause:
                    raise InfrastructureError(
                        f"the journal cannot read {self._shown(place.segment)}: {told(cause)}"
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
        """Record a completion and who pays for it; returns once it is durable.

        Raises InfrastructureError where the storage refuses. A caller that is cancelled meanwhile does not stop the
        record from being written.
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
        """Take in what other writers have added and compactions have moved since.

        Raises InfrastructureError where the folder cannot be listed or read.
        """
        await self._refreshing.done_from_now()

    async def refresh_if_older(self, seconds: float) -> bool:
        """Refresh where the last one began at least so many seconds ago; whether it did. One under way is shared."""
        if (running := self._refreshing.running) is not None:
            await asyncio.shield(running)
        elif self._clock() - self._refreshed_at >= seconds:
            await self.refresh()
        else:
            return False
        return True

    async def close(self) -> None:
        """Wait until everything put so far is durable or refused, then end the writer. May be called again."""
        self._closed = True
        while (losing := self._losing.running) is not None:
            await asyncio.wait({losing})
        while self._committer is not None and not self._committer.done():
            await asyncio.wait({self._committer})
        if self._closing is None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._end))
        await asyncio.shield(self._closing)

    async def _refresh(self) -> None:
        began = self._clock()
        await asyncio.to_thread(self._reader.update)
        self._refreshed_at = began

    # --- writing: in the loop

    async def _write_lost(self) -> None:
        data = self._lost.encoded()
        try:
            await asyncio.to_thread(self._lost.write, data)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"what may have been billed cannot be kept in {self._lost.path}: {told(cause)}"
            ) from cause

    async def _commit_all(self) -> None:
        """Commit until nothing waits. What arrives during one commit shares the next."""
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
                    self._refuse(batch, f"the journal cannot write to {self._writer.path}: {told(cause)}")
                    continue
                for _, durable in batch:
                    if not durable.done():
                        durable.set_result(None)
        finally:
            # Only when this task itself is stopped is anyone left; nobody may wait for ever.
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
        """Merge what nobody writes. What the storage refuses, or another process is at, is only told."""
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
