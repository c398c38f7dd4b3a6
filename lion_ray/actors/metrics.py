"""A run's numbers as Ray metrics: in the dashboard, and for Prometheus as ``ray_lion_…``.

Invariant: labels are names (of run, stage, endpoint, role, checkpoint) and outcomes: never a text, an address or a key.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any, ClassVar

import ray
from ray.util.metrics import Counter, Histogram
from ray.util.metrics import Gauge as PassingGauge

from lion_ray.core.progress import Stage
from lion_ray.gateway.stats import Event, Stats

AGAIN_S = 2.0
"""Interval at which values are set again, in seconds; Ray exports every 10 s by default."""


class Gauge(PassingGauge):
    """A gauge that keeps its values until they change.

    Ray exports a gauge's value only for the interval in which it was set, so a value set once, such as an engine's
    checkpoint, would disappear from Prometheus seconds later.
    """

    _all: ClassVar[weakref.WeakSet[Gauge]] = weakref.WeakSet()
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _thread: ClassVar[threading.Thread | None] = None

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, tag_keys)
        self._stands: dict[tuple[tuple[str, str], ...], float] = {}
        with Gauge._lock:
            Gauge._all.add(self)
            if Gauge._thread is None:
                Gauge._thread = threading.Thread(target=_set_again, name="gauges", daemon=True)
                Gauge._thread.start()

    def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
        """Set the value; it is kept until the next call."""
        if value is not None:
            with Gauge._lock:
                self._stands[tuple(sorted((tags or {}).items()))] = value
        super().set(value, tags)

    def again(self) -> None:
        """Set every value again."""
        with Gauge._lock:
            stands = list(self._stands.items())
        for tags, value in stands:
            super().set(value, dict(tags))


def _set_again() -> None:
    while True:
        time.sleep(AGAIN_S)
        with Gauge._lock:
            gauges = list(Gauge._all)
        for gauge in gauges:
            gauge.again()


def own_name() -> str:
    """The name of this process's actor; "" if it has none."""
    return ray.get_runtime_context().get_actor_name() or ""


def vllm_loggers() -> list[Any]:
    """The classes with which vLLM exports its metrics to Ray, with gauges like ours. Imports vLLM."""
    from vllm.v1.metrics.ray_wrappers import RayGaugeWrapper, RayPrometheusMetric, RayPrometheusStatLogger

    class StandingGauge(RayGaugeWrapper):
        def __init__(
            self, name: str, documentation: str = "", labelnames: list[str] | None = None, multiprocess_mode: str = ""
        ) -> None:
            RayPrometheusMetric.__init__(self)
            keys = self._get_tag_keys(labelnames)
            self.metric = Gauge(self._get_sanitized_opentelemetry_name(name), documentation, keys)

    class StatLogger(RayPrometheusStatLogger):
        _gauge_cls: type[RayGaugeWrapper] = StandingGauge

    return [StatLogger]


SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


class EndpointMetrics:
    """The metrics of one endpoint proxy."""

    def __init__(self, endpoint: str, proxy: str) -> None:
        labels = {"endpoint": endpoint, "proxy": proxy}
        by_role = (*labels, "role")
        self._calls = Counter("lion_calls", "Calls, by outcome.", (*by_role, "status"))
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
            case "surprised":
                return  # not the outcome of a call
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


class StageMetrics:
    """The progress of a run's stages: a listener of its `Progress`."""

    def __init__(self, run: str) -> None:
        labels = ("run", "stage")
        self._done = Gauge("lion_stage_done", "Units of a stage that are done.", (*labels, "unit"))
        self._waiting = Gauge("lion_stage_waiting", "Units of a stage that are not done yet.", (*labels, "unit"))
        self._rows = Gauge("lion_stage_rows", "Rows of a stage so far, by outcome.", (*labels, "outcome"))
        for metric in (self._done, self._waiting, self._rows):
            metric.set_default_tags({"run": run})

    def __call__(self, stage: Stage) -> None:
        """Set the gauges of a stage."""
        unit = {"stage": stage.name, "unit": stage.unit}
        self._done.set(stage.done, unit)
        self._waiting.set(max(0, stage.total - stage.done), unit)
        for outcome, rows in stage.counts.items():
            self._rows.set(rows, {"stage": stage.name, "outcome": outcome})


class PoolMetrics:
    """The generator's metrics: its decisions, and the size of the pool."""

    def __init__(self) -> None:
        self._candidates = Counter("lion_candidates", "Generated instructions.", ("run", "kind", "outcome"))
        self._pool = Gauge("lion_pool_rows", "Instructions in the Cache Pool, with those just accepted.", ("run",))
        for metric in (self._candidates, self._pool):
            metric.set_default_tags({"run": own_name().rpartition("/")[0]})

    def decided(self, kind: str, outcome: str, pool: int) -> None:
        """Count a candidate; `outcome` is accepted or the reason for its rejection."""
        self._candidates.inc(1, {"kind": kind, "outcome": outcome})
        self._pool.set(pool)


class TrainingMetrics:
    """The metrics of the first training worker."""

    def __init__(self, run: str, iteration: int) -> None:
        labels = {"run": run, "iteration": str(iteration)}
        self._now = {
            name: Gauge(f"lion_training_{name}", about, tuple(labels))
            for name, about in (
                ("step", "Optimizer steps done."),
                ("loss", "Nats for each labelled token, in the last step."),
                ("tokens_per_second", "Tokens trained on, in the last step."),
                ("mfu", "Share of the GPUs' peak speed that the last step used; only for GPUs whose peak is known."),
                ("grad_norm", "The gradient's norm before clipping."),
                ("learning_rate", "Learning rate in the last step."),
            )
        }
        for gauge in self._now.values():
            gauge.set_default_tags(labels)

    def show(self, metrics: dict[str, Any]) -> None:
        """Set the gauges to a step's metrics."""
        for name, gauge in self._now.items():
            if name in metrics:
                gauge.set(float(metrics[name]))


class EnginePoolMetrics:
    """The metrics of all student engines together."""

    def __init__(self, run: str) -> None:
        self._engines = Gauge("lion_engines", "Student engines, by state.", ("run", "state"))
        self._engines.set_default_tags({"run": run})

    def show(self, ready: int, starting: int, waiting: int) -> None:
        """Set the gauges. `waiting` engines are not scheduled in the cluster yet."""
        for state, count in (("ready", ready), ("starting", starting), ("waiting", waiting)):
            self._engines.set(count, {"state": state})


class EngineMetrics:
    """The metrics of one student engine."""

    def __init__(self) -> None:
        self._up = Gauge("lion_engine_up", "1 while the engine serves this checkpoint.", ("engine", "version"))
        self._shards = Gauge("lion_engine_shards", "Shards in flight at the engine.", ("engine",))
        self._tokens = Counter("lion_engine_tokens", "Tokens that the engine has generated.", ("engine",))
        self._version = ""
        self._at = 0
        for metric in (self._up, self._shards, self._tokens):
            metric.set_default_tags({"engine": own_name()})

    def serves(self, version: str) -> None:
        """Record that the engine now serves this checkpoint."""
        if self._version:
            self._up.set(0, {"version": self._version})
        self._version = version
        self._up.set(1, {"version": version})

    def answering(self, change: int) -> None:
        """Add `change` to the number of shards in flight."""
        self._at += change
        self._shards.set(self._at)

    def answered(self, tokens: int) -> None:
        """Count a shard's generated tokens."""
        if tokens:
            self._tokens.inc(tokens)
