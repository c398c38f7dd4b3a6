"""Concurrency: shards in a window, waiting for parts, and stages in the order of their dependencies.

Invariants:
- A bounded window of shards is the only flow control.
- The first failure cancels concurrent work, and is the one that is raised.
- Concurrency changes only the time: running sequentially (`overlap: false`) gives the same result.

This module does not know what a stage does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lion_ray.core import layout

if TYPE_CHECKING:
    from lion_ray.pipeline.run import Run
    from lion_ray.pipeline.stage import Stage


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of a pool's instructions, and of the teacher's answers to them."""

    pool: str
    index: int

    @property
    def instructions(self) -> str:
        return layout.part(layout.pool(self.pool), self.index)

    @property
    def answers(self) -> str:
        return layout.part(layout.answers(self.pool), self.index)


class Feed:
    """An ordered queue of shards, some of which may not exist yet. For one reader, or several that share it."""

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self._shards = list(shards)
        self._taken = 0
        self._whole = False
        self._changed = asyncio.Event()

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Feed:
        """A complete feed of these shards."""
        feed = cls(shards)
        feed.end()
        return feed

    def __len__(self) -> int:
        """The number of shards so far."""
        return len(self._shards)

    def put(self, shard: Shard) -> None:
        self._shards.append(shard)
        self._changed.set()

    def end(self) -> None:
        """Mark the feed as complete."""
        self._whole = True
        self._changed.set()

    async def next(self) -> tuple[int, Shard] | None:
        """The next shard that is not taken, with its index. Returns None at the end of the feed."""
        while self._taken == len(self._shards):
            if self._whole:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._taken += 1
        return self._taken - 1, self._shards[self._taken - 1]


class Parts:
    """The committed parts of a stage, for other stages to wait for."""

    def __init__(self) -> None:
        self._committed: set[int] = set()
        self._all = False
        self._changed = asyncio.Event()

    def add(self, index: int) -> None:
        self._committed.add(index)
        self._change()

    def end(self) -> None:
        """Mark all parts as committed."""
        self._all = True
        self._change()

    async def wait(self, index: int) -> None:
        while not (self._all or index in self._committed):
            await self._changed.wait()

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def windowed(work: Callable[[int, Shard], Coroutine[Any, Any, None]], feed: Feed, width: int) -> None:
    """Do `work` for every index and shard, `width` at a time, started in order; the first failure cancels the rest."""

    async def worker() -> None:
        while (taken := await feed.next()) is not None:
            await work(*taken)

    await together(*(worker() for _ in range(max(1, width))))


async def in_turn(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do `work` sequentially and return the results; after a failure, the rest is not started."""
    try:
        return [await one for one in work]
    finally:
        for one in work:
            one.close()


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do all of `work` concurrently and return the results; the first failure cancels the rest, then is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_stages(run: Run, stages: Sequence[tuple[Stage, int]]) -> None:
    """Run stages of some iterations: concurrently, each after its dependencies, or with `overlap: false` in this order.

    Once the student has answered everything in them, its engines release resources that need not be kept.
    """
    done = {(stage.name, iteration): asyncio.Event() for stage, iteration in stages}

    async def one(stage: Stage, iteration: int) -> None:
        for name in stage.after:
            if (other := done.get((name, iteration))) is not None:
                await other.wait()
        await stage.run(run, iteration)
        done[stage.name, iteration].set()

    work = [one(*each) for each in stages]
    answering = [place for place, (stage, _) in enumerate(stages) if stage.student]
    if answering:
        events = [done[stages[place][0].name, stages[place][1]] for place in answering]
        work.insert(answering[-1] + 1, _release_engines(run, events))
    await (together if run.config.overlap else in_turn)(*work)


async def _release_engines(run: Run, answered: Sequence[asyncio.Event]) -> None:
    for event in answered:
        await event.wait()
    await run.actors.students.rest(0 if run.handoff else None)
