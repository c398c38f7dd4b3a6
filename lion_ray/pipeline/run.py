"""What every stage works with: the run's configuration, its folder, its actors, and what stages tell one another.

Invariants:
- The driver holds references and summaries, never rows (`actors.run_store`).
- Pool p is the user's own for p = 0, else what iteration p generated; `data.pools` says which of them make up the
  Train Pool and the Cache Pool of an iteration, so no pool is ever rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.errors import DataError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.data.pools import cache_pools
from lion_ray.inference import wants_gpu
from lion_ray.pipeline.scheduling import Feed, Parts, Shard
from lion_ray.tracking.fan_out import Trackers


@dataclass
class Run:
    """One attempt at a run."""

    config: RunConfig
    base_dir: Path
    store: RunStore
    progress: Progress
    actors: Any
    """`actor_group.ActorGroup`, or what a test puts in its place."""
    trackers: Trackers = field(default_factory=Trackers)
    _feeds: dict[str, Feed] = field(default_factory=dict)
    _parts: dict[str, Parts] = field(default_factory=dict)

    def pool(self, name: str | int) -> list[Shard]:
        """A committed pool's shards."""
        manifest = self.store.stage(layout.pool(name)).manifest()
        if manifest is None:
            raise DataError(f"{self.store.path(layout.pool(name))}: this pool was never committed")
        return [Shard(str(name), index) for index in range(manifest["parts"])]

    def feed(self, name: str | int) -> Feed:
        """A pool's shards: all of them where it is committed, else those that come while it is being written."""
        if self.store.stage(layout.pool(name)).manifest() is not None:
            return Feed.of(self.pool(name))
        return self._feeds.setdefault(str(name), Feed())

    def parts(self, stage: str) -> Parts:
        """Which parts of a stage that is under way are committed, to wait for."""
        return self._parts.setdefault(stage, Parts())

    def cache(self, iteration: int) -> list[Shard]:
        """The Cache Pool that iteration `iteration` judges."""
        return [shard for number in cache_pools(iteration) for shard in self.pool(number)]

    def newest_checkpoint(self) -> int:
        """The last iteration whose fine-tuning is committed; 0 where none is."""
        numbers = range(1, self.config.iterations + 2)
        return max((k for k in numbers if self.store.stage(layout.checkpoint(k)).manifest()), default=0)

    @property
    def handoff(self) -> bool:
        """Whether engines must give their GPUs to training."""
        return self.config.placement == "handoff" and wants_gpu(self.config.imitation.use_gpu)
