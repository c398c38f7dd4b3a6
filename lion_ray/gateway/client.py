"""The client of one endpoint: looks every call up in the journal, buys it at most once, journals it, then returns it.

Invariants:
- A completion is durably in the journal before a caller gets it. A call whose key is in the journal sends nothing.
- Concurrent calls with the same key share one request.
- Cancelling a caller does not cancel a request in flight: its answer is paid for and gets journaled. A call that is not
  sent yet is dropped when its last caller is cancelled.

`sender` buys calls. This module knows nothing of HTTP (`transport`, `wire`), of files (`journal`) or of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import orjson

from lion_ray.config import EndpointConfig
from lion_ray.core.addresses import without_secrets
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.gateway.address import Address, read_address
from lion_ray.gateway.batch import BatchQueue, InJournal
from lion_ray.gateway.batch.api import BatchAPI
from lion_ray.gateway.batch.state import BatchRecords
from lion_ray.gateway.calls import Account, Call, Completion, Failure, Outcome
from lion_ray.gateway.http import AiohttpTransport
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.keys import read_key
from lion_ray.gateway.ledger import Excess, Ledger
from lion_ray.gateway.request import as_sent
from lion_ray.gateway.sender import Attempt, Sender
from lion_ray.gateway.spread import Spread
from lion_ray.gateway.stats import Event, Latencies, Stats
from lion_ray.gateway.transport import Transport
from lion_ray.gateway.wire import shorten

JOURNAL_REFRESH_S = 5.0
"""The journal's index is refreshed before a purchase if it is older than this, because other runs may write too."""


@dataclass(slots=True)
class _Flight:
    """A call in flight, and the number of its callers."""

    task: asyncio.Task[Outcome] | None = None
    waiters: int = 0
    attempt: Attempt = field(default_factory=Attempt)


class Client:
    """Sends calls to one endpoint. Use it from one event loop; closing the journal is the owner's task."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        journal: Journal,
        *,
        run: str = "",
        transport: Transport | None = None,
        batch_api: Callable[[], BatchAPI] | None = None,
        base_url: str | None = None,
        served: bool = False,
        weights: str = "",
        keys: str | None = None,
        ledger: Ledger | None = None,
        on_event: Callable[[Event], None] | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """A client of endpoint `name` in the configuration; `run` is the run's name in the accounts.

        `base_url` overrides the configured one, for a server that the run started; with `served` that server has
        answered and is kept running, so that its silence is an outage; `weights` is the hash of the weights that it
        serves, and part of every call's key. Without a `transport`, reads the API key from the file `keys` or
        the environment (`keys.read_key`); with one, only `batch_api` gives a Batch API. Raises EndpointError if the key
        is missing or the address is invalid.
        """
        self.name = name
        self.config = config
        self.address = base_url or config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._run = run
        self._weights = weights
        self._batches: BatchQueue | None = None
        self._batch_api: BatchAPI | None = None
        self._make_batches: Callable[[], BatchQueue] | None = None
        self._records = BatchRecords(journal.root)
        self._any_before: asyncio.Task[bool] | None = None
        if transport is None:
            if config.serve is not None and base_url is None:
                raise ValueError(f"endpoint {name} is served by the run: base_url is required")
            address = self._read_address(self.address)
            more = [self._read_address(one) for one in config.more_urls] if base_url in (None, config.base_url) else []
            key = self._read_key(keys)
            if key is not None and any(one.credentials is not None for one in (address, *more)):
                raise EndpointError(
                    f"endpoint {name} ({without_secrets(self.address)}): base_url holds a user or a password and "
                    f"{config.api_key_env} holds a key, but only one can be sent; remove the user and password from "
                    f"base_url, or set endpoints.{name}.api_key_env to null"
                )
            transport = _transport(config, address, key)
            if more:
                transport = Spread([transport, *(_transport(config, one, key) for one in more)])

            batch_api = partial(_batch_api, config, address, key)

        if batch_api is not None:

            def make_batches() -> BatchQueue:
                if self._batches is None:
                    self._batch_api = batch_api()
                    self._batches = BatchQueue(
                        name,
                        config,
                        self._batch_api,
                        journal.root,
                        journaled=journal.__contains__,
                        refresh=journal.refresh,
                        say=say,
                        clock=clock,
                        sleep=sleep,
                        rng=rng,
                    )
                return self._batches

            self._make_batches = make_batches

        self._transport = transport
        self._journal = journal
        self._on_event = on_event or _ignore
        self._flights: dict[str, _Flight] = {}
        self._closed = False
        self._say = lambda line: say(f"endpoint {name}: {line}") if say is not None else None
        self._told_reasons: set[str] = set()
        self._resting: asyncio.Task[None] | None = None
        self._stats = Stats()
        self._latencies = Latencies()
        self._ledger = ledger or Ledger(config.prices)
        self._sender = Sender(
            name,
            config,
            transport,
            address=without_secrets(self.address),
            ledger=self._ledger,
            batches=self._make_batches,
            bought_before=self._bought_before,
            stats=self._stats,
            on_event=self._on_event,
            say=self._say,
            clock=clock,
            sleep=partial(self._pause, sleep),
            rng=rng,
            answered=served,
        )

    @property
    def stats(self) -> Stats:
        """A snapshot of the statistics."""
        limiter = self._sender.limiter
        return replace(
            self._stats,
            waiting=len(self._flights) - self._stats.in_flight,
            paused_s=limiter.paused_s,
            down_s=self._sender.breaker.down_s,
            sent_per_minute=limiter.sent_per_minute,
            allowed_per_minute=limiter.allowed_per_minute,
            spent_usd=self._ledger.spent,
            uncertain_usd=self._ledger.uncertain,
            in_batches=0 if self._batches is None else _in_batches(self._batches),
            latency_p50_s=self._latencies.quantile(0.5),
            latency_p95_s=self._latencies.quantile(0.95),
        )

    async def complete(self, call: Call, *, patient: bool = True) -> Outcome:
        """The call's completion, from the journal or bought; or a Failure if this call cannot be answered.

        A completion that was bought for a concurrent caller is returned as `replayed`, like one from the journal: it
        was paid for once. With `patient` False, returns a Failure with the reason `sender.DOWN` if the endpoint is
        down, instead of waiting for it.

        Raises EndpointError if the endpoint refuses every call or is down for too long, BudgetError if the budget is
        spent, InfrastructureError if the journal cannot be written or the client was closed.
        """
        if self._closed:
            raise self._closed_error()
        call = as_sent(call, self.config)
        try:
            key = call.key(self.config.model, self._weights)
        except orjson.JSONEncodeError as cause:
            # For example a lone surrogate in a user's file: it has no canonical form, so no key.
            return self._fail(Failure("", "not valid text", shorten(str(cause))), call)
        flight = self._flights.get(key)
        shared = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.attempt = Attempt(wanted=partial(self._wanted, flight), patient=patient)
            flight.task = asyncio.create_task(self._fly(key, call, flight))
            flight.task.add_done_callback(self._landed)
        outcome = await self._wait_for(key, flight)
        if shared and isinstance(outcome, Completion):
            if not outcome.replayed:
                outcome = replace(outcome, replayed=True)
            self._stats.replayed += 1
        return outcome

    def pause(self, seconds: float) -> None:
        """Send nothing for this long, because another proxy of this endpoint was rate-limited."""
        self._sender.limiter.pause(seconds)

    @property
    def excess(self) -> Excess:
        """How far this endpoint's usage has exceeded what calls allow."""
        return self._ledger.excess

    def expect(self, excess: Excess) -> None:
        """Raise the reservations of later calls by the excess that another client of this endpoint has seen."""
        self._ledger.excess.join(excess)

    async def close(self, *, for_good: bool = False) -> None:
        """Wait for requests in flight and journal their answers, cancel the other calls, and close connections.

        Callers of cancelled calls get an InfrastructureError. A batch continues at the endpoint, and the next client of
        this journal resumes it. `for_good`: there is no next client, so batches with waiting calls are cancelled.
        """
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            if flight.task is not None and not flight.attempt.committed:
                flight.task.cancel()
        await asyncio.gather(*(flight.task for flight in flights if flight.task is not None), return_exceptions=True)
        if self._batches is not None:
            await self._batches.close(for_good=for_good)
        if self._batch_api is not None:
            await self._batch_api.close()
        if self._resting is not None:
            await asyncio.gather(self._resting, return_exceptions=True)
        await self._ledger.close()
        await self._transport.close()

    # --- a call's steps

    async def _pause(self, sleep: Callable[[float], Awaitable[object]], seconds: float) -> None:
        self._stats.pausing += 1
        try:
            await sleep(seconds)
        finally:
            self._stats.pausing -= 1

    def _wanted(self, flight: _Flight) -> bool:
        return flight.waiters > 0 and not self._closed

    async def _wait_for(self, key: str, flight: _Flight) -> Outcome:
        assert flight.task is not None
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._closed and flight.task.cancelled() and me is not None and not me.cancelling():
                raise self._closed_error() from None
            raise
        finally:
            flight.waiters -= 1
            attempt = flight.attempt
            if not (flight.waiters or attempt.committed or attempt.shipped() or flight.task.done()):
                flight.task.cancel()
                # At once, so that a repetition of the call does not join the cancelled flight.
                self._forget(key, flight)

    async def _fly(self, key: str, call: Call, flight: _Flight) -> Outcome:
        try:
            while True:
                known = await self._known(key)
                if known is not None:
                    self._stats.replayed += 1
                    self._on_event(Event("replayed", key, call.role))
                    return self._meant(known)
                with contextlib.suppress(InJournal):
                    return await self._buy(key, call, flight)
        finally:
            self._forget(key, flight)

    async def _known(self, key: str) -> Completion | None:
        known = await self._journal.get(key)
        if known is None and await self._journal.refresh_if_older(JOURNAL_REFRESH_S):
            known = await self._journal.get(key)  # another run that shares the journal may have bought it
        return known

    async def _look(self, key: str) -> None:
        if await self._known(key) is not None:
            raise InJournal

    async def _buy(self, key: str, call: Call, flight: _Flight) -> Outcome:
        account = Account(self._run, call.role, call.stage)
        flight.attempt.look = partial(self._look, key)
        flight.attempt.lose = partial(self._journal.lose, account, self.name)
        bought = await self._sender.buy(key, call, flight.attempt, partial(self._journal.put, account=account))
        if isinstance(bought, Failure):
            return self._fail(bought, call)
        if self._batches is not None:
            await self._batches.settled(key)
        self._count(bought, call)
        return self._meant(bought)

    def _meant(self, answer: Completion) -> Completion:
        """The answer with its finish reason mapped by the configured `finish_reasons`."""
        reason = answer.finish_reason
        if reason in self.config.finish_reasons:
            return replace(answer, finish_reason=self.config.finish_reasons[reason])
        if ending(reason) is Ending.UNKNOWN and reason not in self._told_reasons and len(self._told_reasons) < 5:
            self._told_reasons.add(reason)
            self._say(
                f"an answer has the unknown finish_reason '{shorten(reason)}' and counts as truncated; if such answers "
                f"are complete, set endpoints.{self.name}.finish_reasons: {{{shorten(reason)}: stop}}"
            )
        return answer

    async def _bought_before(self, key: str) -> BatchQueue | None:
        """The queue, if a running batch holds this live call (its role's mode was changed from batch); else None.

        Raises InfrastructureError if the records of batches cannot be read.
        """
        if self._make_batches is None:
            return None
        if self._batches is None:
            # Checked once: all later batches are this client's own.
            if self._any_before is None or (self._any_before.done() and self._any_before.exception() is not None):
                self._any_before = asyncio.create_task(asyncio.to_thread(self._records.any))
            if not await asyncio.shield(self._any_before):
                return None
        queue = self._make_batches()
        return queue if await queue.holds(key) else None

    def _landed(self, flight: asyncio.Task[Outcome]) -> None:
        if not flight.cancelled():
            flight.exception()  # retrieved, so that asyncio does not log it if all callers have left
        if not self._flights and not self._closed:
            # A separate task, so that the call's callers do not wait for it.
            self._resting = asyncio.create_task(self._rest())

    async def _rest(self) -> None:
        if not self._flights:
            await self._ledger.rest()

    # --- accounts

    def _count(self, bought: Completion, call: Call) -> None:
        stats = self._stats
        stats.completed += 1
        stats.prompt_tokens += bought.prompt_tokens
        stats.completion_tokens += bought.completion_tokens
        self._latencies.add(bought.seconds)
        usage = (bought.prompt_tokens, bought.completion_tokens, bought.cost_usd or 0.0)
        self._on_event(Event("completed", bought.key, call.role, bought.finish_reason, bought.seconds, *usage))

    def _fail(self, failure: Failure, call: Call) -> Failure:
        self._stats.failed += 1
        self._on_event(Event("failed", failure.key, call.role, f"{failure.reason}: {failure.detail}"))
        return failure

    def _forget(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _read_address(self, address: str) -> Address:
        try:
            return read_address(address)
        except ValueError as cause:
            raise EndpointError(
                f"endpoint {self.name}: '{shorten(without_secrets(address))}' is not a valid address: {cause}"
            ) from None

    def _read_key(self, file: str | None) -> str | None:
        variable = self.config.api_key_env
        if variable is None:
            return None
        key = (read_key(variable, file) or "").strip()
        where = without_secrets(self.address)
        if not key:
            raise EndpointError(f"endpoint {self.name} ({where}) needs a key: set the environment variable {variable}")
        if not key.isascii() or not key.isprintable() or " " in key:
            # Checked here because the HTTP library's error could quote the key.
            raise EndpointError(
                f"endpoint {self.name} ({where}): {variable} holds characters that no key has, such as a space"
            )
        return key

    def _closed_error(self) -> InfrastructureError:
        return InfrastructureError(f"the client of endpoint {self.name} was closed before this call was answered")


def _transport(config: EndpointConfig, address: Address, key: str | None) -> Transport:
    if config.transport == "aiohttp":
        return AiohttpTransport(config, address, key)
    from lion_ray.gateway.openai_transport import OpenAITransport

    return OpenAITransport(config, address, key)


def _batch_api(config: EndpointConfig, address: Address, key: str | None) -> BatchAPI:
    from lion_ray.gateway.openai_transport import openai_client

    return BatchAPI(openai_client(config, address, key), config.timeout_s, keyed=config.api_key_env is not None)


def _in_batches(queue: BatchQueue) -> int:
    stats = queue.stats()
    return int(stats["waiting"] + stats["under_way"])


def _ignore(_: object) -> None:
    """The default for `on_event`."""
