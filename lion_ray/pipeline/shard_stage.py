"""The stages of an iteration, each resumable: shards in, committed parts and a manifest out.

Invariants:
- The driver holds references and summaries, never rows (`actors.run_store`).
- A bounded window of shards is the only flow control.
- A stage whose manifest exists is not run again; one that was cut off repeats only the parts it had not committed.
- Pool p is the user's own for p = 0, else what iteration p generated; `data.pools` says which of them make up the
  Train Pool and the Cache Pool of an iteration, so no pool is ever rewritten.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lion_ray.config import RunConfig
from lion_ray.core.errors import DataError
from lion_ray.core.progress import Progress
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import cache_pools

BATCH_MODE_WINDOW = 4096
"""Shards under way at once where a Batch API is to get them all."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of a pool's instructions, and of the teacher's answers to them."""

    pool: str
    index: int

    @property
    def instructions(self) -> str:
        return f"pool-{self.pool}/part-{self.index:05d}.parquet"

    @property
    def answers(self) -> str:
        return f"answers-{self.pool}/part-{self.index:05d}.parquet"


@dataclass
class Run:
    """What every stage needs: the configuration, the folder, and who does the work."""

    config: RunConfig
    base_dir: Path
    store: RunStore
    progress: Progress
    actors: Any  # actors.group.ActorGroup; untyped here so that the arrows between rooms keep pointing one way

    def pool(self, name: str | int) -> list[Shard]:
        """A committed pool's shards."""
        manifest = self.store.stage(f"pool-{name}").manifest()
        if manifest is None:
            raise DataError(f"{self.store.path(f'pool-{name}')}: this pool was never committed")
        return [Shard(str(name), index) for index in range(manifest["parts"])]

    def newest_checkpoint(self) -> int:
        """The last iteration whose fine-tuning is committed; 0 where none is."""
        numbers = range(1, self.config.iterations + 2)
        return max((k for k in numbers if self.store.stage(f"iteration-{k}/checkpoint").manifest()), default=0)

    def cache(self, iteration: int) -> list[Shard]:
        """The Cache Pool that iteration `iteration` judges."""
        return [shard for number in cache_pools(iteration) for shard in self.pool(number)]


# -- how a stage runs -----------------------------------------------------------------------------------------------


class Feed:
    """Shards, in order, some of which may not exist yet. For one reader, or several that share them."""

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self._shards = list(shards)
        self._taken = 0
        self._whole = False
        self._changed = asyncio.Event()

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Feed:
        """All there will be."""
        feed = cls(shards)
        feed.end()
        return feed

    def __len__(self) -> int:
        """How many there are so far."""
        return len(self._shards)

    def put(self, shard: Shard) -> None:
        self._shards.append(shard)
        self._changed.set()

    def end(self) -> None:
        """No more will come."""
        self._whole = True
        self._changed.set()

    async def next(self) -> tuple[int, Shard] | None:
        """The next shard nobody has taken, and its place; None where there will be none."""
        while self._taken == len(self._shards):
            if self._whole:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._taken += 1
        return self._taken - 1, self._shards[self._taken - 1]


async def windowed(work: Callable[[int, Shard], Coroutine[Any, Any, None]], feed: Feed, width: int) -> None:
    """Do `work` for every place and shard, `width` at a time, starting in order; the first failure ends the rest."""

    async def worker() -> None:
        while (taken := await feed.next()) is not None:
            await work(*taken)

    await together(*(worker() for _ in range(max(1, width))))


async def in_turn(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do one after the other, and return their results; what a failure leaves undone is not begun."""
    try:
        return [await one for one in work]
    finally:
        for one in work:
            one.close()


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do all of `work` at once, and return their results; the first failure ends the rest and is raised after them."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def shard_stage(
    run: Run,
    name: str,
    title: str,
    sources: Feed,
    work: Callable[[int, Shard], Awaitable[Any]],
    *,
    batched: bool = False,
    width: int | None = None,
    committed: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Run `work` on every shard whose part is not committed, commit the parts, then the stage.

    Args:
        name: the stage's folder in the run.
        title: what a person reads.
        work: takes a shard's place and the shard, returns a reference to its rows.
        batched: its calls go through a Batch API, which wants them all at once and not by the window.
        width: shards under way at once, where that is not the configured window.
        committed: told of each shard's place once its part is there.

    Raises:
        DataError: a larger share of rows than `max_failure_rate` was quarantined. Those parts are forgotten, so
            the same command tries them again.
    """
    stage = run.store.stage(name)
    if (manifest := stage.manifest()) is not None:
        return manifest
    began = time.time()
    done = stage.part_indexes()
    total = merge(())
    failed: list[int] = []
    with run.progress.stage(title, len(sources), "shards") as shown:

        async def one(index: int, shard: Shard) -> None:
            nonlocal total
            shown.total = len(sources)
            reference = None if index in done else await work(index, shard)
            part = await run.actors.run_store.commit.remote(name, index, reference)
            total = merge((total, part))
            quarantined = sum(part["quarantined"].values())
            shown.counts.update(ok=part["rows"] - quarantined, quarantined=quarantined)
            if quarantined:
                failed.append(index)
            committed(index)
            shown.advance(1, f"{total['rows']} rows")

        await windowed(one, sources, BATCH_MODE_WINDOW if batched else width or run.config.max_shards_in_flight)
    check_failures(run, name, title, total, failed)
    seconds = round(time.time() - began, 2)
    return stage.commit(total | {"parts": len(sources), "began": round(began, 2), "seconds": seconds})


def merge(summaries: Iterable[Manifest]) -> Manifest:
    """The sum of summaries, reason by reason."""
    total: Manifest = {"rows": 0, "quarantined": {}}
    for one in summaries:
        for key, value in one.items():
            if isinstance(value, dict):
                total[key] = dict(Counter(total.get(key, {})) + Counter(value))
            else:
                total[key] = total.get(key, 0) + value
    return total


def check_failures(run: Run, name: str, title: str, total: Manifest, parts: Iterable[int]) -> None:
    """Stop the run where too many rows of a stage failed, saying why; `parts` are those with failed rows."""
    failed = sum(total["quarantined"].values())
    if total["rows"] and failed / total["rows"] > run.config.max_failure_rate:
        for index in parts:
            run.store.delete(run.store.stage(name).part_name(index))
        counted: Counter[str] = Counter(total["quarantined"])
        reasons = "; ".join(f"{count} × {reason}" for reason, count in counted.most_common(3))
        raise DataError(
            f"{title}: {failed} of {total['rows']} rows failed ({failed / total['rows']:.0%}, allowed "
            f"{run.config.max_failure_rate:.0%}): {reasons}. What succeeded is kept; mend the cause, or raise "
            "max_failure_rate, and run the same command"
        )
