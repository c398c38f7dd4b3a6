"""A real run with a stub for the student's engine: real Ray, run folder, actors and tasks."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lion_ray.actors.placement import Shares
from lion_ray.config import RunConfig
from lion_ray.core.progress import Progress, Stage
from lion_ray.core.records import ANSWER, OK
from lion_ray.core.store import RunStore
from lion_ray.pipeline.actor_group import ActorGroup
from lion_ray.pipeline.run import Run
from lion_ray.report import write_report


class Recorder(Progress):
    """Says nothing, and remembers when each stage ran."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.spans: list[tuple[str, float, float]] = []
        """Name, and seconds since the epoch of its begin and end."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        began = time.time()
        with super().stage(name, total, unit) as stage:
            yield stage
        self.spans.append((name, began, time.time()))


class StubEngine:
    """Answers one shard at a time, with so many seconds for each row."""

    def __init__(self, row_s: float) -> None:
        self._row_s = row_s
        self._one = asyncio.Lock()
        self._busy: list[tuple[float, float]] = []

    @ray.method(num_returns=2)
    async def answer(self, shard: pa.Table, iteration: int) -> tuple[pa.Table, int]:
        """ANSWER rows, and their number."""
        async with self._one:
            began = time.time()
            count = shard.num_rows
            same = {
                "status": OK,
                "finish_reason": "stop",
                "model": "stub",
                "version": str(iteration),
                "prompt_tokens": 20,
                "completion_tokens": 10,
            }
            columns = {name: [value] * count for name, value in same.items()} | {
                "id": shard["id"],
                "text": [f"Of {row_id[:8]} the student knows little." for row_id in shard["id"].to_pylist()],
            }
            columns |= {name: [None] * count for name in ANSWER.names if name not in columns}
            if self._row_s:
                await asyncio.sleep(self._row_s * count)
            self._busy.append((began, time.time()))
        return pa.Table.from_pydict(columns, schema=ANSWER), count

    async def busy(self) -> list[tuple[float, float]]:
        """When it was at work, in seconds since the epoch."""
        return self._busy


Engine: Any = ray.remote(num_cpus=0)(StubEngine)


class StubStudents:
    """In the place of `StudentPool`: engines that are always there."""

    def __init__(self, engine: Any, width: int = 2) -> None:
        self._engine = engine
        self.running: dict[int, Any] = {}  # the bench ends its engine itself
        self.window = width
        self._free = asyncio.Semaphore(width)

    async def load(self, *_: object) -> None:
        """Nothing to load."""

    async def answer(self, shard: Any, iteration: int) -> Any:
        async with self._free:
            answers, count = self._engine.answer.remote(shard, iteration)
            await count
            return answers

    async def rest(self, keep: int | None = None) -> None:
        """Nothing to give back."""

    async def stop(self) -> None:
        """Nothing to stop: the bench ends its engine."""


@contextmanager
def ray_here() -> Iterator[None]:
    """A Ray of this bench's own."""
    ray.init(
        num_cpus=4, log_to_driver=False, logging_level="ERROR", include_dashboard=False, namespace="lion-ray-bench"
    )
    try:
        yield
    finally:
        ray.shutdown()


def stub_config(
    folder: Path, name: str, base_url: str, *, heldout: int, new: int, max_concurrency: int = 64, **more: Any
) -> RunConfig:
    """One iteration on ``pool.jsonl``, at one endpoint, with `new` instructions to generate."""
    endpoint = {"base_url": base_url, "model": "stub", "api_key_env": None, "max_concurrency": max_concurrency}
    return RunConfig.model_validate(
        {
            "run_name": name,
            "storage_path": str(folder),
            "iterations": 1,
            "data": {"pool": "pool.jsonl", "heldout": heldout},
            "endpoints": {"default": endpoint},
            "student": {"model": "none"},
            "referee": {"prompt": "scores"},
            "generation": {"hard": new // 2, "easy": new - new // 2},
            "placement": "dedicated",
            **more,
        }
    )


@contextmanager
def claimed(config: RunConfig) -> Iterator[tuple[RunStore, int]]:
    """The run's folder while this process is its attempt, and the attempt's number."""
    store = RunStore(f"{config.storage_path}/{config.run_name}")
    attempt = store.claim()
    try:
        yield store, attempt
    finally:
        store.heartbeat(ended=True)


@asynccontextmanager
async def bench_run(config: RunConfig, base_dir: Path, engine: Any) -> AsyncIterator[Run]:
    """A run that has begun, with `engine` as its student; its progress is a `Recorder`."""
    progress = Recorder()
    with claimed(config) as (store, attempt):
        async with ActorGroup(config, base_dir, store, attempt, progress, write_report, Shares({})) as group:
            group.students = StubStudents(engine)  # type: ignore[assignment]
            yield Run(config, base_dir, store, progress, group)


def commit_checkpoints(store: RunStore, iterations: int) -> None:
    """As if every fine-tuning had been done: it is not what is measured here."""
    for iteration in range(1, iterations + 2):
        store.stage(f"iteration-{iteration}/checkpoint").commit({"heldout_loss_after": None})
