"""The run to export: its description, pools and results up to one iteration.

Invariants:
- The configuration is read as plain JSON, so that runs of other versions can be exported: a missing key is None and
  shown as unknown.
- Displayed names contain no machine path: only the name of a local file or folder is kept.

This module does not know cards, models or hubs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lion_ray.core import layout
from lion_ray.core.errors import ConfigError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import cache_pools, train_pool
from lion_ray.models.checkpoints import student_ref
from lion_ray.models.resolve import BUNDLED
from lion_ray.pipeline.results import summarise
from lion_ray.pipeline.scheduling import Shard


@dataclass(frozen=True)
class Source:
    """A run up to an iteration with committed fine-tuning."""

    store: RunStore
    iteration: int
    described: dict[str, Any]
    """run.json."""
    licence: str | None = None
    """The licence of the user's instructions; None if unknown."""
    origin: str | None = None
    """The origin of the instructions, in the user's words."""

    @classmethod
    def open(
        cls, store: RunStore, iteration: int | None = None, *, licence: str | None = None, origin: str | None = None
    ) -> Source:
        """The run up to `iteration`, or to the last committed one. `licence` and `origin` override the run's own.

        Raises:
            ConfigError: the run has no such checkpoint.
        """
        described = store.description()
        if described is None:
            raise ConfigError(f"{store.root}: not a run (no {layout.RUN})")
        config = described["config"]
        wanted = range(config["iterations"] + 1, 0, -1) if iteration is None else [iteration]
        committed = (number for number in wanted if store.stage(layout.checkpoint(number)).manifest() is not None)
        if (found := next(committed, None)) is None:
            which = "any iteration" if iteration is None else f"iteration {iteration}"
            raise ConfigError(f"{store.root}: no checkpoint of {which} yet")
        data = config["data"]
        return cls(store, found, described, licence or data.get("licence"), origin or data.get("source"))

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.described["config"]["run_name"])

    @property
    def checkpoint(self) -> str:
        """The exported student's folder in the run."""
        return student_ref(self.store, self.iteration).folder

    @property
    def base_dir(self) -> Path:
        """The folder of the configuration file when the run started."""
        return Path(self.described.get("base_dir") or ".")

    def get(self, key: str) -> Any:
        """A dotted key of the configuration. Returns None if it is missing."""
        value: Any = self.described["config"]
        for name in key.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    @property
    def starts_from_base(self) -> bool:
        """Whether each iteration trained the base model anew, on all rows so far."""
        return bool(self.get("imitation.start") == "base")

    def manifest(self, stage: str) -> Manifest:
        """A stage's manifest; empty if it is not committed."""
        return self.store.stage(stage).manifest() or {}

    def shards(self, pool: str | int) -> list[Shard]:
        """A pool's shards; empty if it was never committed."""
        return [Shard(str(pool), index) for index in range(self.manifest(layout.pool(pool)).get("parts", 0))]

    def trained(self, iteration: int) -> list[Shard]:
        """The Train Pool of an iteration."""
        return self.shards(train_pool(iteration))

    def cached(self, iteration: int) -> list[Shard]:
        """The Cache Pool that an iteration judged."""
        return [shard for number in cache_pools(iteration) for shard in self.shards(number)]

    @cached_property
    def results(self) -> list[IterationResult]:
        """Every iteration's result, from 0 to the exported one."""
        return [summarise(self.store, number) for number in range(self.iteration + 1)]

    def endpoint(self, name: str | None) -> dict[str, Any]:
        """An endpoint's configuration; empty if there is no such endpoint."""
        return (self.get("endpoints") or {}).get(name) or {}

    def host(self, name: str | None) -> str:
        """An endpoint's host, or the run's own server; never a full address."""
        endpoint = self.endpoint(name)
        if served := endpoint.get("serve"):
            weights = public_name(served["model"])
            return "served by the run itself" + (f" from {weights}" if weights != endpoint["model"] else "")
        if base_url := endpoint.get("base_url"):
            return f"at {urlsplit(base_url).hostname}"
        return "at the openai package's default address" if endpoint else "at an unknown address"

    def teachers(self) -> list[str]:
        """The teacher's endpoint and its fallbacks, in order."""
        return [self.get("teacher.endpoint"), *(self.get("teacher.fallbacks") or ())]


def public_name(source: str) -> str:
    """A model, file or template name without machine paths: for a local path, its last part."""
    source = source.removeprefix(BUNDLED)
    return Path(source).name if source.startswith((".", "/", "~")) or "\\" in source else source


def hub_name(source: str) -> str | None:
    """``org/name`` if a model comes from a hub, else None."""
    plain = not source.startswith((BUNDLED, ".", "/", "~")) and source.count("/") == 1
    return source if plain else None
