"""The way to one endpoint: every call is looked up, bought at most once, journaled, and only then seen.

Invariants:
- A completion is in the journal, durably, before a caller gets it. A call whose key the journal knows sends nothing.
- Calls of one key that are under way together are one purchase.
- A caller that goes away does not stop a request that was sent: its answer is paid for and gets journaled. A call
  that was not sent yet and that nobody waits for any more is dropped.

How a call is bought is `sender`'s. This module knows nothing of HTTP (`transport`, `wire`), of files (`journal`) or of
Ray.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import openai
import orjson

from lion_ray.config import EndpointConfig
from lion_ray.core.addresses import without_secrets
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.gateway.address import Address, read_address
from lion_ray.gateway.batch import BatchQueue
from lion_ray.gateway.batch.state import BatchRecords
from lion_ray.gateway.calls import Account, Call, Completion, Failure, Outcome
from lion_ray.gateway.http import AiohttpTransport
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.keys import read_key
from lion_ray.gateway.ledger import Excess, Ledger
from lion_ray.gateway.request import as_sent
from lion_ray.gateway.sender import Attempt, Sender
from lion_ray.gateway.stats import Event, Latencies, Stats
from lion_ray.gateway.transport import OpenAITransport, Transport, openai_client
from lion_ray.gateway.wire import shorten

JOURNAL_REFRESH_S = 5.0
"""How old the view of a journal that others write too may be when a call is bought."""


@dataclass(slots=True)
class _Flight:
    """A call under way, and how many wait for it."""

    task: asyncio.Task[Outcome] | None = None
    waiters: int = 0
    attempt: Attempt = field(default_factory=Attempt)


class Client:
    """Sends calls to one endpoint. Use it from one event loop; the journal stays its owner's to close."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        journal: Journal,
        *,
        run: str = "",
        transport: Transport | None = None,
        base_url: str | None = None,
        weights: str = "",
        keys: str | None = None,
        ledger: Ledger | None = None,
        on_event: Callable[[Event], None] | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """The endpoint called `name` in the configuration, for the run called `run` in the accounts.

        `base_url` overrides the config's, for a server that the run started; `weights` is the hash of what it serves,
        and part of every call's key. Without a `transport`, reads the API key, from the file `keys` or the environment
        (`keys.read_key`). Raises EndpointError where the key is missing or the address is none.
        """
        self.name = name
        self.config = config
        self.address = base_url or config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._run = run
        self._weights = weights
        self._batches: BatchQueue | None = None
        self._batch_api: openai.AsyncOpenAI | None = None
        self._make_batches: Callable[[], BatchQueue] | None = None
        self._records = BatchRecords(journal.root)
        self._any_before: asyncio.Task[bool] | None = None
        if transport is None:
            if config.serve is not None and base_url is None:
                raise ValueError(f"endpoint {name} is served by the run: base_url must say where")
            address = self._read_address()
            key = self._read_key(keys)
            if key is not None and address.credentials is not None:
                raise EndpointError(
                    f"endpoint {name} ({without_secrets(self.address)}): base_url holds a user or a password, and "
                    f"{config.api_key_env} a key, of which only one can be sent: take the one out of base_url, or set "
                    f"endpoints.{name}.api_key_env to null"
                )
            kind = AiohttpTransport if config.transport == "aiohttp" else OpenAITransport
            transport = kind(config, address, key)

            def make_batches() -> BatchQueue:
                if self._batches is None:
                    api = self._batch_api = openai_client(config, address, key)
                    self._batches = BatchQueue(
                        name,
                        config,
                        api,
                        journal.root,
                        journaled=journal.__contains__,
                        say=say,
                        clock=clock,
                        sleep=sleep,
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
        )

    @property
    def stats(self) -> Stats:
        """A snapshot."""
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
        """The call's completion, from the journal or bought; or a Failure where this one call cannot be had.

        A completion that was bought for another caller at the same time comes back `replayed`, as one that the
        journal held: it was paid for once. With `patient` False, a Failure with the reason `sender.DOWN` comes back
        where the endpoint is down, instead of waiting for it.

        Raises EndpointError where the endpoint refuses every call or is down for too long, BudgetError where the
        budget is spent, InfrastructureError where the journal cannot be written or the client was closed.
        """
        if self._closed:
            raise self._closed_error()
        call = as_sent(call, self.config)
        try:
            key = call.key(self.config.model, self._weights)
        except orjson.JSONEncodeError as cause:
            # A lone surrogate in a user's file, for one. It has no canonical form, so no key.
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
        """Send nothing for so long: another proxy of this endpoint was told to wait."""
        self._sender.limiter.pause(seconds)

    @property
    def excess(self) -> Excess:
        """What this endpoint's answers have shown that a call can take beyond what it allows."""
        return self._ledger.excess

    def expect(self, excess: Excess) -> None:
        """Reserve as much for each call as another client of this endpoint has seen that it can take."""
        self._ledger.excess.join(excess)

    async def close(self, *, for_good: bool = False) -> None:
        """Let requests that are out come home and be journaled, end the other calls, give back connections.

        Callers whose call was not out get an InfrastructureError. A batch goes on at the endpoint; the next client of
        this journal takes it up. `for_good`: there will be none, and batches that calls here wait for are cancelled.
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

    # --- a call's way

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
            if not flight.waiters and not flight.attempt.committed and not flight.task.done():
                flight.task.cancel()
                # At once, so that the same call asked again does not join a flight that is ending.
                self._forget(key, flight)

    async def _fly(self, key: str, call: Call, flight: _Flight) -> Outcome:
        try:
            known = await self._journal.get(key)
            if known is None and await self._journal.refresh_if_older(JOURNAL_REFRESH_S):
                known = await self._journal.get(key)  # another run that shares the journal may have bought it
            if known is not None:
                self._stats.replayed += 1
                self._on_event(Event("replayed", key, call.role))
                return self._meant(known)
            account = Account(self._run, call.role, call.stage)
            flight.attempt.lose = partial(self._journal.lose, account, self.name)
            bought = await self._sender.buy(key, call, flight.attempt, partial(self._journal.put, account=account))
            if isinstance(bought, Failure):
                return self._fail(bought, call)
            if self._batches is not None:
                await self._batches.settled(key)
            self._count(bought, call)
            return self._meant(bought)
        finally:
            self._forget(key, flight)

    def _meant(self, answer: Completion) -> Completion:
        """The answer with a finish reason of the endpoint's own as the user says that it is meant."""
        reason = answer.finish_reason
        if reason in self.config.finish_reasons:
            return replace(answer, finish_reason=self.config.finish_reasons[reason])
        if ending(reason) is Ending.UNKNOWN and reason not in self._told_reasons and len(self._told_reasons) < 5:
            self._told_reasons.add(reason)
            self._say(
                f"an answer ended with finish_reason '{shorten(reason)}', which nobody knows: it counts as cut off; if "
                f"such answers are whole, set endpoints.{self.name}.finish_reasons: {{{shorten(reason)}: stop}}"
            )
        return answer

    async def _bought_before(self, key: str) -> BatchQueue | None:
        """The queue, where a batch under way holds this call, which is to go live now: a role that was switched.

        Raises InfrastructureError where the records of batches cannot be read.
        """
        if self._make_batches is None:
            return None
        if self._batches is None:
            # Looked for once: other batches than those that are there now are this client's own.
            if self._any_before is None or (self._any_before.done() and self._any_before.exception() is not None):
                self._any_before = asyncio.create_task(asyncio.to_thread(self._records.any))
            if not await asyncio.shield(self._any_before):
                return None
        queue = self._make_batches()
        return queue if await queue.holds(key) else None

    def _landed(self, _: object) -> None:
        if not self._flights and not self._closed:
            # A task of its own, as whoever waits for the call need not wait for this.
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

    def _read_address(self) -> Address:
        try:
            return read_address(self.address)
        except ValueError as cause:
            raise EndpointError(
                f"endpoint {self.name}: '{shorten(without_secrets(self.address))}' is no address; {cause}"
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
            # Found here, as the HTTP library's complaint could quote it.
            raise EndpointError(
                f"endpoint {self.name} ({where}): {variable} holds characters that no key has, such as a space"
            )
        return key

    def _closed_error(self) -> InfrastructureError:
        return InfrastructureError(f"the client of endpoint {self.name} was closed before this call was answered")


def _in_batches(queue: BatchQueue) -> int:
    stats = queue.stats()
    return int(stats["waiting"] + stats["under_way"])


def _ignore(_: object) -> None:
    """The default for `on_event`."""
