"""The rate limiter against simulated endpoints, in simulated time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import pytest

from lion_ray.config import LimitsConfig
from lion_ray.gateway.limits import FIRST_CONTACT, REQUESTS, TOKENS, Limiter, Need, ReportedLimit, Ticket
from lion_ray.gateway.wire import duration, reported_limits


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now


@dataclass
class TokenBucketServer:
    """Refills steadily, as OpenAI's does; a 429 names whole seconds, as Retry-After does."""

    per_minute: float
    capacity: float
    tells: bool
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.capacity

    def ask(self, now: float) -> tuple[bool, float, dict[str, ReportedLimit] | None]:
        rate = self.per_minute / 60
        self.level = min(self.capacity, self.level + (now - self.at) * rate)
        self.at = now
        granted = self.level >= 1
        if granted:
            self.level -= 1
        reset = (self.capacity - self.level) / rate
        told = {REQUESTS: ReportedLimit(self.per_minute, self.level, reset)} if self.tells else None
        return granted, 0.0 if granted else 1.0, told


@dataclass
class WindowServer:
    """Counts in whole minutes; a 429 names the minute's end."""

    per_minute: float
    tells: bool
    window: int = 0
    used: int = 0

    def ask(self, now: float) -> tuple[bool, float, dict[str, ReportedLimit] | None]:
        window = int(now // 60)
        if window != self.window:
            self.window, self.used = window, 0
        granted = self.used < self.per_minute
        self.used += granted
        left = 60 * (window + 1) - now
        told = {REQUESTS: ReportedLimit(self.per_minute, self.per_minute - self.used, left)} if self.tells else None
        return granted, 0.0 if granted else left, told


@dataclass
class Seen:
    answered: int = 0
    limited: int = 0


def simulate(
    limiters: list[Limiter],
    time: Time,
    server: TokenBucketServer | WindowServer,
    *,
    seconds: float,
    in_flight: int,
    latency: float,
    refusal_latency: float | None = None,
) -> list[Seen]:
    """Each limiter's client always has work for `in_flight` requests; the server decides when a request arrives."""
    seen = [Seen() for _ in limiters]
    out = [0] * len(limiters)
    events: list[tuple[float, int, str, int, Any]] = []
    serial = 0

    def push(at: float, kind: str, who: int, what: Any = None) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (at, serial, kind, who, what))

    for who in range(len(limiters)):
        push(0.0, "try", who)
    while events and events[0][0] < seconds:
        time.now, _, kind, who, what = heapq.heappop(events)
        limiter = limiters[who]
        if kind == "try":
            while out[who] < in_flight:
                granted = limiter.take(Need(10, 10))
                if not isinstance(granted, Ticket):
                    push(time.now + max(granted, 0.0005), "try", who)
                    break
                out[who] += 1
                push(time.now + latency / 2, "arrive", who, granted)
        elif kind == "arrive":
            said = server.ask(time.now)
            way_back = latency / 2 if said[0] or refusal_latency is None else refusal_latency
            push(time.now + way_back, "back", who, (what, said))
        else:
            ticket, (passed, pause, told) = what
            full = out[who] == in_flight
            out[who] -= 1
            limiter.ended()
            if passed:
                seen[who].answered += 1
                limiter.answered(ticket, 10, 10, told)
            else:
                seen[who].limited += 1
                limiter.limited(ticket, pause, told)
            if full:
                push(time.now, "try", who)
    return seen


@pytest.mark.parametrize("latency", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("capacity", [100, 1500, 6000])
def test_a_told_limit_is_used_and_not_overrun(capacity: float, latency: float) -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    server = TokenBucketServer(6000, capacity, tells=True)
    (seen,) = simulate([limiter], time, server, seconds=60, in_flight=256, latency=latency)
    assert seen.answered >= 0.97 * 6000 * (60 - 2 * latency) / 60
    assert seen.limited < 0.01 * seen.answered


@pytest.mark.parametrize("capacity", [100, 1500])
def test_a_limit_that_only_429s_tell_is_found(capacity: float) -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    server = TokenBucketServer(6000, capacity, tells=False)
    (seen,) = simulate([limiter], time, server, seconds=60, in_flight=256, latency=0.05)
    assert seen.answered >= 0.9 * 6000
    later = simulate([limiter], time, server, seconds=240, in_flight=256, latency=0.05)
    assert later[0].limited < 0.1 * later[0].answered


@pytest.mark.parametrize("latency", [0.05, 1.0])
def test_a_limit_is_found_where_refusals_come_back_before_answers(latency: float) -> None:
    # At the first 429 next to nothing has been answered, and that is no measure of the endpoint.
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    server = TokenBucketServer(6000, 100, tells=False)
    (seen,) = simulate([limiter], time, server, seconds=60, in_flight=256, latency=latency, refusal_latency=0.001)
    assert seen.answered >= 0.85 * 6000


def test_a_first_request_that_is_refused_is_no_measure() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    first = limiter.take(Need())
    assert isinstance(first, Ticket)
    limiter.ended()
    limiter.limited(first, 0.0, None)
    assert limiter.allowed_per_minute == 30


def test_a_limit_that_is_raised_is_used_within_minutes() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    server = TokenBucketServer(600, 10, tells=False)
    simulate([limiter], time, server, seconds=60, in_flight=64, latency=0.05)
    server.per_minute, server.capacity = 6000, 100
    simulate([limiter], time, server, seconds=180, in_flight=64, latency=0.05)
    (seen,) = simulate([limiter], time, server, seconds=240, in_flight=64, latency=0.05)
    assert seen.answered >= 0.9 * 6000


@pytest.mark.parametrize("tells", [True, False])
def test_an_endpoint_that_counts_by_the_minute(tells: bool) -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    (seen,) = simulate([limiter], time, WindowServer(600, tells), seconds=300, in_flight=64, latency=0.05)
    assert seen.answered >= 0.9 * 600 * 5


def test_a_configured_limit_is_kept() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(requests_per_minute=600), clock=time.clock)
    server = TokenBucketServer(60_000, 60_000, tells=False)
    (seen,) = simulate([limiter], time, server, seconds=60, in_flight=64, latency=0.02)
    assert 0.97 * 600 <= seen.answered <= 1.01 * 600
    assert limiter.allowed_per_minute == 600
    assert seen.answered - 20 <= limiter.sent_per_minute <= 605


def test_a_configured_limit_caps_a_told_one() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(requests_per_minute=600), clock=time.clock)
    (seen,) = simulate(
        [limiter], time, TokenBucketServer(6000, 6000, tells=True), seconds=60, in_flight=64, latency=0.02
    )
    assert seen.answered <= 1.01 * 600


def test_proxies_split_a_limit_fairly() -> None:
    time = Time()
    limiters = [Limiter(LimitsConfig(), clock=time.clock, proxies=3) for _ in range(3)]
    server = TokenBucketServer(6000, 300, tells=True)
    seen = simulate(limiters, time, server, seconds=60, in_flight=64, latency=0.05)
    counts = [one.answered for one in seen]
    assert sum(counts) >= 0.95 * 6000
    assert min(counts) >= 0.9 * max(counts)
    assert sum(one.limited for one in seen) < 0.01 * sum(counts)


def test_a_share_leaves_the_rest_to_others() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(share=0.25), clock=time.clock)
    (seen,) = simulate(
        [limiter], time, TokenBucketServer(6000, 100, tells=True), seconds=60, in_flight=64, latency=0.05
    )
    assert 0.95 * 1500 <= seen.answered <= 1.03 * 1500


def test_one_429_pauses_everything_in_full() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    ticket = limiter.take(Need())
    assert isinstance(ticket, Ticket)
    limiter.ended()
    limiter.limited(ticket, 30.0, None)
    assert limiter.take(Need()) == limiter.paused_s == 30.0
    time.now = 29.5
    assert limiter.take(Need()) == 0.5
    time.now = 30.0
    assert isinstance(limiter.take(Need()), Ticket)


def test_429s_of_one_burst_cut_the_rate_once() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    first = limiter.take(Need())
    assert isinstance(first, Ticket)
    limiter.ended()
    limiter.answered(first, 1, 1, None)
    burst = [limiter.take(Need()) for _ in range(50)]
    time.now = 1.0
    rates = set()
    for ticket in burst:
        assert isinstance(ticket, Ticket)
        limiter.ended()
        limiter.limited(ticket, 1.0, None)
        rates.add(limiter.allowed_per_minute)
    assert len(rates) == 1


def test_few_go_before_the_first_answer() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time.clock)
    tickets = [limiter.take(Need()) for _ in range(FIRST_CONTACT)]
    assert all(isinstance(ticket, Ticket) for ticket in tickets)
    assert isinstance(limiter.take(Need()), float)
    limiter.ended()
    assert isinstance(tickets[0], Ticket)
    limiter.answered(tickets[0], 1, 1, None)
    assert isinstance(limiter.take(Need()), Ticket)


def test_tokens_are_limited_by_what_calls_really_take() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(tokens_per_minute=60_000), clock=time.clock)
    sent = 0
    while time.now < 60:
        granted = limiter.take(limiter.need(400, 1000))
        if isinstance(granted, Ticket):
            sent += 1
            limiter.ended()
            limiter.answered(granted, 100, 100, None)  # a tenth of what it might have written
        else:
            time.now += granted
    assert 0.9 * 300 <= sent <= 1.05 * 300


def test_a_call_larger_than_the_bucket_is_slow_and_not_stuck() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(tokens_per_minute=600), clock=time.clock)
    moments: list[float] = []
    while len(moments) < 3:
        granted = limiter.take(Need(100, 0))
        if isinstance(granted, Ticket):
            moments.append(time.now)
            limiter.ended()
            limiter.answered(granted, 100, 0, None)
        else:
            time.now += granted
    assert moments == pytest.approx([0.0, 10.0, 20.0], abs=0.5)


def test_a_limit_by_the_day_is_known_by_its_reset() -> None:
    assert ReportedLimit(14_400, 14_370, 180).per_second() == pytest.approx(14_400 / 86_400)
    assert ReportedLimit(6000, 5990, 0.1).per_second() == 100
    assert ReportedLimit(6000, 6000, 0.0).per_second() == 100
    assert ReportedLimit(6000, 0, 60).per_second() == 100


def test_headers_tell_limits() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert reported_limits(headers) == {
        REQUESTS: ReportedLimit(60, 59, 1.0),
        TOKENS: ReportedLimit(150_000, 149_984, 360.0),
    }
    assert reported_limits({"x-ratelimit-limit-requests": "60"}) is None
    assert reported_limits({"x-ratelimit-limit-requests": "lots", "x-ratelimit-remaining-requests": "1"}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("7", 7),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))
