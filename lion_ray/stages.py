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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from lion_ray.algorithm.pools import bad_rows_jsonl, cache_pools
from lion_ray.algorithm.scores import is_hard, relative_quality
from lion_ray.config import DataConfig, RunConfig
from lion_ray.errors import DataError
from lion_ray.intake import take_in
from lion_ray.records import INSTRUCTION, ORDERS, Piece, derive_seed, ok_rows, shards
from lion_ray.store import RunStore
from lion_ray.telemetry import Progress

Manifest = dict[str, Any]
EVERYTHING = 4096
"""Shards under way at once where a Batch API is to get them all."""
HELDOUT = "heldout"
QUESTIONS = "questions.parquet"
"""Of the evaluation sets that nothing trained on may resemble."""


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
def load_each(store: RunStore, *names: str) -> list[pa.Table]:
    """Some parts as a table each; ask for as many returns. One task is cheaper than several."""
    return [store.read_table(name) for name in names]


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
    taken = take_in(data, base_dir, seed)
    if taken.bad_rows:
        store.write_bytes("quarantine.jsonl", bad_rows_jsonl(taken.bad_rows).encode())
    if taken.contaminated:
        store.write_bytes("contaminated.jsonl", taken.contaminated_jsonl().encode())
    if taken.questions:
        # The generator holds its candidates against the questions that the pool was held against.
        store.write_table(QUESTIONS, pa.table({"text": pa.array(taken.questions, pa.string())}))
    first = write_pool(store, "0", taken.pool, shard_rows) | taken.counts()
    return first, write_pool(store, HELDOUT, taken.heldout, shard_rows)


@ray.remote(num_cpus=0)
def commit_generated(store: RunStore, iteration: int, piece: Piece) -> Manifest:
    """Write what the generator came to: a part of the new pool, or at its end every candidate.

    Returns:
        ``part`` and ``rows`` of a part; of the candidates what to know of them, by kind.
    """
    if piece.part is not None:
        store.stage(f"pool-{iteration}").write_part(piece.part, piece.rows)
        return {"part": piece.part, "rows": piece.rows.num_rows}
    store.write_table(f"iteration-{iteration}/candidates.parquet", piece.rows)
    counts = {
        kind: {
            "requests": of_kind.num_rows,
            "accepted": ok_rows(of_kind).num_rows,
            "rejected": dict(Counter(reason for reason in of_kind["reason"].to_pylist() if reason).most_common()),
        }
        for kind in ("hard", "easy")
        for of_kind in [piece.rows.filter(pc.equal(piece.rows["source"], kind))]
    }
    return {"kinds": counts, **spent(piece.rows)}


@ray.remote(num_cpus=0)
def split_verdicts(store: RunStore, stage: str, instructions: list[str], tau: float, seed: int) -> Manifest:
    """Split judged rows into hard.parquet and easy.parquet beside the verdicts; returns what to know of them."""
    # By columns: the reviews are most of the verdicts, and a Cache Pool may have a million rows.
    needed = ("id", "status", "teacher_score", "student_score", *ORDERS)
    verdicts = ok_rows(store.stage(stage).read(len(instructions), needed))
    teacher, student = (verdicts[name].to_numpy() for name in ("teacher_score", "student_score"))
    lags = is_hard(teacher, student, tau)
    counts = {}
    pool = pa.concat_tables([store.read_table(name) for name in instructions])
    for name, mask in (("hard", lags), ("easy", ~lags)):
        ids = verdicts["id"].filter(pa.array(mask)).combine_chunks()
        counts[name] = len(ids)
        store.write_table(f"{stage}/{name}.parquet", pool.filter(pc.is_in(pool["id"], value_set=ids)))
    quality = relative_quality(teacher, student, seed=derive_seed(seed, stage))
    return counts | {
        "relative_quality": quality and {"ratio": quality.ratio, "low": quality.low, "high": quality.high},
        "order_flips": _flips(*(verdicts[order] for order in ORDERS)),
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


def _flips(*orders: pa.ChunkedArray) -> int:
    """How many rows' two orders, each of teacher's and student's score, name different winners."""
    ahead = [np.subtract(*(pc.list_element(order, place).to_numpy() for place in (0, 1))) for order in orders]
    return int((ahead[0] * ahead[1] < 0).sum())


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


async def in_turn(*work: Coroutine[Any, Any, Any]) -> None:
    """Do one after the other; what a failure leaves undone is not begun."""
    try:
        for one in work:
            await one
    finally:
        for one in work:
            one.close()


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
    sources: Feed,
    work: Callable[[int, Shard], Awaitable[Any]],
    *,
    batched: bool = False,
) -> Manifest:
    """Run `work` on every shard whose part is not committed, commit the parts, then the stage.

    Args:
        name: the stage's folder in the run.
        title: what a person reads.
        work: takes a shard's place and the shard, returns a reference to its rows.
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
    total = merge(())
    failed: list[int] = []
    with run.progress.stage(title, len(sources), "shards") as shown:

        async def one(index: int, shard: Shard) -> None:
            nonlocal total
            shown.total = len(sources)
            reference = None if index in done else await work(index, shard)
            part = await commit_part.remote(run.store, name, index, reference)
            total = merge((total, part))
            if part.get("quarantined"):
                failed.append(index)
            shown.advance(1, f"{total['rows']} rows")

        await windowed(one, sources, EVERYTHING if batched else run.config.max_shards_in_flight)
    check_failures(run, name, title, total, failed)
    seconds = round(time.time() - began, 2)
    return stage.commit(total | {"parts": len(sources), "began": round(began, 2), "seconds": seconds})


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
