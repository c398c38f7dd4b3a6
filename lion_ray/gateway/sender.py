"""One call's way to an endpoint: a slot, money, the rate limit, the breaker, and as many attempts as it takes.

Invariants:
- At most `max_concurrency` calls are in flight, shared fairly among the proxies of an endpoint. A call is in flight
  until its answer is kept: a machine that dies loses no more answers than that.
- Once an answer could not be kept, nothing more is sent: what cannot be kept must not be bought.
- Every attempt's worst case is reserved before it is sent (`ledger`), and settled or, where its fate is unknown, held
  durably afterwards. What an answer has shown about bills holds for every call that was not sent yet.
- A 429 costs no attempt and gives up no row. Until the moment it names, no call of this sender is sent.
- While the endpoint is down (`breaker`) calls wait and no attempt of theirs is spent, but for a probe that it answered
  with an error. Past `outage_timeout_s` that is an EndpointError.
- What is wrong with one call is a Failure; what is wrong with the endpoint is an EndpointError.

Time is read and slept through `clock` and `sleep`, which tests replace. This module knows nothing of HTTP
(`transport`, `wire`), of the journal or of Ray.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lion_ray.config import EndpointConfig
from lion_ray.errors import EndpointError, InfrastructureError
from lion_ray.gateway.batch import BatchQueue, NotDone
from lion_ray.gateway.breaker import Breaker
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome
from lion_ray.gateway.ledger import Ledger
from lion_ray.gateway.limits import Limiter, Need, Ticket
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.stats import Event, Stats
from lion_ray.gateway.transport import Transport
from lion_ray.gateway.usage import Bounds, Settled, bounds
from lion_ray.gateway.wave import Wave
from lion_ray.gateway.wire import (
    CONNECTION_LOST,
    TIMED_OUT,
    UNREACHABLE,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    Unreachable,
    wire_body,
)

FIRST_BACKOFF_S = 0.5
_NOBODY_THERE = (UNREACHABLE, CONNECTION_LOST, TIMED_OUT)
DOWN = "endpoint is down"
"""The reason of a Failure where the endpoint is down and the caller would rather ask another one."""


@dataclass(slots=True)
class Attempt:
    """What the owner of a call and its sender tell each other."""

    committed: bool = False
    """A request is out, or its answer is being written: no longer to be dropped."""
    wanted: Callable[[], bool] = lambda: True
    """Whether anybody still waits for the call."""
    patient: bool = True
    """Waits through an outage; else it ends in a Failure for the reason `DOWN`."""


@dataclass(slots=True)
class _Order:
    """A call on its way: what is sent for it, and what it allows."""

    key: str
    call: Call
    body: dict[str, Any]
    asked: Bounds
    characters: int
    attempt: Attempt
    lose: Callable[[float], Awaitable[None]]
    most: Bounds = field(init=False)
    """What is reserved for the attempt under way."""
    worst: float = 0.0
    """That in US dollars."""

    def __post_init__(self) -> None:
        self.most = self.asked


class Sender:
    """Buys calls from one endpoint, one at a time each."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        transport: Transport,
        *,
        address: str,
        ledger: Ledger,
        batches: Callable[[], BatchQueue] | None,
        bought_before: Callable[[str], Awaitable[BatchQueue | None]] | None = None,
        stats: Stats,
        on_event: Callable[[Event], None],
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: random.Random | None = None,
    ) -> None:
        """`bought_before`: the queue of the batch under way that holds a key, should there be one."""
        self.name, self.config = name, config
        self._transport, self._batches, self._bought_before = transport, batches, bought_before
        self._address = address
        self.ledger = ledger
        self._stats, self._on_event, self._say = stats, on_event, say
        self._clock, self._sleep = clock, sleep
        self._rng = rng or random.Random()
        self.limiter = Limiter(config.limits, clock=clock, proxies=config.proxies, cautious=config.serve is None)
        self.breaker = Breaker(config.breaker_failures, clock=clock)
        self._slots = asyncio.Semaphore(-(-config.max_concurrency // config.proxies))
        self._wave = Wave(proxies=config.proxies, narrow=ledger.capped)
        self._turn = asyncio.Lock()
        self._answered = False
        self._unkept: InfrastructureError | None = None

    async def buy(
        self,
        key: str,
        call: Call,
        attempt: Attempt,
        keep: Callable[[Completion], Awaitable[None]],
        lose: Callable[[float], Awaitable[None]],
    ) -> Outcome:
        """Send until there is an answer, which goes through `keep`, a reason to stop, or no attempt left.

        `lose` makes durable that an attempt may have been billed so many US dollars.

        Raises EndpointError where the endpoint refuses every call or is down for too long, BudgetError at the cap,
        InfrastructureError where an answer could not be kept: this one, or another before.
        """
        characters = sum(len(message["content"]) for message in call.messages)
        size = sum(len(message["content"].encode()) for message in call.messages)
        if call.json_schema is not None:
            size += len(str(call.json_schema))
        asked = bounds(size, len(call.messages), call.max_tokens)
        order = _Order(key, call, wire_body(call, self.config), asked, characters, attempt, lose)
        if (batches := await self._queue(order)) is not None:
            outcome = await self._in_batch(batches, order)
            if outcome is not None:
                return await self._kept(outcome, keep)
        async with self._slots:
            return await self._kept(await self._live(order), keep)

    async def _queue(self, order: _Order) -> BatchQueue | None:
        """The batches that a call goes through; None where it goes live."""
        if order.call.batch and self._batches is not None:
            return self._batches()
        return await self._bought_before(order.key) if self._bought_before is not None else None

    async def _kept(self, outcome: Outcome, keep: Callable[[Completion], Awaitable[None]]) -> Outcome:
        if isinstance(outcome, Completion):
            try:
                await keep(outcome)
            except InfrastructureError as error:
                self._unkept = error
                raise
        return outcome

    def _check_kept(self) -> None:
        if self._unkept is not None:
            raise InfrastructureError(str(self._unkept))

    # --- live

    async def _live(self, order: _Order) -> Outcome:
        key, role, attempt = order.key, order.call.role, order.attempt
        limited = errors = 0
        while True:
            if self.breaker.open and not attempt.patient:
                return Failure(key, DOWN, f"{self.breaker.last_error} (down for {self.breaker.down_s:.0f} s)")
            async with self._wave:
                ticket, probe = await self._paid_and_admitted(order)
                attempt.committed = True
                result = await self._send(order, ticket, probe)
            if isinstance(result, Completion | Failure):
                return result
            attempt.committed = False
            if not attempt.wanted():
                # Whoever wanted it left while the request was out, and there is no answer to save.
                raise asyncio.CancelledError
            if isinstance(result, RateLimited):
                limited += 1
                pause = result.retry_after_s or self._backoff(limited)
                self.limiter.limited(ticket, pause, result.limits)
                self._on_event(Event("rate_limited", key, role, result.detail, pause))
                continue
            if self.breaker.open and result.reason in _NOBODY_THERE:
                self._on_event(Event("retried", key, role, f"{result.reason}: {result.detail}", 0.0))
                continue
            errors += 1
            if errors >= self.config.max_attempts:
                return self._given_up(key, result, errors)
            pause = max(result.retry_after_s or 0.0, self._backoff(errors))
            self._stats.retried += 1
            self._on_event(Event("retried", key, role, f"{result.reason}: {result.detail}", pause))
            # The slot stays taken: fewer requests go to an endpoint that is in trouble.
            await self._sleep(pause)

    async def _paid_and_admitted(self, order: _Order) -> tuple[Ticket, int]:
        """Reserve the attempt's money and wait for its turn; then it is to be sent at once."""
        while True:
            await self._reserve(order)
            try:
                ticket, probe = await self._admitted(self.limiter.need(order.characters, order.call.max_tokens))
            except BaseException:
                await self.ledger.settle(order.worst, 0.0)
                raise
            if self.ledger.excess.raised(order.asked) == order.most:
                return ticket, probe
            # While it waited, another call's answer has shown that it may cost more. All of it is given back first:
            # calls that each keep a part and wait for more could wait for each other.
            self.limiter.ended()
            self.breaker.abandoned(probe)
            await self.ledger.settle(order.worst, 0.0)

    async def _reserve(self, order: _Order, *, batch: bool = False) -> None:
        """Set aside the worst that a call may cost, as it is known when the money is there."""
        while True:
            order.most = self.ledger.excess.raised(order.asked)
            order.worst = self.ledger.worst(order.most, batch=batch)
            await self.ledger.reserve(order.worst)
            if self.ledger.excess.raised(order.asked) == order.most:
                return
            await self.ledger.settle(order.worst, 0.0)

    async def _admitted(self, need: Need) -> tuple[Ticket, int]:
        """Wait for the breaker and the rate limit, first come first served; also says which probe this is, or 0."""
        async with self._turn:
            self._check_kept()
            while (wait := self.breaker.wait_s()) > 0:
                if self.breaker.down_s > self.config.outage_timeout_s:
                    raise EndpointError(
                        f"endpoint {self.name} ({self._address}) has been down for {self.breaker.down_s / 60:.0f} min "
                        f"({self.breaker.last_error}): what it answered before is kept; when it is back, run the same "
                        "command"
                    )
                await self._sleep(wait)
            probe = self.breaker.probe
            try:
                while not isinstance(granted := self.limiter.take(need), Ticket):
                    await self._sleep(granted)
            except BaseException:
                self.breaker.abandoned(probe)
                raise
            return granted, probe

    async def _send(self, order: _Order, ticket: Ticket, probe: int) -> Outcome | RateLimited | Transient:
        """One attempt: its answer, its failure for good, or an error that may pass. Settles its money."""
        self._stats.sent += 1
        self._stats.in_flight += 1
        paid = 0.0
        uncertain = True  # until the endpoint has said something
        try:
            reply = await self._transport.chat(order.body)
            uncertain = False
            self._answered = True
            self.breaker.succeeded()
            usage = reply.usage
            told = (usage.prompt, usage.completion) if usage.prompt and usage.completion is not None else (0, 0)
            self.limiter.answered(ticket, *told, reply.limits)
            completion = self._completion(order, reply, self._clock() - ticket.at)
            paid = completion.cost_usd or 0.0
            return completion
        except RateLimited as limit:
            uncertain = False
            self._answered = True
            self.breaker.succeeded()
            self._stats.rate_limited += 1
            return limit
        except Transient as transient:
            uncertain = transient.uncertain
            self.breaker.failed(f"{transient.reason}: {transient.detail}", probe)
            return transient
        except Rejected as rejected:
            uncertain = False
            self.breaker.succeeded()
            return Failure(order.key, rejected.reason, rejected.detail)
        except Refused as refused:
            uncertain = False
            self.breaker.succeeded()
            raise self._refusal(refused) from None
        finally:
            self._stats.in_flight -= 1
            self.limiter.ended()
            if uncertain:
                self.breaker.abandoned(probe)
            if uncertain and self.config.assume_billed != "never":
                await self._lose(order)
            else:
                await self.ledger.settle(order.worst, paid)

    async def _lose(self, order: _Order) -> None:
        """Nobody knows whether an attempt was billed: that outlives this process."""
        self.ledger.lose(order.worst)
        if not order.worst:
            return  # it costs nothing
        try:
            await order.lose(order.worst)
        except InfrastructureError as error:
            # What cannot be remembered must not be spent.
            self._unkept = error
            raise

    async def _in_batch(self, batches: BatchQueue, order: _Order) -> Outcome | None:
        """The call's outcome by the Batch API; None where it is to go live after all."""
        key = order.key
        await self._reserve(order, batch=True)
        paid = 0.0
        started = self._clock()
        try:
            # Not committed while it waits: a batch outlives this process, and the next start takes it up.
            reply = await batches.chat(key, order.body, live=not order.call.batch)
            order.attempt.committed = True
            self._answered = True
            completion = self._completion(order, reply, self._clock() - started, batch=True)
            paid = completion.cost_usd or 0.0
            return completion
        except NotDone as left:
            self._on_event(Event("retried", key, order.call.role, left.detail))
            return None
        except Rejected as rejected:
            return Failure(key, rejected.reason, rejected.detail)
        except Transient as transient:
            return Failure(key, transient.reason, transient.detail)
        except Refused as refused:
            raise self._refusal(refused) from None
        finally:
            await self.ledger.settle(order.worst, paid)

    # --- what came of it

    def _completion(self, order: _Order, reply: Reply, seconds: float, *, batch: bool = False) -> Completion:
        usage = reply.usage
        used = usage.settled(order.asked, order.most, len(reply.text.encode()))
        self._learn(order, used)
        return Completion(
            key=order.key,
            text=reply.text,
            finish_reason=reply.finish_reason,
            model=reply.model or self.config.model,
            endpoint=self.name,
            # What was not named is settled on, and not known.
            prompt_tokens=used.prompt if usage.prompt is not None else 0,
            completion_tokens=used.completion if (usage.completion, usage.total) != (None, None) else 0,
            cached_tokens=used.cached,
            seconds=round(seconds, 4),
            cost_usd=self.ledger.price(used, batch=batch),
            logprobs=reply.logprobs,
        )

    def _learn(self, order: _Order, used: Settled) -> None:
        """Compare what an answer took with what was reserved for it; later calls reserve as much."""
        before = self.ledger.excess.raised(order.asked)
        surprised = self.ledger.excess.learn(order.asked, order.most, used)
        self._wave.answered(surprised=surprised)
        after = self.ledger.excess.raised(order.asked)
        if after != before and self.ledger.prices is not None:
            self._on_event(Event("surprised", order.key, order.call.role))
            self._say(
                f"endpoint {self.name}: an answer took {used.prompt:,} and {used.completion:,} tokens, where at most "
                f"{order.asked.prompt:,} and {order.asked.completion:,} were expected; from now on a call like it is "
                f"reserved ${self.ledger.worst(after):,.4f}"
            )

    def _given_up(self, key: str, error: Transient, errors: int) -> Failure:
        if isinstance(error, Unreachable) and not self._answered:
            raise EndpointError(
                f"endpoint {self.name} cannot be reached at {self._address} after {errors} attempts"
                f" ({error.detail}): check endpoints.{self.name}.base_url and the network"
            )
        return Failure(key, error.reason, f"{error.detail} (attempt {errors} of {errors})")

    def _refusal(self, refused: Refused) -> EndpointError:
        variable = self.config.api_key_env
        who = f"endpoint {self.name} ({self._address})"
        match refused.fault:
            case "key" if variable is None:
                told = f"{who} asks for a key: name its environment variable in endpoints.{self.name}.api_key_env"
            case "key":
                told = f"{who} refuses the key in {variable}: check that environment variable and the key's rights"
            case "model":
                told = f"{who} has no model '{self.config.model}': check endpoints.{self.name}.model"
            case "address":
                told = f"{who} has no chat completions there: check endpoints.{self.name}.base_url (often ends in /v1)"
            case "quota":
                told = f"{who} says the account has no credit left: top it up, then run the same command again"
        return EndpointError(f"{told} [{refused.detail}]")

    def _backoff(self, failures: int) -> float:
        """Seconds after so many failures in a row: doubling, at most `max_backoff_s`, with jitter down to a half."""
        longest = min(self.config.max_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 60))
        return longest * self._rng.uniform(0.5, 1.0)
