"""Run a stage of many shards: shards in, committed parts and a manifest out.

Invariants:
- A stage whose manifest exists is not run again; an interrupted stage repeats only its uncommitted parts.
- Too many failed rows end the run; their parts are deleted, so the same command retries them. Rows that a filter
  dropped have not failed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from lion_ray.core.errors import DataError
from lion_ray.core.store import Manifest
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Feed, Shard, windowed
from lion_ray.pipeline.stage import since

BATCH_MODE_WINDOW = 4096
"""Shards in flight if a Batch API should get them all at once."""


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
        title: the stage's name in the log.
        work: takes a shard's index and the shard, returns a reference to its rows.
        batched: its calls go through a Batch API, which needs them all at once, not limited by the window.
        width: shards in flight, instead of the configured window.
        committed: called with each shard's index once its part is committed.

    Raises:
        DataError: a larger share of rows than `max_failure_rate` was quarantined. Those parts are deleted, so the
            same command retries them.
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
    return stage.commit(total | {"parts": len(sources)} | since(began))


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
    """Stop the run with the reasons if too many rows of a stage failed; `parts` are those with failed rows."""
    failed = sum(total["quarantined"].values())
    if total["rows"] and failed / total["rows"] > run.config.max_failure_rate:
        for index in parts:
            run.store.delete(run.store.stage(name).part_name(index))
        counted: Counter[str] = Counter(total["quarantined"])
        reasons = "; ".join(f"{count} × {reason}" for reason, count in counted.most_common(3))
        raise DataError(
            f"{title}: {failed} of {total['rows']} rows failed ({failed / total['rows']:.0%}, allowed "
            f"{run.config.max_failure_rate:.0%}): {reasons}. Successful rows are kept; correct the cause, or raise "
            "max_failure_rate, and run the same command"
        )
