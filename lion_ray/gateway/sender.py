"""One call's way to an endpoint: a slot, money, the rate limit, the breaker, and as many attempts as it takes.

Invariants:
- At most `max_concurrency` calls are in flight, shared fairly among the proxies of an endpoint. A call is in flight
  until its answer is kept: a machine that dies loses no more answers than that.
- Once an answer could not be kept, nothing more is sent: what cannot be kept must not be bought.
- Every attempt's worst case is reserved before it is sent, and settled or held afterwards (`purse`).
- A 429 costs no attempt and gives up no row. Until the moment it names, no call of this sender is sent; a moment
  beyond `max_retry_after_s`, or 429s without an end, are an EndpointError.
- While the endpoint is down (`breaker`) calls wait and no attempt of theirs is spent, but for a probe that it answered
  with an error. Past `outage_timeout_s` that is an EndpointError.
- What is wrong with one call is a Failure; what is wrong with the endpoint is an EndpointError. Where a refusal may be
  either, `suspects` decides by what comes of the other calls.

Time is read and slept through `clock` and `sleep`, which tests replace. This module knows nothing of HTTP
(`transport`, `wire`), of the journal or of Ray.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.gateway.batch import NOT_DONE, ROUNDS, BatchQueue, NotDone
from lion_ray.gateway.breaker import Breaker
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome
from lion_ray.gateway.ledger import Ledger
from lion_ray.gateway.limits import Limiter, Need, Ticket
from lion_ray.gateway.patience import Patience
from lion_ray.gateway.purse import Purse, Reserved
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.request import LengthField, wire_body
from lion_ray.gateway.stats import Event, Stats
from lion_ray.gateway.suspects import Suspects, Suspicion, shape_of
from lion_ray.gateway.told import refusal_error, suspicion
from lion_ray.gateway.transport import Transport
from lion_ray.gateway.wire import (
    CONNECTION_LOST,
    GARBLED,
    REJECTED,
    SERVER_ERROR,
    TIMED_OUT,
    UNREACHABLE,
    Elsewhere,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    Unreachable,
)

T = TypeVar("T")
FIRST_BACKOFF_S = 0.5
_NOBODY_THERE = (UNREACHABLE, CONNECTION_LOST, TIMED_OUT)
DOWN = "endpoint is down"
"""The reason of a Failure where the endpoint is down and the caller would rather ask another one."""


async def _nothing_kept(usd: float) -> None:
    """Of a call whose owner keeps no accounts."""


@dataclass(slots=True)
class Attempt:
    """What the owner of a call and its sender tell each other."""

    committed: bool = False
    """A request is out, or its answer is being written: no longer to be dropped."""
    wanted: Callable[[], bool] = lambda: True
    """Whether anybody still waits for the call."""
    patient: bool = True
    """Waits through an outage; else it ends in a Failure for the reason `DOWN`."""
    lose: Callable[[float], Awaitable[None]] = _nothing_kept
    """Makes durable that an attempt may have been billed so many US dollars."""


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
        say: Callable[[str], object],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
        rng: random.Random | None = None,
    ) -> None:
        """`bought_before`: the queue of the batch under way that holds a key, where there is one."""
        self.name, self.config = name, config
        self._transport, self._batches = transport, batches
        self._bought_before = bought_before
        self._address = address
        self._purse = Purse(name, config, ledger, on_event, say)
        self._stats, self._on_event, self._say = stats, on_event, say
        self._clock, self._sleep = clock, sleep
        self._rng = rng or random.Random()
        self.limiter = Limiter(config.limits, clock=clock, proxies=config.proxies, cautious=config.serve is None)
        self.breaker = Breaker(config.breaker_failures, clock=clock)
        self._slots = asyncio.Semaphore(-(-config.max_concurrency // config.proxies))
        self._turn = asyncio.Lock()
        self._suspects = Suspects()
        self._length_field = LengthField(name, config, self._say)
        self._answered = False
        self._patience = Patience(name, address, config, self._say)
        self._unkept: InfrastructureError | None = None

    async def buy(
        self, key: str, call: Call, attempt: Attempt, keep: Callable[[Completion], Awaitable[None]]
    ) -> Outcome:
        """Send until there is an answer, which goes through `keep`, a reason to stop, or no attempt left.

        Raises EndpointError where the endpoint refuses every call or is down for too long, BudgetError at the cap,
        InfrastructureError where an answer could not be kept: this one, or another before.
        """
        body = self._length_field.rename(wire_body(call, self.config))
        shape = shape_of(body)
        characters = sum(len(message["content"]) for message in call.messages)
        size = sum(len(message["content"].encode()) for message in call.messages)
        if call.json_schema is not None:
            size += len(str(call.json_schema))
        with self._suspects.under_way(shape):
            outcome: Outcome | Suspicion | None = None
            if (batches := await self._queue(key, call)) is not None:
                outcome = await self._kept(await self._in_batch(batches, key, call, body, size, attempt), keep)
            if outcome is None:
                async with self._slots:
                    live = await self._live(key, call, body, characters, size, attempt)
                    outcome = await self._kept(live, keep)
            if isinstance(outcome, Suspicion):
                # Without a slot: others have to be heard.
                return await self._suspects.judge(shape, outcome)
            return outcome

    async def _queue(self, key: str, call: Call) -> BatchQueue | None:
        """The batches that a call goes through; None where it goes live."""
        if call.batch and self._batches is not None:
            return self._batches()
        return await self._bought_before(key) if self._bought_before is not None else None

    async def _kept(self, outcome: T, keep: Callable[[Completion], Awaitable[None]]) -> T:
        """The outcome itself, once it is kept where it is an answer."""
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

    async def _live(
        self, key: str, call: Call, body: dict[str, Any], characters: int, size: int, attempt: Attempt
    ) -> Outcome | Suspicion:
        limited = errors = 0
        while True:
            if self.breaker.open and not attempt.patient:
                return Failure(key, DOWN, f"{self.breaker.last_error} (down for {self.breaker.down_s:.0f} s)")
            worst = await self._purse.take(call, size)
            try:
                ticket, probe = await self._admitted(self.limiter.need(characters, call.max_tokens))
            except BaseException:
                await self._purse.settle(worst)
                raise
            if not self._purse.fits(worst):
                # While it waited, another call's answer has shown that it may cost more.
                self.limiter.ended()
                self.breaker.abandoned(probe)
                await self._purse.settle(worst)
                continue
            attempt.committed = True
            result = await self._send(key, call, body, ticket, probe, worst, attempt)
            if isinstance(result, Completion | Failure | Suspicion):
                return result
            attempt.committed = False
            if not attempt.wanted():
                # Whoever wanted it left while the request was out, and there is no answer to save.
                raise asyncio.CancelledError
            if isinstance(result, Refused):
                continue  # the length limit's field has another name here, and is sent under that one now
            if isinstance(result, RateLimited):
                limited += 1
                pause = self._patience.pause(result, ticket.at, self._clock(), self._backoff(limited))
                self.limiter.limited(ticket, pause, result.limits)
                self._on_event(Event("rate_limited", key, call.role, result.detail, pause))
                continue
            if self.breaker.open and result.reason in _NOBODY_THERE:
                self._on_event(Event("retried", key, call.role, f"{result.reason}: {result.detail}", 0.0))
                continue
            errors += 1
            if isinstance(result, Elsewhere) and not self._answered and errors > 1:
                # Twice something that is no API, and never an answer.
                raise self._refusal(Refused("address", result.detail), call)
            if errors >= self.config.max_attempts:
                return self._given_up(key, call, result, errors)
            asked_s = result.retry_after_s or 0.0
            pause = max(asked_s if asked_s <= self.config.max_retry_after_s else 0.0, self._backoff(errors))
            self._stats.retried += 1
            self._on_event(Event("retried", key, call.role, f"{result.reason}: {result.detail}", pause))
            # The slot stays taken: fewer requests go to an endpoint that is in trouble.
            await self._sleep(pause)

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

    async def _send(
        self,
        key: str,
        call: Call,
        body: dict[str, Any],
        ticket: Ticket,
        probe: int,
        worst: Reserved,
        attempt: Attempt,
    ) -> Outcome | Suspicion | RateLimited | Transient | Refused:
        """One attempt: its answer, its failure for good, or what makes another one worth it. Settles its money."""
        self._length_field.rename(body)
        self._stats.sent += 1
        self._stats.in_flight += 1
        paid = 0.0
        uncertain = True  # until the endpoint has said something
        try:
            reply = await self._transport.chat(body)
            uncertain = False
            self._answered = True
            self._patience.answered()
            self._suspects.answered(shape_of(body))
            self.breaker.succeeded()
            self.limiter.answered(ticket, *reply.usage.known(), reply.limits)
            completion = self._completion(key, call, reply, self._clock() - ticket.at, worst)
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
            uncertain = rejected.answered
            self.breaker.succeeded()
            return self._rejected(key, rejected)
        except Refused as refused:
            uncertain = False
            self.breaker.succeeded()
            return refused if self._length_field.found(refused, body) else self._refused(key, call, refused)
        except InfrastructureError:
            # This machine could not even ask.
            uncertain = False
            self.breaker.abandoned(probe)
            raise
        finally:
            self._stats.in_flight -= 1
            self.limiter.ended()
            if uncertain:
                self.breaker.abandoned(probe)
                await self._lost(worst, attempt)
            else:
                await self._purse.settle(worst, paid)

    async def _in_batch(
        self, batches: BatchQueue, key: str, call: Call, body: dict[str, Any], size: int, attempt: Attempt
    ) -> Outcome | Suspicion | None:
        """The call's outcome by the Batch API; None where it is to go live after all."""
        why = ""
        for _ in range(ROUNDS):
            outcome = await self._in_one_batch(batches, key, call, body, size, attempt)
            if not isinstance(outcome, NotDone):
                return outcome
            if not call.batch or self.config.batch.leftovers == "live":
                return None
            why = outcome.detail
        return Failure(key, NOT_DONE, f"{why} ({ROUNDS} batches)")

    async def _in_one_batch(
        self, batches: BatchQueue, key: str, call: Call, body: dict[str, Any], size: int, attempt: Attempt
    ) -> Outcome | Suspicion | NotDone | None:
        """As `_in_batch`; NotDone where a batch gave no answer. Settles its money."""
        worst = await self._purse.take(call, size, batch=True)
        paid, lost = 0.0, False
        started = self._clock()
        try:
            # Not committed while it waits: a batch outlives this process, and the next start takes it up.
            reply = await batches.chat(key, body, live=not call.batch)
            attempt.committed = True
            self._answered = True
            self._suspects.answered(shape_of(body))
            completion = self._completion(key, call, reply, self._clock() - started, worst)
            paid = completion.cost_usd or 0.0
            return completion
        except NotDone as left:
            lost = left.billed
            self._on_event(Event("retried", key, call.role, left.detail))
            return left
        except Rejected as rejected:
            return self._rejected(key, rejected)
        except Transient as transient:
            return Failure(key, transient.reason, transient.detail)
        except Refused as refused:
            if self._length_field.found(refused, body):
                return None  # a batch takes a day, and the call is alone: live
            return self._refused(key, call, refused)
        finally:
            if lost:
                # Before the batch's record may go: a start after this one finds the one or the other.
                attempt.committed = True
                await self._lost(worst, attempt)
                await batches.settled(key)
                attempt.committed = False
            else:
                await self._purse.settle(worst, paid)

    # --- what came of it

    async def _lost(self, worst: Reserved, attempt: Attempt) -> None:
        try:
            await self._purse.lose(worst, attempt.lose)
        except InfrastructureError as error:
            # What cannot be remembered must not be spent.
            self._unkept = error
            raise

    def _completion(self, key: str, call: Call, reply: Reply, seconds: float, worst: Reserved) -> Completion:
        paid = self._purse.paid(key, call, reply, worst)
        return Completion(
            key=key,
            text=reply.text,
            finish_reason=reply.finish_reason,
            model=reply.model or self.config.model,
            endpoint=self.name,
            prompt_tokens=paid.prompt_tokens,
            completion_tokens=paid.completion_tokens,
            cached_tokens=paid.cached_tokens,
            seconds=round(seconds, 4),
            cost_usd=paid.usd,
            logprobs=reply.logprobs,
        )

    # --- whose fault it is

    def _refused(self, key: str, call: Call, refused: Refused) -> Suspicion:
        """Raises EndpointError where it is the endpoint's for sure."""
        error = self._refusal(refused, call)
        if refused.sure:
            raise error from None
        return Suspicion(Failure(key, REJECTED, refused.detail), error, by_words=True)

    def _refusal(self, refused: Refused, call: Call) -> EndpointError:
        return refusal_error(self.name, self._address, self.config, refused, call)

    def _rejected(self, key: str, rejected: Rejected) -> Failure | Suspicion:
        failure = Failure(key, rejected.reason, rejected.detail)
        return failure if rejected.of_its_own else suspicion(self.name, self._address, failure)

    def _given_up(self, key: str, call: Call, error: Transient, errors: int) -> Failure | Suspicion:
        if isinstance(error, Unreachable) and not self._answered:
            raise EndpointError(
                f"endpoint {self.name} cannot be reached at {self._address} after {errors} attempts"
                f" ({error.detail}): check endpoints.{self.name}.base_url and the network"
            )
        if isinstance(error, Elsewhere) and not self._answered:
            raise self._refusal(Refused("address", error.detail), call)
        failure = Failure(key, error.reason, f"{error.detail} (attempt {errors} of {errors})")
        return suspicion(self.name, self._address, failure) if error.reason in (SERVER_ERROR, GARBLED) else failure

    def _backoff(self, failures: int) -> float:
        """Seconds after so many failures in a row: doubling, at most `max_backoff_s`, with jitter down to a half."""
        longest = min(self.config.max_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 60))
        return longest * self._rng.uniform(0.5, 1.0)
