"""A proxy's numbers as Ray metrics: in the dashboard, and for Prometheus as ``ray_lion_…``.

Invariant: labels are the endpoint's and the role's names and a status: never a text, an address or a key.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from lion_ray.gateway.stats import Event, Stats

SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


class EndpointMetrics:
    """What one proxy of an endpoint counts."""

    def __init__(self, endpoint: str, proxy: str) -> None:
        labels = {"endpoint": endpoint, "proxy": proxy}
        by_role = (*labels, "role")
        self._calls = Counter("lion_calls", "Calls, by how they ended.", (*by_role, "status"))
        self._tokens = Counter("lion_tokens", "Tokens bought.", (*by_role, "kind"))
        self._cost = Counter("lion_cost_usd", "US dollars spent.", by_role)
        self._limited = Counter("lion_rate_limited", "Answers with status 429.", by_role)
        self._retried = Counter("lion_retried", "Attempts after an error.", by_role)
        self._seconds = Histogram("lion_call_seconds", "Seconds to an answer.", SECONDS, by_role)
        names = ("in_flight", "waiting", "in_batches", "paused_s", "down_s", "sent_per_minute", "allowed_per_minute")
        self._now = {name: Gauge(f"lion_{name}", f"{name.replace('_', ' ')}, now.", tuple(labels)) for name in names}
        counted = (self._calls, self._tokens, self._cost, self._limited, self._retried, self._seconds)
        for metric in (*counted, *self._now.values()):
            metric.set_default_tags(labels)

    def heard(self, event: Event) -> None:
        """Count an event of the client."""
        role = {"role": event.role}
        match event.kind:
            case "rate_limited":
                self._limited.inc(1, role)
            case "retried":
                self._retried.inc(1, role)
            case status:
                self._calls.inc(1, role | {"status": status})
        if event.kind == "completed":
            self._seconds.observe(max(event.seconds, 1e-6), role)
            for kind, count in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
                if count:
                    self._tokens.inc(count, role | {"kind": kind})
            if event.cost_usd:
                self._cost.inc(event.cost_usd, role)

    def show(self, stats: Stats) -> None:
        """Set the gauges."""
        for name, gauge in self._now.items():
            gauge.set(float(getattr(stats, name) or 0.0))
