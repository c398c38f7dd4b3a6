"""What a client has done and is doing, for people and for metrics.

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
    """What a server that the run started itself is doing, by its own account (`inference.server_metrics`)."""

    read_per_s: float
    """Prompt tokens per second, those in its prefix cache left out."""
    written_per_s: float
    """Answers' tokens per second."""
    tokens: int
    """Read and written since it started: grows while an answer is being written."""
    finished: int
    """Answers since it started."""
    running: int
    """Answers being written now."""
    queued: int
    """Requests that wait in the server."""


@dataclass(slots=True)
class Stats:
    """Counts since a client was made, and what it is doing now."""

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
    down_s: float = 0.0
    """How long the endpoint has been down."""
    sent_per_minute: int = 0
    """Requests in the last minute."""
    allowed_per_minute: float | None = None
    """Requests in a minute that the limits allow, where any is known."""
    spent_usd: float = 0.0
    """By this client, since it was made."""
    uncertain_usd: float = 0.0
    """What calls of unknown fate may have cost on top, since the client was made."""
    in_batches: int = 0
    """Calls that wait for a batch."""
    latency_p50_s: float | None = None
    """The median of the last answers' seconds."""
    latency_p95_s: float | None = None
    served: ServedStats | None = None
    """Where the run started the endpoint's server itself."""

    @property
    def ended(self) -> int:
        """Calls that have their outcome."""
        return self.completed + self.replayed + self.failed


@dataclass(frozen=True, slots=True)
class Event:
    """Something a client reports as it happens."""

    kind: Literal["completed", "replayed", "retried", "rate_limited", "failed", "surprised"]
    key: str
    role: str
    detail: str = ""
    seconds: float = 0.0
    """The pause before the next attempt, or how long the answer took."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class Latencies:
    """Quantiles of the last answers' times, in seconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    def quantile(self, share: float) -> float | None:
        """The smallest time that at least `share` of the answers did not exceed; None without answers."""
        if not self._last:
            return None
        return sorted(self._last)[min(len(self._last) - 1, int(share * len(self._last)))]


def meter_line(endpoints: Mapping[str, Sequence[Stats]], spent: float, cap: float | None) -> str:
    """What endpoints do now, in one line: their proxies' numbers added, and the run's money.

    `spent`: with what may have been billed.
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
    """A server's own line: on a slow machine an answer takes minutes, and its tokens show that it comes."""
    words = [
        f"reads {stats.read_per_s:,.0f} and writes {stats.written_per_s:,.0f} tokens/s",
        f"{stats.finished:,} answers finished",
    ]
    if stats.running:
        words.append(f"{stats.running:,} under way")
    if stats.queued:
        words.append(f"{stats.queued:,} waiting")
    return ", ".join(words)
