"""Sends a call to an endpoint: concurrency slot, budget, rate limit, circuit breaker, and retries.

Invariants:
- At most `max_concurrency` calls are in flight, divided among the proxies of an endpoint. A call is in flight until its
  answer is stored, so a crash loses at most that many answers.
- Once an answer could not be stored, nothing more is sent: nothing may be bought that cannot be stored.
- Every attempt's worst case is reserved before it is sent, and settled or kept afterwards (`purse`).
- A 429 does not count as an attempt and fails no row. No call of this sender is sent before the time that it names. A
  pause beyond `max_retry_after_s`, or endless 429s, are an EndpointError.
- While the endpoint is down (`breaker`) calls wait and use no attempts, except a probe that was answered with an error.
  After `outage_timeout_s` that is an EndpointError.
- A fault of one call is a Failure; a fault of the endpoint is an EndpointError. If a refusal may be either, `suspects`
  decides by the results of other calls.

Time is read and slept through `clock` and `sleep`, which tests replace. This module knows nothing of HTTP
(`transport`, `wire`), of the journal or of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
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
from lion_ray.gateway.refusals import refusal_error, suspicion
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.request import LengthField, wire_body
from lion_ray.gateway.stats import Event, Stats
from lion_ray.gateway.suspects import Suspects, Suspicion, shape_of
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
"""The reason of a Failure if the endpoint is down and the caller prefers another endpoint to waiting."""


async def _nothing_kept(usd: float) -> None:
    """The default for `Attempt.lose`: records nothing."""


async def _nothing_new() -> None:
    """The default for `Attempt.look`: nobody else buys."""


@dataclass(slots=True)
class Attempt:
    """State that the owner of a call and its sender share."""

    committed: bool = False
    """A request is in flight, or its answer is being stored: it must not be dropped."""
    shipped: Callable[[], bool] = lambda: False
    """Whether it is in a batch, which goes on without its callers: its reservation must stay, and its answer is kept.
    Only the end of the process may drop it: the next start adopts the batch."""
    wanted: Callable[[], bool] = lambda: True
    """Whether any caller still waits for the call."""
    patient: bool = True
    """Whether to wait through an outage; if not, it ends in a Failure with the reason `DOWN`."""
    lose: Callable[[float], Awaitable[None]] = _nothing_kept
    """Durably records the US dollars that an attempt of unknown outcome may have cost."""
    look: Callable[[], Awaitable[None]] = _nothing_new
    """Called before each attempt, which may have waited long: raises InJournal if another process has bought it."""


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
        answered: bool = False,
    ) -> None:
        """`bought_before`: returns the queue of a running batch that holds a key, or None.

        `answered`: the endpoint is known to have answered before, so that its silence is an outage.
        """
        self.name, self.config = name, config
        self._transport, self._batches = transport, batches
        self._bought_before = bought_before
        self._address = address
        self._purse = Purse(name, config, ledger, on_event, say)
        self._stats, self._on_event, self._say = stats, on_event, say
        self._clock, self._sleep = clock, sleep
        self._rng = rng or random.Random()
        self.limiter = Limiter(config.limits, clock=clock, proxies=config.proxies, cautious=config.serve is None)
        self.breaker = Breaker(config.breaker_failures, clock=clock, answered=answered)
        self._slots = asyncio.Semaphore(-(-config.max_concurrency // config.proxies))
        self._turn = asyncio.Lock()
        self._suspects = Suspects()
        self._length_field = LengthField(name, config, self._say)
        self._answered = answered
        self._patience = Patience(name, address, config, self._say)
        self._unkept: InfrastructureError | None = None

    async def buy(
        self, key: str, call: Call, attempt: Attempt, keep: Callable[[Completion], Awaitable[None]]
    ) -> Outcome:
        """Send the call, with retries, and store its answer with `keep`; returns the answer or a Failure.

        Raises EndpointError if the endpoint refuses every call or is down for too long, BudgetError at the cap,
        InfrastructureError if this answer or an earlier one could not be stored, InJournal if another process that
        shares the journal was faster.
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
                    outcome = await self._kept(live, keep, attempt.lose)
            if isinstance(outcome, Suspicion):
                # Without holding a slot, because the results of other calls are needed.
                return await self._suspects.judge(shape, outcome)
            return outcome

    async def _queue(self, key: str, call: Call) -> BatchQueue | None:
        """The batch queue for a call. Returns None if it is sent live."""
        if call.batch and self._batches is not None:
            return self._batches()
        return await self._bought_before(key) if self._bought_before is not None else None

    async def _kept(
        self,
        outcome: T,
        keep: Callable[[Completion], Awaitable[None]],
        lose: Callable[[float], Awaitable[None]] = _nothing_kept,
    ) -> T:
        """Store the outcome if it is an answer, and return it. If it cannot be stored, at least record what it cost."""
        if isinstance(outcome, Completion):
            try:
                await keep(outcome)
            except InfrastructureError as error:
                self._unkept = error
                if outcome.cost_usd:
                    with contextlib.suppress(InfrastructureError):  # the storage refuses both, as the first error says
                        await lose(outcome.cost_usd)
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
            self._check_kept()
            if self.breaker.open and not attempt.patient:
                return Failure(key, DOWN, f"{self.breaker.last_error} (down for {self.breaker.down_s:.0f} s)")
            worst = await self._purse.take(call, size)
            try:
                ticket, probe = await self._admitted(self.limiter.need(characters, call.max_tokens))
            except BaseException:
                await self._purse.settle(worst)
                raise
            try:
                await attempt.look()
                fits = self._purse.fits(worst)
            except BaseException:
                await self._withdraw(probe, worst)
                raise
            if not fits:
                # Meanwhile another call's answer has shown that this one may cost more.
                await self._withdraw(probe, worst)
                continue
            attempt.committed = True
            result = await self._send(key, call, body, ticket, probe, worst, attempt)
            if isinstance(result, Completion | Failure | Suspicion):
                return result
            attempt.committed = False
            if not attempt.wanted():
                # All callers left while the request was in flight, and there is no answer to store.
                raise asyncio.CancelledError
            if isinstance(result, Refused):
                continue  # the length limit's field has another name at this endpoint: retry with that
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
                # Two replies that are not from an API, and never an answer.
                raise self._refusal(Refused("address", result.detail), call)
            if errors >= self.config.max_attempts:
                return self._given_up(key, call, result, errors)
            asked_s = result.retry_after_s or 0.0
            pause = max(asked_s if asked_s <= self.config.max_retry_after_s else 0.0, self._backoff(errors))
            self._stats.retried += 1
            self._on_event(Event("retried", key, call.role, f"{result.reason}: {result.detail}", pause))
            # The slot stays taken, so that a failing endpoint gets fewer requests.
            await self._sleep(pause)

    async def _admitted(self, need: Need) -> tuple[Ticket, int]:
        """Wait for the breaker and the rate limit, in order of arrival; also returns the number of the probe, or 0."""
        async with self._turn:
            self._check_kept()
            while (wait := self.breaker.wait_s()) > 0:
                if self.breaker.down_s > self.config.outage_timeout_s:
                    raise EndpointError(
                        f"endpoint {self.name} ({self._address}) has been down for {self.breaker.down_s / 60:.0f} min "
                        f"({self.breaker.last_error}): its earlier answers are stored; when it is back, run the same "
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

    async def _withdraw(self, probe: int, worst: Reserved) -> None:
        """An admitted attempt is not sent."""
        self.limiter.ended()
        self.breaker.abandoned(probe)
        await self._purse.settle(worst)

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
        """One attempt: returns its answer, its final failure, or the error to retry. Settles its reservation."""
        self._length_field.rename(body)
        self._stats.sent += 1
        self._stats.in_flight += 1
        paid = 0.0
        uncertain = True  # until the endpoint has replied
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
            # The request was not sent, because of a fault of this machine.
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
        """The call's outcome through the Batch API. Returns None if it must be sent live."""
        why = ""
        for _ in range(ROUNDS):
            outcome = await self._in_one_batch(batches, key, call, body, size, attempt)
            if not isinstance(outcome, NotDone):
                return outcome
            live = not call.batch or self.config.batch.leftovers == "live"
            if live and not await batches.holds(key):
                return None
            if not attempt.wanted():
                raise asyncio.CancelledError
            why = outcome.detail
        return Failure(key, NOT_DONE, f"{why} ({ROUNDS} batches)")

    async def _in_one_batch(
        self, batches: BatchQueue, key: str, call: Call, body: dict[str, Any], size: int, attempt: Attempt
    ) -> Outcome | Suspicion | NotDone | None:
        """Like `_in_batch`, for one batch; returns NotDone if it gave no answer. Settles its reservation."""
        worst = await self._purse.take(call, size, batch=True)
        paid = 0.0
        lost: NotDone | None = None
        started = self._clock()
        try:
            await attempt.look()
            # Not committed while it waits: a batch outlives this process, and the next start resumes it.
            attempt.shipped = partial(batches.shipped, key)
            reply = await batches.chat(key, body, live=not call.batch, wanted=attempt.wanted)
            attempt.committed = True
            self._answered = True
            self._suspects.answered(shape_of(body))
            completion = self._completion(key, call, reply, self._clock() - started, worst)
            paid = completion.cost_usd or 0.0
            return completion
        except NotDone as left:
            lost = left if left.billed else None
            self._on_event(Event("retried", key, call.role, left.detail))
            return left
        except Rejected as rejected:
            return self._rejected(key, rejected)
        except Transient as transient:
            return Failure(key, transient.reason, transient.detail)
        except Refused as refused:
            if self._length_field.found(refused, body):
                return None  # a batch takes up to a day, and only this call is left: send it live
            return self._refused(key, call, refused)
        finally:
            if lost is not None:
                # Before the batch's record may be removed, so that a later start finds one of the two.
                attempt.committed = True
                await self._lost(worst, attempt)
                await batches.settled(key, lost)
                attempt.committed = False
            elif batches.unsettled(key):
                # Not recorded as lost: the open record of its batch is, and the next start counts what it cost.
                await self._purse.lose(worst, _nothing_kept)
            else:
                await self._purse.settle(worst, paid)

    # --- results

    async def _lost(self, worst: Reserved, attempt: Attempt) -> None:
        try:
            await self._purse.lose(worst, attempt.lose)
        except InfrastructureError as error:
            # Money must not be spent if that cannot be recorded.
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

    # --- faults of the call or of the endpoint

    def _refused(self, key: str, call: Call, refused: Refused) -> Suspicion:
        """Raises EndpointError if it is certainly the endpoint's fault."""
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
        """Seconds of backoff after this many consecutive failures: doubling up to `max_backoff_s`, times 0.5 to 1."""
        longest = min(self.config.max_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 60))
        return longest * self._rng.uniform(0.5, 1.0)
