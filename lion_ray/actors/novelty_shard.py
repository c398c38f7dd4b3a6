"""The known instructions in indexes of several actors, where one actor's would be too large.

Invariants:
- A text is novel if it is novel to every shard, so decisions are those of one index. Each shard orders elements by
  their rarity in its own texts, which affects only the speed.
- A shard's texts are parts of committed pools, and it keeps nothing else: a shard that Ray restarts reads them again
  and answers as before. What the generator accepts stays in the generator's own index.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from lion_ray.actors.base import BaseActor, restartable
from lion_ray.core.store import RunStore
from lion_ray.similarity.novelty import NoveltyIndex

SHARD_TEXTS = 1_000_000
"""The most known texts in the generator's own index, and about the most in a shard: 0.3 GB, which 20 s of a core build,
also after a restart (`bench/README.md`). Beyond it the time of a query grows with the pool."""


class NoveltyShard(BaseActor):
    """An index of some parts of the known instructions, built at the first call."""

    def __init__(self, store: RunStore, parts: Sequence[str], threshold: float) -> None:
        self._store = store
        self._parts = parts
        self._threshold = threshold
        self._building = threading.Lock()
        self._built: NoveltyIndex | None = None

    def size(self) -> int:
        """The number of its texts. Raises DamagedError if a part cannot be read."""
        return len(self._index())

    def novel(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is novel to this shard. Raises DamagedError if a part cannot be read."""
        index = self._index()
        return [index.is_novel(text) for text in texts]

    def _index(self) -> NoveltyIndex:
        # Not in the constructor: there the heartbeat would wait, and an unreadable part would look like a lost actor.
        with self._building:
            if self._built is None:
                self._built = NoveltyIndex(self._texts(), self._threshold)
            return self._built

    def _texts(self) -> Iterator[str]:
        for part in self._parts:
            yield from self._store.read_table(part, ("text",))["text"].to_pylist()


NoveltyShardActor: Any = restartable(NoveltyShard, at_once=16)


def start_shards(
    prefix: str, store: RunStore, parts: Sequence[str], rows: int, threshold: float, **options: Any
) -> dict[str, Any]:
    """Actors by name with all `rows` texts of these parts; none if the generator's own index can hold them.

    Args:
        prefix: of the actors' names.
        options: Ray's, for each actor.
    """
    count = -(-rows // SHARD_TEXTS) if rows > SHARD_TEXTS else 0
    # Every count-th part: those of a pool are of the same size, so the shards are too.
    return {
        name: NoveltyShardActor.options(name=name, **options).remote(store, parts[number::count], threshold)
        for number in range(count)
        for name in [f"{prefix}/novelty-{number}"]
    }


class NoveltyShards:
    """A client-side handle of all shards."""

    def __init__(self, shards: Sequence[Any]) -> None:
        """`shards`: the actors."""
        self._shards = shards

    @classmethod
    def named(cls, names: Sequence[str]) -> NoveltyShards:
        """The actors of these names. By name, so that Ray can restart either side."""
        return cls([ray.get_actor(name) for name in names])

    async def size(self) -> int:
        """The number of texts in all shards, once every shard is built. Raises what a shard raises."""
        return sum(await asyncio.gather(*(shard.size.remote() for shard in self._shards)))

    async def novel(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is novel to every shard; all are asked at the same time. Raises what a shard raises."""
        answers = await asyncio.gather(*(shard.novel.remote(texts) for shard in self._shards))
        return [all(one) for one in zip([True] * len(texts), *answers, strict=True)]
