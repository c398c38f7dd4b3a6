"""One batch's way through an endpoint: bought once, watched until it is over, fetched, its files deleted.

Invariants:
- The record is durable before the endpoint is asked to create the batch. After an answer that was lost, the endpoint's
  list is read before it is asked again.
- Rate limits are waited out; errors are, for `outage_timeout_s`. A batch under way is not lost with an outage.

Time is read and slept through `clock`, `now` and `sleep`. This module knows one batch at a time, and nothing of who
waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from openai.types import Batch

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.batch.api import OVER, BatchAPI, Gone
from lion_ray.gateway.batch.lines import Output
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.batch.work import UnderWay
from lion_ray.gateway.wire import RateLimited, Transient, TransportError

INTENT_GRACE_S = 120.0
"""A batch that was asked for and is in no list after so long was never created."""
FIRST_BACKOFF_S = 0.5
_UNKNOWN_LOOKS = 5
"""Looks at a batch that the endpoint does not know until that is believed."""
_T = TypeVar("_T")


class Buyer:
    """Does with one endpoint's Batch API what has to be done for a batch."""

    def __init__(
        self,
        config: EndpointConfig,
        api: BatchAPI,
        records: BatchRecords,
        say: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._api = api
        self._records = records
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self.ran_at = float("-inf")
        """When the endpoint last showed a batch of ours that it had begun."""

    async def buy(self, batch: UnderWay) -> None:
        """Upload and create it, with the lines of all who wait for it.

        Raises TransportError or InfrastructureError; `batch.maybe_created` then says whether the endpoint may have it.
        """
        record = batch.record
        lines = b"".join(asked.line for asked in batch.waiting.values())
        await self.write(record)
        record.input_file_id = await self._patiently(lambda: self._api.upload(f"{record.nonce}.jsonl", lines))
        failures, since = 0, self._clock()
        while batch.remote is None:
            record.tried_at = self._now()
            await self.write(record)
            try:
                await self._create(batch, record.input_file_id)
            except RateLimited as limit:
                failures += 1
                since = self._clock()
                await self._sleep(limit.retry_after_s or self._backoff(failures))
            except Transient as error:
                failures += 1
                if self._clock() - since > self._config.outage_timeout_s:
                    raise
                await self._sleep(max(error.retry_after_s or 0.0, self._backoff(failures)))
                # The answer was lost; perhaps the batch was not.
                batch.remote = await self._patiently(lambda: self._api.find(record.nonce, record.made_at))
        record.batch_id = batch.remote.id
        await self.write(record)

    async def found(self, batch: UnderWay) -> bool:
        """Whether a batch exists that was asked for without its id being noted. It is given a moment: the request may
        have been on its way when its process died, or that process may live and be at it."""
        while True:
            record = await asyncio.to_thread(self._records.reread, batch.record.nonce)
            if record is None or (record.batch_id is None and record.input_file_id is None):
                return False
            batch.record = record
            if record.batch_id is not None:
                return True
            remote = await self._patiently(lambda: self._api.find(batch.record.nonce, batch.record.made_at))
            if remote is not None:
                record.batch_id = remote.id
                await self.write(record)
                return True
            if (left := record.tried_at + INTENT_GRACE_S - self._now()) <= 0:
                return False
            await self._sleep(min(left, self._config.batch.poll_s))

    async def until_over(self, batch: UnderWay) -> Batch:
        """Look at it until it is over. Raises Gone where the endpoint has no such batch."""
        batch_id, unknown = batch.record.batch_id, 0
        assert batch_id is not None
        while batch.remote is None or batch.remote.status not in OVER:
            if batch.remote is not None or unknown:
                await self._sleep(self._config.batch.poll_s)
            try:
                batch.remote = await self._patiently(lambda: self._api.retrieve(batch_id))
                if batch.remote.status not in ("validating", "failed"):
                    self.ran_at = self._now()
            except Gone:
                # Some services know a batch only a moment after they made it.
                unknown += 1
                if unknown >= _UNKNOWN_LOOKS:
                    raise
        return batch.remote

    async def cancel(self, batch: UnderWay) -> None:
        """Ask once that it end now; where the endpoint will not, it is waited for as any."""
        batch_id = batch.record.batch_id
        assert batch_id is not None
        try:
            batch.remote = await self._api.cancel(batch_id)
            self._say(f"batch {batch_id} is cancelled; what it has done is billed")
        except TransportError as error:
            self._say(f"batch {batch_id} is not cancelled: {error.detail}")

    async def fetch(self, batch: UnderWay, over: Batch) -> Output:
        """The lines of a batch that is over. Raises Gone where its files are deleted."""

        async def download() -> Output:
            output = Output()
            try:
                for file_id in (over.output_file_id, over.error_file_id):
                    if file_id:
                        await self._api.download(file_id, output.write)
                        # A file may end without a newline.
                        output.write(b"\n")
                done = over.request_counts.completed if over.request_counts else None
                await asyncio.to_thread(output.index, batch.record.keys, done)
            except BaseException:
                output.close()
                raise
            return output

        return await self._patiently(download)

    async def delete_files(self, batch: UnderWay) -> None:
        """Delete its files at the endpoint: each tried once, as no answer depends on it."""
        try:
            if batch.remote is None and batch.record.batch_id is not None:
                batch.remote = await self._api.retrieve(batch.record.batch_id)
        except TransportError as error:
            self._say(f"the files of batch {batch.record.batch_id} stay at the endpoint: {error.detail}")
        files = [batch.record.input_file_id]
        if batch.remote is not None:
            files = [batch.remote.input_file_id, batch.remote.output_file_id, batch.remote.error_file_id]
        for file_id in files:
            try:
                if file_id:
                    await self._api.delete(file_id)
            except Gone:
                # Another process that shares the journal, or a person, was first.
                continue
            except TransportError as error:
                self._say(f"a file stays at the endpoint: {error.detail}")

    async def forget(self, record: BatchRecord) -> None:
        """Close a record, so that its calls may be bought elsewhere."""
        try:
            await asyncio.to_thread(self._records.remove, record.nonce)
        except InfrastructureError as error:
            # It costs a look at the next start, not an answer.
            self._say(error.message)

    async def write(self, record: BatchRecord) -> None:
        """Raises InfrastructureError where the storage refuses."""
        await asyncio.to_thread(self._records.write, record)

    async def _create(self, batch: UnderWay, file_id: str) -> None:
        batch.maybe_created = True
        try:
            batch.remote = await self._api.create(file_id, batch.record.nonce, self._config.batch.completion_window)
        except Transient:
            raise
        except TransportError:
            # The endpoint said no: it made none.
            batch.maybe_created = False
            raise

    async def _patiently(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until there is an answer: through rate limits, and through errors for `outage_timeout_s`.

        Raises Transient after that; Gone, Refused and Rejected at once.
        """
        failures, since = 0, None
        while True:
            try:
                return await request()
            except RateLimited as limit:
                failures, since = failures + 1, None
                pause = limit.retry_after_s or self._backoff(failures)
            except Transient as error:
                failures, since = failures + 1, self._clock() if since is None else since
                if self._clock() - since > self._config.outage_timeout_s:
                    raise
                pause = max(error.retry_after_s or 0.0, self._backoff(failures))
            await self._sleep(pause)

    def _backoff(self, failures: int) -> float:
        longest = min(self._config.max_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 60))
        return longest * random.uniform(0.5, 1.0)
