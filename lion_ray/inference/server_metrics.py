"""A vLLM server's Prometheus counters, and rates computed from them.

Invariant: rates count only computed tokens; prompt tokens from the prefix cache are left out.

Source: vLLM's metrics (``GET /metrics``, names under ``vllm:``). This module does not know HTTP or server processes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lion_ray.gateway.stats import ServedStats

WINDOW_S = 20.0
"""Rates are averaged over this many seconds: one step of a slow server takes several seconds."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """A server's counters since it started, and its queue now."""

    read: float = 0.0
    """Prompt tokens computed."""
    written: float = 0.0
    """Tokens generated, including those of unfinished answers."""
    finished: float = 0.0
    """Finished requests, successful or not."""
    running: float = 0.0
    """Requests in progress now."""
    queued: float = 0.0
    """Requests waiting in the queue now."""


def parse_counts(text: str) -> ServerCounts:
    """The counts on a server's /metrics page, summed over its engines. A count missing from the page is 0."""
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
    """Rates over the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, ServerCounts]] = deque()

    def add(self, now: float, counts: ServerCounts) -> ServedStats:
        """Add the counts at `now` (seconds of a monotonic clock). Returns the current rates."""
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
