"""A client's statistics, for people and for metrics.

This module knows nothing of how calls are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LATENCIES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class ServedStats:
    """The metrics of a server that the run started (`inference.server_metrics`)."""

    read_per_s: float
    """Prompt tokens per second, without those from its prefix cache."""
    written_per_s: float
    """Answers' tokens per second."""
    tokens: int
    """Tokens read and written since it started; grows while an answer is being written."""
    finished: int
    """Answers since it started."""
    running: int
    """Answers being written now."""
    queued: int
    """Requests waiting in the server."""


@dataclass(slots=True)
class Stats:
    """Counts since the client was created, and its current state."""

    sent: int = 0
    """Requests, counting each attempt."""
    completed: int = 0
    replayed: int = 0
    """Calls answered without their own request: from the journal, or by the same call in flight."""
    retried: int = 0
    """Attempts after an error or a timeout."""
    rate_limited: int = 0
    """Answers with status 429."""
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    """Requests in flight now."""
    waiting: int = 0
    """Calls accepted but not in flight: queued, pausing, or being written to the journal."""
    pausing: int = 0
    """Waiting calls that sleep until a known time: for a rate limit, a pause that the endpoint requested, the next
    probe of an endpoint that is down, or a backoff."""
    paused_s: float = 0.0
    """Seconds until the endpoint's rate limit allows calls again."""
    down_s: float = 0.0
    """How long the endpoint has been down."""
    sent_per_minute: int = 0
    """Requests in the last minute."""
    allowed_per_minute: float | None = None
    """Requests per minute that the limits allow; None if none is known."""
    spent_usd: float = 0.0
    """Spent by this client since it was created."""
    uncertain_usd: float = 0.0
    """What calls of unknown outcome may have cost in addition, since the client was created."""
    in_batches: int = 0
    """Calls that wait for a batch."""
    latency_p50_s: float | None = None
    """The median of the last answers' seconds."""
    latency_p95_s: float | None = None
    served: ServedStats | None = None
    """The server's metrics, if the run started the endpoint's server."""

    @property
    def ended(self) -> int:
        """Calls that have their outcome."""
        return self.completed + self.replayed + self.failed

    def moves(self, *, own_server: bool, now: int) -> int:
        """A number that changes with progress; it includes `now` while every wait has its own timeout.

        Such timeouts end a requested pause, an outage (`outage_timeout_s`), a batch (its window) and an attempt in
        flight (`timeout_s`). The `timeout_s` of the run's `own_server` does not count, because it is hours long and the
        server's tokens show progress.
        """
        waits = self.pausing or self.in_batches or (self.in_flight and not own_server)
        return self.ended + self.sent + (self.served.tokens if self.served else 0) + (now if waits else 0)


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a client reports."""

    kind: Literal["completed", "replayed", "retried", "rate_limited", "failed", "surprised"]
    key: str
    role: str
    detail: str = ""
    seconds: float = 0.0
    """The pause before the next attempt, or the answer's latency."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class Latencies:
    """Quantiles of the last answers' latencies, in seconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    def quantile(self, share: float) -> float | None:
        """The smallest latency that at least `share` of the answers did not exceed. Returns None without answers."""
        if not self._last:
            return None
        return sorted(self._last)[min(len(self._last) - 1, int(share * len(self._last)))]


def meter_line(endpoints: Mapping[str, Sequence[Stats]], spent: float, cap: float | None) -> str:
    """The endpoints' current state in one line: the sums over their proxies, and the run's spending.

    `spent` includes what may have been billed.
    """
    parts = [_endpoint(name, proxies) for name, proxies in endpoints.items()]
    doubt = sum(stats.uncertain_usd for proxies in endpoints.values() for stats in proxies)
    uncertain = f", ${doubt:,.2f} of it uncertain" if doubt >= 0.005 else ""
    if cap is not None:
        parts.append(f"${spent:,.2f} of ${cap:,.2f} spent{uncertain}")
    elif spent:
        parts.append(f"${spent:,.2f} spent{uncertain}")
    return " · ".join(parts)


def _endpoint(name: str, proxies: Sequence[Stats]) -> str:
    if served := [stats.served for stats in proxies if stats.served is not None]:
        down = max(stats.down_s for stats in proxies)
        return f"{name}: {'; '.join(map(_served, served))}" + (f", DOWN for {down:.0f} s, probing" if down else "")
    sent = sum(stats.sent_per_minute for stats in proxies)
    allowed = [stats.allowed_per_minute for stats in proxies if stats.allowed_per_minute is not None]
    of = f" of {sum(allowed):,.0f}" if allowed else ""
    words = [f"{sent:,}{of} requests/min"]
    for count, what in (
        (sum(stats.in_flight for stats in proxies), "in flight"),
        (sum(stats.waiting for stats in proxies), "waiting"),
        (sum(stats.in_batches for stats in proxies), "in batches"),
    ):
        if count:
            words.append(f"{count:,} {what}")
    medians = [stats.latency_p50_s for stats in proxies if stats.latency_p50_s is not None]
    if medians:
        words.append(f"{max(medians):.1f} s median")
    if paused := max(stats.paused_s for stats in proxies):
        words.append(f"rate limit: pausing {paused:.0f} s")
    if down := max(stats.down_s for stats in proxies):
        words.append(f"DOWN for {down:.0f} s, probing")
    return f"{name}: {', '.join(words)}"


def _served(stats: ServedStats) -> str:
    """A served endpoint's state: on a slow machine an answer takes minutes, and the token rates show progress."""
    words = [
        f"reads {stats.read_per_s:,.0f} and writes {stats.written_per_s:,.0f} tokens/s",
        f"{stats.finished:,} answers finished",
    ]
    if stats.running:
        words.append(f"{stats.running:,} running")
    if stats.queued:
        words.append(f"{stats.queued:,} waiting")
    return ", ".join(words)
