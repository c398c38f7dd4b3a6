"""What a vLLM server says of its work: its Prometheus counters, and rates made of them.

Invariant: a rate is of work that was done: prompt tokens that came out of the prefix cache are not counted as read.

Source: vLLM's metrics (``GET /metrics``, names under ``vllm:``). This module knows no HTTP and no server processes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lion_ray.gateway.stats import ServedStats

WINDOW_S = 20.0
"""Rates are means over so many seconds: a slow server moves in steps of some seconds."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """A server's counters since it started, and its queue now."""

    read: float = 0.0
    """Prompt tokens that it computed."""
    written: float = 0.0
    """Tokens of answers, also of those that are not finished."""
    finished: float = 0.0
    """Answers, however they ended."""
    running: float = 0.0
    """Requests that it computes now."""
    queued: float = 0.0
    """Requests that wait for one of those to end."""


def parse_counts(text: str) -> ServerCounts:
    """The counts in a server's /metrics page, summed over its engines; 0 for what the page does not hold."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("vllm:"):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value

    def of(name: str) -> float:
        return found.get(f"vllm:{name}", 0.0)

    return ServerCounts(
        read=of("prompt_tokens_total") - of("prompt_tokens_cached_total"),
        written=of("generation_tokens_total"),
        finished=of("request_success_total"),
        running=of("num_requests_running"),
        queued=of("num_requests_waiting"),
    )


class ServerRates:
    """Counts of the last `WINDOW_S` seconds as rates."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, ServerCounts]] = deque()

    def add(self, now: float, counts: ServerCounts) -> ServedStats:
        """Take the counts of `now` (seconds, of a clock that only goes on); returns what to show."""
        seen = self._seen
        seen.append((now, counts))
        while len(seen) > 2 and seen[1][0] <= now - WINDOW_S:
            seen.popleft()
        began, first = seen[0]
        seconds = now - began
        return ServedStats(
            read_per_s=(counts.read - first.read) / seconds if seconds else 0.0,
            written_per_s=(counts.written - first.written) / seconds if seconds else 0.0,
            tokens=round(counts.read + counts.written),
            finished=round(counts.finished),
            running=round(counts.running),
            queued=round(counts.queued),
        )
