"""The way to one endpoint: every call is looked up, bought at most once, journaled, and only then seen.

Invariants:
- A completion is in the journal, durably, before a caller gets it. A call whose key the journal knows sends nothing.
- Calls of one key that are under way together are one purchase.
- At most `max_concurrency` requests are in flight.
- A 429 costs no attempt and gives up no row. Until the moment it names, no call of this client is sent.
- What is wrong with one call is a Failure; what is wrong with the endpoint is an EndpointError.
- A caller that goes away does not stop a request that was sent: its answer is paid for and gets journaled. A call
  that was not sent yet and that nobody waits for any more is dropped.

Time is read and slept through `clock` and `sleep`, which tests replace.

This module knows nothing of HTTP (`transport`, `wire`), of files (`journal`) or of Ray.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

import orjson

from lion_ray.config import EndpointConfig
from lion_ray.errors import EndpointError, InfrastructureError
from lion_ray.gateway.calls import Account, Call, Completion, Failure, Outcome
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.transport import OpenAITransport, Transport
from lion_ray.gateway.wire import (
    RateLimited,
    Refused,
    Rejected,
    Reply,
    Transient,
    Unreachable,
    as_sent,
    shorten,
    wire_body,
)

FIRST_BACKOFF_S = 0.5


@dataclass(slots=True)
class Stats:
    """What a client has done since it was made, and is doing now."""

    sent: int = 0
    """Requests, each attempt counted."""
    completed: int = 0
    replayed: int = 0
    """Calls answered without a request of their own: by the journal, or by the same call under way."""
    retried: int = 0
    """Attempts after an error or a time-out."""
    rate_limited: int = 0
    """Answers with status 429."""
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    """Requests that are out now."""
    waiting: int = 0
    """Calls accepted and not out now: queued, pausing, or being written to the journal."""
    paused_s: float = 0.0
    """Seconds until the endpoint's rate limit lets calls go again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something a client reports as it happens."""

    kind: Literal["completed", "replayed", "retried", "rate_limited", "failed"]
    key: str
    role: str
    detail: str = ""
    seconds: float = 0.0
    """The pause before the next attempt, or how long the answer took."""


@dataclass(slots=True)
class _Flight:
    """A call under way, and how many wait for it."""

    task: asyncio.Task[Outcome] | None = None
    waiters: int = 0
    committed: bool = False
    """A request is out, or its answer is being written: no longer to be dropped."""


class Client:
    """Sends calls to one endpoint. Use it from one event loop; the journal stays its owner's to close."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        journal: Journal,
        *,
        transport: Transport | None = None,
        base_url: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """The endpoint called `name` in the configuration.

        `base_url` overrides the config's, for a server that the run started. Without a `transport`, reads the API key
        from the environment. Raises EndpointError where the key is missing or the address is none.
        """
        self.name = name
        self.config = config
        self.address = base_url or config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if transport is None:
            if config.serve is not None and base_url is None:
                raise ValueError(f"endpoint {name} is served by the run: base_url must say where")
            if urlsplit(self.address).scheme not in ("http", "https") or not urlsplit(self.address).hostname:
                raise EndpointError(
                    f"endpoint {name}: '{self._shown}' is no address; base_url starts with http:// or https://"
                )
            transport = OpenAITransport(config, self.address, self._read_key())
        self._transport = transport
        self._journal = journal
        self._on_event = on_event or _ignore
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._flights: dict[str, _Flight] = {}
        self._not_before = clock()
        self._answered = False
        self._closed = False
        self._stats = Stats()

    @property
    def stats(self) -> Stats:
        """A snapshot."""
        return replace(
            self._stats,
            waiting=len(self._flights) - self._stats.in_flight,
            paused_s=max(0.0, self._not_before - self._clock()),
        )

    async def complete(self, call: Call) -> Outcome:
        """The call's completion, from the journal or bought; or a Failure where this one call cannot be had.

        A completion that was bought for another caller at the same time comes back `replayed`, as one that the
        journal held: it was paid for once.

        Raises EndpointError where the endpoint refuses every call, InfrastructureError where the journal cannot be
        written or the client was closed.
        """
        if self._closed:
            raise self._closed_error()
        call = as_sent(call, self.config)
        try:
            key = call.key(self.config.model)
        except orjson.JSONEncodeError as cause:
            # A lone surrogate in a user's file, for one. It has no canonical form, so no key.
            return self._fail(Failure("", "not valid text", shorten(str(cause))), call)
        flight = self._flights.get(key)
        shared = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._fly(key, call, flight))
        outcome = await self._wait_for(key, flight)
        if shared and isinstance(outcome, Completion):
            if not outcome.replayed:
                outcome = replace(outcome, replayed=True)
            self._stats.replayed += 1
        return outcome

    async def close(self) -> None:
        """Let requests that are out come home and be journaled, end the other calls, give back connections.

        Callers whose call was not out get an InfrastructureError.
        """
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            if flight.task is not None and not flight.committed:
                flight.task.cancel()
        await asyncio.gather(*(flight.task for flight in flights if flight.task is not None), return_exceptions=True)
        await self._transport.close()

    # --- a call's way

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
            if not flight.waiters and not flight.committed and not flight.task.done():
                flight.task.cancel()
                # At once, so that the same call asked again does not join a flight that is ending.
                self._forget(key, flight)

    async def _fly(self, key: str, call: Call, flight: _Flight) -> Outcome:
        try:
            known = await self._journal.get(key)
            if known is not None:
                self._stats.replayed += 1
                self._on_event(Event("replayed", key, call.role))
                return known
            async with self._slots:
                bought = await self._attempts(key, call, flight)
            if isinstance(bought, Failure):
                return self._fail(bought, call)
            await self._journal.put(bought, Account(role=call.role, stage=call.stage))
            self._stats.completed += 1
            self._stats.prompt_tokens += bought.prompt_tokens
            self._stats.completion_tokens += bought.completion_tokens
            self._on_event(Event("completed", key, call.role, bought.finish_reason, bought.seconds))
            return bought
        finally:
            self._forget(key, flight)

    async def _attempts(self, key: str, call: Call, flight: _Flight) -> Outcome:
        """Send until there is an answer, a reason to stop, or no attempt left."""
        body = wire_body(call, self.config)
        limited = errors = 0
        while True:
            while (pause := self._not_before - self._clock()) > 0:
                await self._sleep(pause)
            flight.committed = True
            started = self._clock()
            self._stats.sent += 1
            self._stats.in_flight += 1
            error: Transient | None = None
            try:
                reply = await self._transport.chat(body)
                self._answered = True
                return self._completion(key, reply, self._clock() - started)
            except RateLimited as limit:
                limited += 1
                self._stats.rate_limited += 1
                pause = limit.retry_after_s or self._backoff(limited)
                self._not_before = max(self._not_before, self._clock() + pause)
                self._on_event(Event("rate_limited", key, call.role, limit.detail, pause))
            except Transient as transient:
                error = transient
            except Rejected as rejected:
                return Failure(key, rejected.reason, rejected.detail)
            except Refused as refused:
                raise self._refusal(refused) from None
            finally:
                self._stats.in_flight -= 1
            flight.committed = False
            if self._closed or not flight.waiters:
                # Whoever wanted it left while the request was out, and there is no answer to save.
                raise asyncio.CancelledError
            if error is None:
                continue
            errors += 1
            if errors >= self.config.max_attempts:
                if isinstance(error, Unreachable) and not self._answered:
                    raise EndpointError(
                        f"endpoint {self.name} cannot be reached at {self._shown} after {errors} attempts"
                        f" ({error.detail}): check endpoints.{self.name}.base_url and the network"
                    )
                return Failure(key, error.reason, f"{error.detail} (attempt {errors} of {errors})")
            pause = max(error.retry_after_s or 0.0, self._backoff(errors))
            self._stats.retried += 1
            self._on_event(Event("retried", key, call.role, f"{error.reason}: {error.detail}", pause))
            # The slot stays taken: fewer requests go to an endpoint that is in trouble.
            await self._sleep(pause)

    def _backoff(self, failures: int) -> float:
        """Seconds after so many failures in a row: doubling, at most `max_backoff_s`, with jitter down to a half."""
        longest = min(self.config.max_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 60))
        return longest * self._rng.uniform(0.5, 1.0)

    def _completion(self, key: str, reply: Reply, seconds: float) -> Completion:
        return Completion(
            key=key,
            text=reply.text,
            finish_reason=reply.finish_reason,
            model=reply.model or self.config.model,
            endpoint=self.name,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            seconds=round(seconds, 4),
        )

    # --- accounts

    def _fail(self, failure: Failure, call: Call) -> Failure:
        self._stats.failed += 1
        self._on_event(Event("failed", failure.key, call.role, f"{failure.reason}: {failure.detail}"))
        return failure

    def _forget(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    # --- what the user is told

    def _read_key(self) -> str | None:
        variable = self.config.api_key_env
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise EndpointError(
                f"endpoint {self.name} ({self._shown}) needs a key: set the environment variable {variable}"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            # Found here, as the HTTP library's complaint could quote it.
            raise EndpointError(
                f"endpoint {self.name} ({self._shown}): {variable} holds characters that no key has, such as a space"
            )
        return key

    def _refusal(self, refused: Refused) -> EndpointError:
        variable = self.config.api_key_env
        who = f"endpoint {self.name} ({self._shown})"
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

    def _closed_error(self) -> InfrastructureError:
        return InfrastructureError(f"the client of endpoint {self.name} was closed before this call was answered")

    @property
    def _shown(self) -> str:
        """The address without a user, password or query that someone may have put into it."""
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _ignore(event: Event) -> None:
    """The default for `on_event`."""
