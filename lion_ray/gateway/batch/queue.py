"""Sends calls through an endpoint's Batch API: gathers them into batches, buys each once, and returns answers per line.

Invariants:
- A batch's record is durable before the batch can exist at the endpoint, and stays until every output line is settled
  (journaled by the caller) or known to have failed. So a batch is never bought twice after a crash: the next process
  adopts it, and its calls wait for it.
- Concurrent requests for the same call share one line.
- No call is lost with its batch: unfinished calls go into a new batch, or (`leftovers: live`) their callers get NotDone
  and send them. A caller whose call may have been billed without an answer also gets NotDone, and settles the call once
  that is durably recorded: until then the batch's record stays.
- A batch without waiting calls in this process is neither polled nor fetched. A batch whose waiting calls all prefer to
  be sent live is cancelled: its finished answers are fetched, and the rest is sent live.

Several processes may share a journal: each knows the batches that were open at its start. They may poll the same batch,
but buy it only once: a process that finds it closed by another looks into the journal before it buys again. Time is
read and slept through `clock`, `now` and `sleep`, which tests replace.

Source: OpenAI's Batch API. This module tracks which calls wait for which batch; `buyer` handles a batch, and the caller
handles the journal. Use it from one event loop.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.batch.api import BatchAPI, Gone
from lion_ray.gateway.batch.buyer import Buyer
from lion_ray.gateway.batch.lines import InJournal, NotDone, Output, read_line, request_line
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.batch.verdict import Verdict, verdict_of
from lion_ray.gateway.batch.work import Gathering, PendingCall, UnderWay
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.wire import Rejected, Transient, TransportError

if TYPE_CHECKING:
    from openai.types import Batch

NOT_DONE = "not done by batches"
ROUNDS = 5
"""Batches that a call is tried in before it fails as Transient."""
REFUSALS = 5
"""How often an endpoint without other batches of ours may have no room for a single call before that call fails."""
MAX_WAIT_FOR_ROOM_S = 1800.0
_AT_ONCE = 200
"""Lines processed before yielding to the event loop."""


class BatchQueue:
    """Collects calls and buys them through an endpoint's Batch API."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        api: BatchAPI,
        journal_root: str,
        *,
        journaled: Callable[[str], bool] | None = None,
        refresh: Callable[[], Awaitable[object]] | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """For endpoint `name`, through `api`, which its owner closes.

        `journaled` tells whether a key is in the journal: a batch of an earlier process whose keys all are is closed at
        the first call, and otherwise only its other keys have to be settled. `refresh` reads what other processes have
        journaled. Reads and writes nothing yet.
        """
        self.name = name
        self._config = config
        self._say = lambda line: say(f"endpoint {name}: {line}") if say is not None else None
        self._api = api
        self._records = BatchRecords(journal_root)
        self._now = now or time.time
        self._buyer = Buyer(config, api, self._records, self._say, clock, sleep, self._now, rng or random.Random())
        self._journaled = journaled or (lambda key: False)
        self._refresh = refresh
        self._sleep = sleep
        self._gathering = Gathering(config.batch, self._ship, clock, sleep)
        self._loading: asyncio.Task[None] | None = None
        self._calls: dict[str, PendingCall] = {}
        self._unsettled: set[str] = set()
        self._batches: dict[str, UnderWay] = {}
        self._where: dict[str, str] = {}
        self._adopted: list[UnderWay] = []
        """Batches of earlier processes, oldest first: two of them may hold the same call."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False

    async def holds(self, key: str) -> bool:
        """Whether an open batch may answer this call. Raises InfrastructureError like `chat`."""
        await self._ready()
        return self._holder(key) is not None

    def shipped(self, key: str) -> bool:
        """Whether a call of this process is in a batch, so that its answer may be billed."""
        call = self._calls.get(key)
        return call is not None and not self._gathering.has(call)

    async def chat(
        self, key: str, body: dict[str, Any], *, live: bool = False, wanted: Callable[[], bool] = lambda: True
    ) -> Reply:
        """Send a call in a batch, or join an earlier process's batch that holds it; returns its answer.

        Args:
            live: only join the batch that `holds` the call, for an answer that it has or still computes for others.
            wanted: whether to try another batch if one ends without answering the call.

        Raises a TransportError: Rejected (this request, or its whole batch, can never succeed), Refused (the endpoint
        refuses all), Transient (failed in `ROUNDS` batches, or the endpoint is down for `outage_timeout_s`), NotDone
        (with `leftovers: live` or `live`: the batch ended without answering it; otherwise only for a call that may have
        been billed, which must be `settled` and then repeated). Raises InfrastructureError if the journal's folder
        refuses or the queue is closed, InJournal if another process was faster.
        """
        await self._ready()
        call = self._calls.get(key)
        if call is None:
            future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            call = self._calls[key] = PendingCall(key, request_line(key, body), future, live=live)
            self._gather([call])
        call.waiters += 1
        call.wanted = wanted
        self._unsettled.discard(key)  # of an earlier failure that nobody asked about
        try:
            return await asyncio.shield(call.future)
        finally:
            call.waiters -= 1
            if not call.waiters and self._gathering.drop(call):
                # Nothing was sent, so nothing is paid for.
                self._calls.pop(key, None)
                call.future.cancel()

    def unsettled(self, key: str) -> bool:
        """Whether `chat` failed for a call whose batch may exist, and be billed: its record is open, and the next start
        looks for it. Asked once after each failure."""
        found = key in self._unsettled
        self._unsettled.discard(key)
        return found

    async def settled(self, key: str, left: NotDone | None = None) -> None:
        """The caller has durably journaled this key, or what the batch that `left` it may have cost. A batch's last key
        closes it in the background: its files at the endpoint are deleted (if the endpoint allows), then its record."""
        self._calls.pop(key, None)
        for batch in list(self._batches.values()):
            if key in batch.open and (left is None or left.nonce == batch.record.nonce):
                batch.open.discard(key)
                self._close_if_done(batch)

    def stats(self) -> dict[str, Any]:
        """Statistics of this process: running `batches`; calls `waiting` to be sent, and `under_way` in batches;
        `oldest_s`, the age of the oldest batch in seconds; and the endpoint's counts of their lines: `completed`,
        `failed` and `total`."""
        running = self._running()
        counts = [batch.remote.request_counts for batch in running if batch.remote and batch.remote.request_counts]
        under_way = sum(len(batch.waiting) for batch in running)
        unanswered = sum(not call.future.done() for call in self._calls.values())
        return {
            "batches": len(running),
            "waiting": unanswered - under_way,
            "under_way": under_way,
            "oldest_s": max((self._now() - batch.record.made_at for batch in running), default=0.0),
            "completed": sum(count.completed for count in counts),
            "failed": sum(count.failed for count in counts),
            "total": sum(count.total for count in counts),
        }

    async def close(self, *, for_good: bool = False) -> None:
        """Stop polling; waiting callers get an InfrastructureError. A running batch continues at the endpoint, and the
        next start adopts it. `for_good`: there is no next start, so batches that calls here have joined are cancelled.
        """
        self._closed = True
        self._gathering.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._closings, return_exceptions=True)
        if for_good:
            # Only batches that this process has used: others may belong to another run that shares the journal.
            ours = [one for one in self._batches.values() if one.task is not None and one.output is None and one.open]
            await asyncio.gather(*(self._buyer.cancel(one) for one in ours if one.record.batch_id is not None))
        for call in list(self._calls.values()):
            self._end(call, self._closed_error())
        for batch in self._batches.values():
            batch.release()

    # --- before a batch

    async def _ready(self) -> None:
        """Wait until the open batches of earlier processes are loaded. All callers share one load; a failed one is
        retried."""
        if self._closed:
            raise self._closed_error()
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = self._spawn(self._load())
        await asyncio.wait({self._loading})
        if self._closed:
            raise self._closed_error()
        self._loading.result()

    async def _load(self) -> None:
        for record in await asyncio.to_thread(self._records.load, self._api.address):
            unsettled = {key for key in record.keys if not self._journaled(key)}
            batch = self._batches[record.nonce] = UnderWay(record, unsettled)
            # An unfinished call of one batch is also in the next batch's record: the newest one holds it.
            self._where.update((key, record.nonce) for key in record.keys)
            if unsettled:
                self._adopted.append(batch)
                name = record.batch_id or "perhaps created"
                self._say(f"a batch of an earlier start is open ({name}): {len(unsettled)} calls wait for it")
            else:
                self._start_closing(batch)

    def _ship(self, members: dict[str, PendingCall]) -> None:
        """Form a batch of the gathered calls."""
        now = self._now()
        # Sorts by time, for people who look at the folder.
        nonce = f"{int(now * 1000):015d}-{secrets.token_hex(8)}"
        record = BatchRecord(nonce, self._api.address, self.name, list(members), made_at=now, tried_at=now)
        batch = self._batches[nonce] = UnderWay(record, set(members), waiting=members, fresh=True)
        self._where.update(dict.fromkeys(members, nonce))
        self._tend(batch)

    # --- a batch's life

    def _attend(self, batch: UnderWay, call: PendingCall) -> None:
        batch.waiting[call.key] = call
        if not batch.running:
            self._tend(batch)

    def _tend(self, batch: UnderWay) -> None:
        batch.task = self._spawn(self._see_through(batch))
        batch.task.add_done_callback(lambda task: self._tended(batch, task))

    def _tended(self, batch: UnderWay, task: asyncio.Task[None]) -> None:
        """End all waiting calls if a batch's task failed, so that no caller waits for ever."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            may_exist = batch.maybe_created or batch.record.batch_id is not None
            for call in batch.take():
                if may_exist:
                    self._unsettled.add(call.key)
                self._end(call, error)

    async def _see_through(self, batch: UnderWay) -> None:
        """Buy the batch if needed, wait for its end, and distribute its answers. Can be run again to resume."""
        if batch.fresh:
            await self._buy(batch)
        elif batch.record.batch_id is None and not await self._buyer.found(batch):
            await self._look_into_the_journal(batch)
            await self._close_batch(batch)
            self._gather(batch.take())
            return
        if batch.output is None and batch.waiting and all(call.live for call in batch.waiting.values()):
            self._say(
                f"batch {batch.record.batch_id} is running, but its calls are to be sent live now: its finished "
                "answers are fetched, and the rest is sent live"
            )
            await self._buyer.cancel(batch)
        try:
            over = await self._buyer.until_over(batch)
            if over.status == "failed":
                await self._failed(batch, over)
                return
            if batch.output is None:
                batch.output = await self._buyer.fetch(batch, over)
                # The other lines are known to have failed.
                batch.open &= batch.output.answered | batch.output.doubtful
            self._gathering.widen()
        except Gone as gone:
            await self._look_into_the_journal(batch)
            self._say(f"{gone.detail}; its {len(batch.waiting)} calls are retried")
            # It existed, so its calls may have been answered.
            batch.output = Output()
            batch.output.doubtful = batch.open = batch.open & batch.waiting.keys()
        await self._hand_out(batch, batch.output)

    async def _look_into_the_journal(self, batch: UnderWay) -> None:
        """It is gone: another process may have journaled its answers, and closed it."""
        if self._refresh is not None:
            await self._refresh()
        for key in [key for key in batch.waiting if self._journaled(key)]:
            batch.open.discard(key)
            self._end(batch.waiting.pop(key), InJournal())

    async def _buy(self, batch: UnderWay) -> None:
        try:
            await self._buyer.buy(batch)
        except (TransportError, InfrastructureError) as error:
            # If it may exist its record stays, and a repeated call looks for it.
            batch.fresh = False
            if not batch.maybe_created:
                await self._close_batch(batch)
            if isinstance(error, Rejected):
                raise Rejected(f"batch {error.reason}", error.detail) from None
            raise
        batch.fresh = False
        self._say(f"batch {batch.record.batch_id} with {len(batch.record.keys)} calls is running")

    async def _hand_out(self, batch: UnderWay, output: Output) -> None:
        undone, why, done = 0, "", 0
        while batch.waiting:
            key, call = next(iter(batch.waiting.items()))
            line = output.line(key)
            del batch.waiting[key]
            try:
                reply = read_line(self._api.redact(line) if line is not None else None)
            except NotDone as error:
                error.billed |= key in output.doubtful
                error.nonce = batch.record.nonce
                undone, why = undone + 1, error.detail
                if not error.billed:
                    batch.open.discard(key)
                self._again([call], error)
            except TransportError as error:
                batch.open.discard(key)
                self._end(call, error)
            else:
                if not call.future.done():
                    call.future.set_result(reply)
            done += 1
            if done % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if undone and batch.remote is not None:
            self._say(
                f"batch {batch.record.batch_id} is {batch.remote.status} and left {undone} of its"
                f" {len(batch.record.keys)} calls unfinished; they are retried ({why})"
            )
        self._close_if_done(batch)

    # --- unfinished calls of a batch

    def _again(self, left: Iterable[PendingCall], error: NotDone) -> None:
        for call in left:
            call.rounds += 1
            wanted = call.waiters and call.wanted()
            if call.live or error.billed or self._config.batch.leftovers == "live" or not wanted:
                self._end(call, error)
            elif call.rounds >= ROUNDS:
                self._end(call, Transient(NOT_DONE, f"{error.detail} ({call.rounds} batches)"))
            else:
                self._gather([call])

    async def _failed(self, batch: UnderWay, over: Batch) -> None:
        """Handle a batch that the endpoint did not begin: none of it was bought."""
        verdict = verdict_of(over, batch.record.keys)
        self._say(f"{verdict.detail} ({len(batch.record.keys)} calls)")
        await self._close_batch(batch)
        left = []
        for call in batch.take():
            blame = verdict.refused or verdict.rejected.get(call.key)
            if blame is not None:
                self._end(call, blame)
            else:
                left.append(call)
        self._next_for(left, verdict, batch.record.made_at)

    def _next_for(self, left: list[PendingCall], verdict: Verdict, since: float) -> None:
        if verdict.no_room:
            self._spawn(self._wait_for_room(left, verdict.detail, since))
        elif verdict.rejected:
            # They were not processed, so it is not a round of theirs. It terminates, as each time some others end.
            self._gather(left)
        else:
            self._again(left, NotDone(verdict.detail))

    def _gather(self, left: Iterable[PendingCall]) -> None:
        """Let calls wait for the batch that holds them, or add them to the next one unless they prefer to be live."""
        for call in left:
            if (batch := self._holder(call.key)) is not None:
                self._attend(batch, call)
            elif call.live:
                self._end(call, NotDone("no open batch holds it"))
            else:
                self._gathering.add(call)

    async def _wait_for_room(self, members: list[PendingCall], detail: str, since: float) -> None:
        """Wait for running batches, or send smaller ones, because the endpoint's queue is limited."""
        for call in members:
            call.turned_away += 1
        times = max((call.turned_away for call in members), default=0)
        pause = min(MAX_WAIT_FOR_ROOM_S, self._config.batch.poll_s * 2.0 ** min(times, 20))
        self._say(f"it has no room for {len(members)} calls now; retry in {pause:.0f} s")
        await self._sleep(pause)
        # Checked after the pause, because batches sent together with this one had only begun.
        if self._buyer.ran_at < since:
            # No other batch of ours was running: this one may be too large.
            self._gathering.narrow(len(members))
            for call in members:
                call.refusals += 1
            if len(members) == 1 and members[0].refusals >= REFUSALS:
                self._end(members[0], Transient(NOT_DONE, f"{detail} ({members[0].refusals} times)"))
                return
        self._gather(members)

    # --- the end of a batch

    def _close_if_done(self, batch: UnderWay) -> None:
        # Only a fetched batch's results are known; `open` may hold keys that have not been requested yet.
        if batch.output is not None and not batch.open and not batch.waiting and not batch.closing:
            self._start_closing(batch)

    def _start_closing(self, batch: UnderWay) -> None:
        batch.closing = True
        task = asyncio.create_task(self._close_batch(batch))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def _close_batch(self, batch: UnderWay) -> None:
        """Delete its files, then its record; its calls may then be bought elsewhere."""
        batch.closing = True
        await self._buyer.delete_files(batch)
        await self._buyer.forget(batch.record)
        self._batches.pop(batch.record.nonce, None)
        batch.release()
        self._adopted = [one for one in self._adopted if one is not batch]
        for key in batch.record.keys:
            if self._where.get(key) == batch.record.nonce:
                del self._where[key]

    # --- helpers

    def _holder(self, key: str) -> UnderWay | None:
        """The newest batch that may answer this call."""
        newest = self._batches.get(self._where.get(key, ""))
        if newest is not None and newest.has(key):
            return newest
        return next((one for one in reversed(self._adopted) if key in one.open and one.has(key)), None)

    def _running(self) -> list[UnderWay]:
        return [batch for batch in self._batches.values() if batch.running]

    def _end(self, call: PendingCall, error: BaseException) -> None:
        if self._calls.get(call.key) is call:
            del self._calls[call.key]
        if not call.future.done():
            call.future.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _closed_error(self) -> InfrastructureError:
        return InfrastructureError(f"the batches of endpoint {self.name} were closed before this call was answered")
