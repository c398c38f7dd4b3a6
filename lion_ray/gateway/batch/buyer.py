"""Handles one batch at an endpoint: buys it once, polls it until it ends, fetches its output, and deletes its files.

Invariants:
- The record is durable before the endpoint is asked to create the batch. If the answer is lost, the endpoint's list is
  searched before the request is repeated.
- Rate limits are waited for; errors are retried for `outage_timeout_s`. An outage does not lose a running batch.

Time is read and slept through `clock`, `now` and `sleep`. This module knows one batch at a time, and nothing of its
waiting callers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.batch.api import OVER, BatchAPI, Gone
from lion_ray.gateway.batch.lines import Output
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.batch.work import UnderWay
from lion_ray.gateway.wire import RateLimited, Transient, TransportError

if TYPE_CHECKING:
    from openai.types import Batch

INTENT_GRACE_S = 120.0
"""A batch that is not listed this long after its upload or creation was requested was never created, in seconds."""
FIRST_BACKOFF_S = 0.5
_UNKNOWN_LOOKS = 5
"""How many polls must report a batch as unknown before it counts as gone."""
_T = TypeVar("_T")


class Buyer:
    """The steps of a batch at one endpoint's Batch API."""

    def __init__(
        self,
        config: EndpointConfig,
        api: BatchAPI,
        records: BatchRecords,
        say: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._api = api
        self._records = records
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._rng = rng
        self.ran_at = float("-inf")
        """When the endpoint last reported that one of our batches had begun."""

    async def buy(self, batch: UnderWay) -> None:
        """Upload and create the batch, with the lines of all waiting calls.

        Raises TransportError or InfrastructureError; `batch.maybe_created` then tells whether it may exist.
        """
        record = batch.record
        lines = b"".join(call.line for call in batch.waiting.values())

        async def upload() -> str:
            record.tried_at = self._now()
            await self.write(record)
            return await self._api.upload(f"{record.nonce}.jsonl", lines)

        record.input_file_id = await self._patiently(upload)
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
                # The answer was lost, but the batch may have been created.
                batch.remote = await self._patiently(lambda: self._api.find(record.nonce, record.made_at))
        record.batch_id = batch.remote.id
        await self.write(record)

    async def found(self, batch: UnderWay) -> bool:
        """Whether a batch exists that is recorded without its id. Waits up to `INTENT_GRACE_S`: the request may have
        been in flight when its process died, or that process may still run, and be uploading the batch's file."""
        while True:
            record = await asyncio.to_thread(self._records.reread, batch.record.nonce)
            if record is None:
                return False
            batch.record = record
            if record.batch_id is not None:
                return True
            if record.input_file_id is not None:
                remote = await self._patiently(lambda: self._api.find(batch.record.nonce, batch.record.made_at))
                if remote is not None:
                    record.batch_id = remote.id
                    await self.write(record)
                    return True
            if (left := record.tried_at + INTENT_GRACE_S - self._now()) <= 0:
                return False
            await self._sleep(min(left, self._config.batch.poll_s))

    async def until_over(self, batch: UnderWay) -> Batch:
        """Poll the batch until it ends. Raises Gone if the endpoint has no such batch."""
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
                # Some services report a batch only some time after they created it.
                unknown += 1
                if unknown >= _UNKNOWN_LOOKS:
                    raise
        return batch.remote

    async def cancel(self, batch: UnderWay) -> None:
        """Ask once to cancel the batch; if the endpoint refuses, the batch is waited for as usual."""
        batch_id = batch.record.batch_id
        assert batch_id is not None
        try:
            batch.remote = await self._api.cancel(batch_id)
            self._say(f"batch {batch_id} is cancelled; its finished calls are billed")
        except TransportError as error:
            self._say(f"batch {batch_id} is not cancelled: {error.detail}")

    async def fetch(self, batch: UnderWay, over: Batch) -> Output:
        """The output lines of a batch that has ended. Raises Gone if its files are deleted."""

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
        """Delete the batch's files at the endpoint, trying each once, because no answer depends on it."""
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
                # Another process that shares the journal, or a person, has deleted it.
                continue
            except TransportError as error:
                self._say(f"a file stays at the endpoint: {error.detail}")

    async def forget(self, record: BatchRecord) -> None:
        """Close a record, so that its calls may be bought elsewhere."""
        try:
            await asyncio.to_thread(self._records.remove, record.nonce)
        except InfrastructureError as error:
            # The next start will check it again; no answer is lost.
            self._say(error.message)

    async def write(self, record: BatchRecord) -> None:
        """Make the record durable. Raises InfrastructureError if the storage refuses."""
        await asyncio.to_thread(self._records.write, record)

    async def _create(self, batch: UnderWay, file_id: str) -> None:
        batch.maybe_created = True
        try:
            batch.remote = await self._api.create(file_id, batch.record.nonce, self._config.batch.completion_window)
        except Transient:
            raise
        except TransportError:
            # The endpoint refused, so no batch was created.
            batch.maybe_created = False
            raise

    async def _patiently(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Retry a request: without limit at rate limits, and for `outage_timeout_s` after errors.

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
        return longest * self._rng.uniform(0.5, 1.0)
