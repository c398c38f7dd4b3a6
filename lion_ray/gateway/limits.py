"""The rate limiter of an endpoint: a state machine whose clock is passed in, without a network.

Invariants:
- Nothing is sent before the time that a 429 named, whichever call it answered (RFC 9110, 10.2.3): `pause` holds for
  all calls.
- A limit from x-ratelimit-* headers is used except for a `MARGIN`. A configured limit is never exceeded over a minute
  by more than `BURST_S` seconds' worth.
- Without known limits the rate adapts to 429s: down to the rate that succeeded between them, then up slowly.
- One burst of 429s, to requests in flight together, cuts the rate once.
- A call that is larger than a whole burst is sent when its bucket is full: large calls are slow, never stuck.

Times are seconds on the given clock; rates are per second internally, per minute for people.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lion_ray.config import LimitsConfig

REQUESTS, TOKENS, INPUT, OUTPUT = "requests", "tokens", "input-tokens", "output-tokens"
KINDS = (REQUESTS, TOKENS, INPUT, OUTPUT)

BURST_S = 0.25
"""The burst of a configured limit, in seconds of its rate: enough to bridge delays of a busy event loop."""
MARGIN = 0.02
"""Share of a reported limit's burst that is left unused, because reports arrive late and out of order."""
FIRST_CONTACT = 4
"""Requests sent before an endpoint's first answer has reported its limits."""

# The adaptive rate. Below the band it returns quickly to where it was cut; in the band and above, slowly.
CUT, KEPT = 0.5, 0.97
BAND = 0.95
GROWTH_BELOW, GROWTH_IN_BAND, GROWTH_ABOVE = 0.05, 0.002, 0.01  # of the ceiling, in a second
DOUBLING_S = 10.0
"""Above the ceiling the growth doubles in this time, so that a raised or misjudged limit is found within a minute."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ReportedLimit:
    """One limit as reported in an answer's headers (OpenAI: x-ratelimit-limit-requests and so on)."""

    limit: float
    remaining: float
    reset_s: float | None = None
    """Seconds until the limit is fully reset."""

    def per_second(self) -> float:
        """The limit's rate: per minute, unless its reset shows that it refills over a day."""
        used = self.limit - self.remaining
        if self.reset_s and used >= 1 and used / self.reset_s < 2 * self.limit / DAY_S:
            return self.limit / DAY_S
        return self.limit / 60


@dataclass(frozen=True, slots=True)
class Need:
    """The amount of each limit that one call will use; tokens are estimates until it is answered."""

    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def of(self, kind: str) -> float:
        match kind:
            case "requests":
                return 1.0
            case "input-tokens":
                return self.input_tokens
            case "output-tokens":
                return self.output_tokens
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Ticket:
    """A permitted request, and the total taken of each limit when it was permitted."""

    need: Need
    at: float
    taken: Mapping[str, float]


class Bucket:
    """A token bucket: refills at `rate`, holds at most `capacity`; one large call may overdraw it."""

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate, self.capacity = rate, capacity
        self.level = capacity
        self.taken = 0.0
        """The total ever taken."""
        self._at = now

    def refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self._at) * self.rate)
        self._at = now

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` may be taken."""
        missing = min(amount, self.capacity) - self.level
        # Less than a ten-thousandth is rounding, for which waits would have no length.
        return missing / self.rate if missing > 1e-4 else 0.0

    def pace(self, rate: float) -> None:
        """Change the rate, and the burst with it."""
        self.rate, self.capacity = rate, max(1.0, rate * BURST_S)
        self.level = min(self.level, self.capacity)


class Limiter:
    """The limits of one endpoint, for one of `proxies` that share them."""

    def __init__(
        self, config: LimitsConfig, *, clock: Callable[[], float], proxies: int = 1, cautious: bool = True
    ) -> None:
        """`cautious`: send only `FIRST_CONTACT` requests before the first answer; not needed for the run's own server.

        `clock` returns seconds.
        """
        self._clock = clock
        self._share = config.share / proxies
        now = clock()
        configured = {
            REQUESTS: config.requests_per_minute,
            TOKENS: config.tokens_per_minute,
            INPUT: config.input_tokens_per_minute,
            OUTPUT: config.output_tokens_per_minute,
        }
        self._configured = {kind: limit / 60 * self._share for kind, limit in configured.items() if limit is not None}
        self._buckets = {kind: _paced(rate, now) for kind, rate in self._configured.items()}
        self._adaptive = _Adaptive(now)
        self._not_before = now
        self._answered = not cautious
        self._out = 0
        self._sends: deque[tuple[int, int]] = deque()  # (second, requests sent in it), the last minute's
        self._input_ratio = self._output_ratio = 1.0

    # --- requests

    def need(self, characters: int, max_tokens: int) -> Need:
        """Estimate the tokens of a call of this size, by the usage of earlier calls."""
        return Need(max(1.0, characters / 4 * self._input_ratio), max(1.0, max_tokens * self._output_ratio))

    def take(self, need: Need) -> Ticket | float:
        """Take a call's share of every limit; or take nothing and return the least number of seconds to wait."""
        now = self._clock()
        if now < self._not_before:
            return self._not_before - now
        if not self._answered and self._out >= FIRST_CONTACT:
            return 0.02  # until a request in flight is answered
        wait = self._adaptive.wait_s(now)
        for kind, bucket in self._buckets.items():
            bucket.refill(now)
            wait = max(wait, bucket.wait_s(need.of(kind)))
        if wait > 0:
            return wait
        for kind, bucket in self._buckets.items():
            bucket.level -= need.of(kind)
            bucket.taken += need.of(kind)
        self._adaptive.take(now)
        self._out += 1
        self._note_send(now)
        return Ticket(need, now, {kind: bucket.taken for kind, bucket in self._buckets.items()})

    # --- results

    def ended(self) -> None:
        """A request is no longer in flight, whatever its result."""
        self._out -= 1

    def answered(
        self, ticket: Ticket, prompt_tokens: int, completion_tokens: int, reported: Mapping[str, ReportedLimit] | None
    ) -> None:
        """A request succeeded; the buckets are corrected by the error of its estimate."""
        now = self._clock()
        self._answered = True
        self._adaptive.succeeded(ticket.at)
        need = ticket.need
        if prompt_tokens:
            used = Need(prompt_tokens, completion_tokens)
            for kind, bucket in self._buckets.items():
                if kind != REQUESTS:
                    bucket.level = min(bucket.capacity, bucket.level + need.of(kind) - used.of(kind))
            self._input_ratio *= 1 + 0.05 * (prompt_tokens / max(need.input_tokens, 1.0) - 1)
            self._output_ratio *= 1 + 0.05 * (completion_tokens / max(need.output_tokens, 1.0) - 1)
            self._output_ratio = min(1.0, max(0.01, self._output_ratio))
        if reported:
            self._heed(ticket, reported, now)

    def limited(self, ticket: Ticket, pause_s: float, reported: Mapping[str, ReportedLimit] | None) -> None:
        """A request was answered with a 429 that requires a pause of `pause_s` seconds."""
        now = self._clock()
        self._answered = True
        self.pause(pause_s)
        self._adaptive.limited(ticket.at, now)
        if reported:
            self._heed(ticket, reported, now)

    def pause(self, seconds: float) -> None:
        """Send nothing for this long, because another proxy of the endpoint got a 429."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _heed(self, ticket: Ticket, reported: Mapping[str, ReportedLimit], now: float) -> None:
        for kind, limit in reported.items():
            if kind not in KINDS or limit.limit <= 0:
                continue
            rate = limit.per_second() * self._share
            if self._configured.get(kind, math.inf) <= rate:
                continue  # the configured limit is lower
            remaining = limit.remaining * self._share
            bucket = self._buckets.get(kind)
            if bucket is None:
                bucket = self._buckets[kind] = Bucket(rate, max(1.0, remaining), now)
            bucket.refill(now)
            bucket.rate, bucket.capacity = rate, max(bucket.capacity, remaining)
            # The endpoint counted when this request arrived; since then its limit has refilled and others were sent.
            # The level is only ever lowered: the rest of a share belongs to other users.
            since = bucket.taken - ticket.taken.get(kind, 0.0)
            margin = max(1.0, MARGIN * bucket.capacity)
            bucket.level = min(bucket.level, remaining + rate * (now - ticket.at) - since - margin)

    # --- for people

    @property
    def paused_s(self) -> float:
        """Seconds until the end of the pause that a 429 required."""
        return max(0.0, self._not_before - self._clock())

    @property
    def allowed_per_minute(self) -> float | None:
        """Requests per minute that the limits allow. Returns None if no limit is known."""
        rates = [bucket.rate for kind, bucket in self._buckets.items() if kind == REQUESTS]
        if self._adaptive.bucket is not None:
            rates.append(self._adaptive.bucket.rate)
        return min(rates) * 60 if rates else None

    @property
    def sent_per_minute(self) -> int:
        """Requests sent in the last minute."""
        self._forget_sends(int(self._clock()))
        return sum(count for _, count in self._sends)

    def _note_send(self, now: float) -> None:
        second = int(now)
        if self._sends and self._sends[-1][0] == second:
            self._sends[-1] = (second, self._sends[-1][1] + 1)
        else:
            self._forget_sends(second)
            self._sends.append((second, 1))

    def _forget_sends(self, second: int) -> None:
        while self._sends and self._sends[0][0] <= second - 60:
            self._sends.popleft()


class _Adaptive:
    """The adaptive rate of an endpoint that does not report its limit, estimated from the requests that succeed.

    A period lasts from one cut to the next. A successful request counts for the period in which it was sent, even if
    its answer arrives after the cut: refusals arrive sooner than answers.
    """

    def __init__(self, now: float) -> None:
        self.bucket: Bucket | None = None  # none until the first 429
        self._ceiling = math.inf
        self._grown_at = now
        self._bound = False  # whether the rate, not the caller, has limited requests since it last grew
        self._above_s = 0.0
        """How long the rate has been growing above its ceiling, which may be far too low by now."""
        self._cut_at = -math.inf
        self._since: float | None = None
        self._passed = 0
        self._ended = (1.0, 0)
        """The previous period: its seconds, and its number of successful requests."""
        self._uncut = math.inf

    def wait_s(self, now: float) -> float:
        if self.bucket is None:
            return 0.0
        self._grow(now)
        self.bucket.refill(now)
        wait = self.bucket.wait_s(1.0)
        self._bound = self._bound or wait > 0
        return wait

    def take(self, now: float) -> None:
        if self._since is None:
            self._since = now
        if self.bucket is not None:
            self.bucket.level -= 1.0

    def succeeded(self, sent_at: float) -> None:
        if sent_at > self._cut_at:
            self._passed += 1
            return
        seconds, passed = self._ended
        self._ended = seconds, passed + 1
        if self.bucket is not None and (rate := self._cut()) > self.bucket.rate:
            self.bucket.pace(rate)
            self._ceiling = max(self._ceiling, rate)

    def limited(self, sent_at: float, now: float) -> None:
        if sent_at <= self._cut_at:
            return  # it was in flight together with the requests for which the rate was cut
        self._ended = max(now - (self._since or 0.0), 0.05), self._passed
        self._uncut = self.bucket.rate if self.bucket is not None else math.inf
        cut = self._cut()
        self._ceiling = min(self._uncut, max(cut, 1.0))
        if self.bucket is None:
            self.bucket = _paced(cut, now)
        self.bucket.pace(cut)
        self._cut_at = self._grown_at = self._since = now
        self._passed, self._bound, self._above_s = 0, False, 0.0

    def _cut(self) -> float:
        """The rate to cut to: the rate of successes, which is the endpoint's rate once its burst is used up."""
        seconds, passed = self._ended
        found = passed / seconds
        rate = max(found, 1.0) if math.isinf(self._uncut) else self._uncut
        return max(CUT * rate, KEPT * min(found, rate), 1 / 60)

    def _grow(self, now: float) -> None:
        assert self.bucket is not None
        elapsed, self._grown_at = now - self._grown_at, now
        if not self._bound:
            return
        self._bound = False
        rate = self.bucket.rate
        if rate < BAND * self._ceiling:
            share = GROWTH_BELOW
        elif rate < self._ceiling:
            share = GROWTH_IN_BAND
        else:
            share = min(1.0, GROWTH_ABOVE * 2 ** (self._above_s / DOUBLING_S))
            self._above_s += min(elapsed, 1.0)
            self._ceiling = rate
        # At most a second counts: during a pause the rate was not tested.
        rate += share * self._ceiling * min(elapsed, 1.0)
        self.bucket.pace(rate)


def _paced(rate: float, now: float) -> Bucket:
    return Bucket(rate, max(1.0, rate * BURST_S), now)
