"""The stages of an iteration, each resumable: shards in, committed parts and a manifest out.

Invariants:
- The driver holds references and summaries, never rows; tasks beside the data read and write parts.
- A bounded window of shards is the only flow control.
- A stage whose manifest exists is not run again; one that was cut off repeats only the parts it had not committed.
- Pool p is the user's own for p = 0, else what iteration p generated; `algorithm.pools` says which of them make up the
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

import pyarrow as pa
import pyarrow.compute as pc
import ray

from lion_ray.algorithm.pools import bad_rows_jsonl, cache_pools, drop_ids, read_pool, split_heldout
from lion_ray.algorithm.scores import is_hard, relative_quality
from lion_ray.config import DataConfig, RunConfig
from lion_ray.errors import DataError
from lion_ray.records import INSTRUCTION, OK, derive_seed, ok_rows, shards
from lion_ray.store import RunStore
from lion_ray.telemetry import Progress

Manifest = dict[str, Any]
HELDOUT = "heldout"


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
    crew: Any  # actors.crew.Crew; untyped here so that the arrows between rooms keep pointing one way

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


# -- tasks: they run where Ray puts them, beside the data ---------------------------------------------------------


@ray.remote(num_cpus=0)
def load(store: RunStore, *names: str) -> pa.Table:
    """Some parts as one table; an empty INSTRUCTION table for none."""
    if not names:
        return INSTRUCTION.empty_table()
    return pa.concat_tables([store.read_table(name) for name in names])


@ray.remote(num_cpus=0)
def commit_part(store: RunStore, stage: str, index: int, rows: pa.Table | None) -> Manifest:
    """Write a part, or take the one that is there (`rows` None); returns its summary."""
    folder = store.stage(stage)
    if rows is None:
        rows = folder.read_part(index)
    else:
        folder.write_part(index, rows)
    return summary(rows)


@ray.remote(num_cpus=0)
def import_pools(
    store: RunStore, data: DataConfig, base_dir: Path, seed: int, shard_rows: int
) -> tuple[Manifest, Manifest]:
    """Read the user's instructions into pool-0 and pool-heldout; returns both manifests, uncommitted."""
    read = read_pool(data.pool, base_dir=base_dir, limit=data.limit, on_bad_row=data.on_bad_row)
    pool, bad = read.pool, list(read.bad_rows)
    if isinstance(data.heldout, int):
        pool, heldout = split_heldout(pool, data.heldout, seed)
        overlap = 0
    else:
        apart = read_pool(data.heldout, base_dir=base_dir, limit=None, on_bad_row=data.on_bad_row)
        heldout, bad = apart.pool, bad + list(apart.bad_rows)
        pool, overlap = drop_ids(pool, set(heldout["id"].to_pylist()))
    if bad:
        store.write_bytes("quarantine.jsonl", bad_rows_jsonl(bad).encode())
    if not pool.num_rows:
        raise DataError(f"{data.pool}: no instruction is left to train on")
    first = write_pool(store, "0", pool, shard_rows)
    first |= {"duplicates": read.duplicates, "bad_rows": len(bad), "in_heldout": overlap}
    return first, write_pool(store, HELDOUT, heldout, shard_rows)


@ray.remote(num_cpus=0)
def commit_generation(
    store: RunStore, iteration: int, shard_rows: int, accepted: pa.Table, candidates: pa.Table
) -> Manifest:
    """Write an iteration's new pool and every candidate; returns the pool's manifest, uncommitted."""
    store.write_table(f"iteration-{iteration}/candidates.parquet", candidates)
    counts = {
        kind: {
            "requests": of_kind.num_rows,
            "accepted": ok_rows(of_kind).num_rows,
            "rejected": dict(Counter(reason for reason in of_kind["reason"].to_pylist() if reason).most_common()),
        }
        for kind in ("hard", "easy")
        for of_kind in [candidates.filter(pc.equal(candidates["source"], kind))]
    }
    return write_pool(store, str(iteration), accepted, shard_rows) | {"kinds": counts, **spent(candidates)}


@ray.remote(num_cpus=0)
def split_verdicts(store: RunStore, stage: str, instructions: list[str], tau: float, seed: int) -> Manifest:
    """Split judged rows into hard.parquet and easy.parquet beside the verdicts; returns what to know of them."""
    folder = store.stage(stage)
    verdicts = folder.read(len(instructions)).to_pylist()
    texts = pa.concat_tables([store.read_table(name) for name in instructions])
    judged = [verdict for verdict in verdicts if verdict["status"] == OK]
    hard = {v["id"] for v in judged if is_hard(v["teacher_score"], v["student_score"], tau)}
    easy = {v["id"] for v in judged} - hard
    for name, ids in (("hard", hard), ("easy", easy)):
        mask = pc.is_in(texts["id"], value_set=pa.array(sorted(ids), pa.string()))
        store.write_table(f"{stage}/{name}.parquet", texts.filter(mask))
    quality = relative_quality(
        [v["teacher_score"] for v in judged], [v["student_score"] for v in judged], seed=derive_seed(seed, stage)
    )
    return {
        "hard": len(hard),
        "easy": len(easy),
        "relative_quality": quality and {"ratio": quality.ratio, "low": quality.low, "high": quality.high},
        "order_flips": sum(_flipped(verdict) for verdict in judged),
    }


def write_pool(store: RunStore, name: str, pool: pa.Table, shard_rows: int) -> Manifest:
    """Write a pool's parts; a cut-off attempt may have left more of them, the manifest says how many count."""
    folder = store.stage(f"pool-{name}")
    parts = 0
    for parts, shard in enumerate(shards(pool, shard_rows), start=1):
        folder.write_part(parts - 1, shard)
    return {"rows": pool.num_rows, "parts": parts}


def summary(rows: pa.Table) -> Manifest:
    """Counts of a part: rows, quarantined by reason, tokens and cost."""
    result: Manifest = {"rows": rows.num_rows}
    if "status" in rows.column_names:
        # What stands in parentheses is one row's detail; what stands before it is what can be counted.
        reasons = Counter(reason.split(" (")[0] for reason in rows["reason"].to_pylist() if reason)
        result |= {"quarantined": dict(reasons), **spent(rows)}
    if "finish_reason" in rows.column_names:
        result["cut_off"] = sum(reason == "length" for reason in rows["finish_reason"].to_pylist())
    return result


def spent(rows: pa.Table) -> Manifest:
    """Tokens and cost of a table's calls or answers."""
    result: Manifest = {}
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        total = pc.sum(rows[name]).as_py()
        if total is not None:
            result[name] = total
    if "calls" in rows.column_names:
        result["calls"] = pc.sum(pc.list_value_length(rows["calls"])).as_py() or 0
    elif "call" in rows.column_names:
        result["calls"] = len(rows["call"]) - rows["call"].null_count
    return result


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


def _flipped(verdict: Manifest) -> bool:
    """Whether the two orders name different winners."""
    (t1, s1), (t2, s2) = verdict["teacher_first"], verdict["student_first"]
    return (t1 - s1) * (t2 - s2) < 0


# -- how a stage runs -----------------------------------------------------------------------------------------------


async def windowed(work: Callable[[int], Coroutine[Any, Any, None]], indexes: Iterable[int], width: int) -> None:
    """Do `work` for every index, `width` at a time, starting in order; the first failure ends the rest."""
    window = asyncio.Semaphore(width)

    failed = False

    async def one(index: int) -> None:
        nonlocal failed
        async with window:
            if failed:  # the place that became free is the failed one's
                return
            try:
                await work(index)
            except BaseException:
                failed = True
                raise

    await together(*(one(index) for index in indexes))


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """Do all of `work` at once; the first failure ends the rest, and is raised when they have ended."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def shard_stage(
    run: Run,
    name: str,
    title: str,
    sources: list[Shard],
    work: Callable[[Shard], Awaitable[Any]],
    *,
    batched: bool = False,
) -> Manifest:
    """Run `work` on every shard whose part is not committed, commit the parts, then the stage.

    Args:
        name: the stage's folder in the run.
        title: what a person reads.
        work: takes a shard, returns a reference to its rows.
        batched: its calls go through a Batch API, which wants them all at once and not by the window.

    Raises:
        DataError: a larger share of rows than `max_failure_rate` was quarantined. Those parts are forgotten, so
            the same command tries them again.
    """
    stage = run.store.stage(name)
    if (manifest := stage.manifest()) is not None:
        return manifest
    began = time.time()
    done = stage.part_indexes()
    summaries: dict[int, Manifest] = {}
    rows = 0
    with run.progress.stage(title, len(sources), "shards") as shown:

        async def one(index: int) -> None:
            nonlocal rows
            reference = None if index in done else await work(sources[index])
            summaries[index] = await commit_part.remote(run.store, name, index, reference)
            rows += summaries[index]["rows"]
            shown.advance(1, f"{rows} rows")

        width = len(sources) if batched else run.config.max_shards_in_flight
        await windowed(one, range(len(sources)), max(1, width))
    total = merge(summaries.values())
    check_failures(run, name, title, total, summaries)
    return stage.commit(total | {"parts": len(sources), "seconds": round(time.time() - began, 2)})


def check_failures(run: Run, name: str, title: str, total: Manifest, parts: dict[int, Manifest]) -> None:
    """Stop the run where too many rows of a stage failed, saying why."""
    failed = sum(total["quarantined"].values())
    if total["rows"] and failed / total["rows"] > run.config.max_failure_rate:
        for index, part in parts.items():
            if part["quarantined"]:
                run.store.delete(run.store.stage(name).part_name(index))
        counted: Counter[str] = Counter(total["quarantined"])
        reasons = "; ".join(f"{count} × {reason}" for reason, count in counted.most_common(3))
        raise DataError(
            f"{title}: {failed} of {total['rows']} rows failed ({failed / total['rows']:.0%}, allowed "
            f"{run.config.max_failure_rate:.0%}): {reasons}. What succeeded is kept; mend the cause, or raise "
            "max_failure_rate, and run the same command"
        )
