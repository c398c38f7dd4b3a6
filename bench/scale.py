"""Pools of growing size through every stage: see `bench/README.md`.

Real Ray, run folder, actors, referee and generator; stubs for the endpoint's proxy, which answers at once without a
journal, and for the student's engine. Fine-tuning is omitted. This measures the control plane.

Exit code 0 if every measured goal was met, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

import pyarrow as pa
import ray

from bench import goals as common
from bench.goals import Goal
from bench.harness import run_client
from bench.measure import peak_mb
from bench.scale_parts import PARTS
from bench.scale_pool import config, write_pool
from bench.stub_run import Engine, Recorder, StubStudents, claimed, commit_checkpoints, ray_here
from lion_ray.actors.generator import GeneratorActor
from lion_ray.actors.novelty_shard import start_shards
from lion_ray.actors.referee import RefereeActor
from lion_ray.actors.run_store import RunStoreActor
from lion_ray.actors.teacher import answer_row
from lion_ray.config import RunConfig
from lion_ray.core.records import ANSWER, table
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Call, Completion
from lion_ray.pipeline.loop import iterate, prepare
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stage import Phase

ROWS_PER_S = 2000
DRIVER_MB = 1000.0


class StubProxy:
    """Replaces the proxy (`TeacherActor`): every call is answered at once, according to its role."""

    def __init__(self) -> None:
        self._words = [f"word{number}" for number in range(20_000)]

    async def ready(self) -> str:
        return "stub"

    async def complete(self, calls: list[Call], patient: bool = True) -> list[Completion]:
        return [self._answer(call) for call in calls]

    async def answer(self, shard: pa.Table, stage: str) -> pa.Table:
        rows = shard.select(["id", "text"]).to_pylist()
        calls = (Call(({"role": "user", "content": row["text"]},), 64, role="teacher") for row in rows)
        return table((answer_row(row["id"], self._answer(call)) for row, call in zip(rows, calls, strict=True)), ANSWER)

    def _answer(self, call: Call) -> Completion:
        key = call.key("stub")
        draw = int(key[:12], 16)
        if call.role == "referee":
            text = f"{1 + draw % 10} {1 + draw // 10 % 10}"
        elif call.role == "generator":
            text = " ".join(random.Random(draw).choices(self._words, k=10))
        else:
            text = f"It is known that {key[:20]}."
        return Completion(key, text, "stop", "stub", "default", 100, 20)


ProxyActor: Any = ray.remote(num_cpus=0, max_concurrency=100)(StubProxy)


class StubActorGroup:
    """Replaces `ActorGroup`, with stubs for the endpoint's proxy and the engine."""

    def __init__(self, config: RunConfig, base_dir: Path, store: RunStore) -> None:
        self._config, self._store = config, store
        self.run_store: Any = RunStoreActor.remote(store)
        name = f"{config.run_name}/endpoint-default-0"
        self._proxy = ProxyActor.options(name=name).remote()
        self.engine = Engine.remote(0.0)
        self.students = StubStudents(self.engine, width=4)
        tau = config.discrimination.tau
        self.referee: Any = RefereeActor.remote(config.referee, (name,), False, base_dir, config.seed, tau)
        self.generator: Any = GeneratorActor.remote(config.generator, config.generation, (name,), base_dir, config.seed)

    async def ready(self) -> None:
        await self._proxy.ready.remote()

    def teacher(self, shard: int) -> Any:
        return self._proxy

    @contextmanager
    def novelty_shards(self, iteration: int, parts: Sequence[str], rows: int) -> Iterator[list[str]]:
        limit = self._config.generation.max_similarity
        shards = start_shards(f"{self._config.run_name}/iteration-{iteration}", self._store, parts, rows, limit)
        yield list(shards)


async def stages(folder: Path, rows: int) -> dict[str, Any]:
    """One pool through import, the teacher's answers, discrimination and generation with its answers."""
    shared = shared_memory()
    whole = config(folder, rows)
    with claimed(whole) as (store, _):
        run = Run(whole, folder, store, Recorder(), StubActorGroup(whole, folder, store))
        commit_checkpoints(run.store, 1)
        seconds: dict[str, float] = {}
        before = peak_mb()
        with _timed(seconds, "preparing"):
            await prepare(run)
        with _timed(seconds, "discrimination"):
            await iterate(run, 1, Phase.DISCRIMINATION)
        with _timed(seconds, "generation"):
            await iterate(run, 1, Phase.GENERATION)
        assert isinstance(run.progress, Recorder)
        files = [path for path in Path(run.store.path()).rglob("*") if path.is_file()]
        judged = run.store.stage("iteration-1/verdicts").manifest() or {}
        grown = run.store.stage("pool-1").manifest() or {}
    return {
        "rows": rows,
        "judged": judged.get("rows", 0),
        "new": grown.get("rows", 0),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "stages": {name: round(end - begin, 2) for name, begin, end in run.progress.spans},
        "rows_per_s": round(rows / (seconds["discrimination"] + seconds["generation"])),
        "driver_peak_mb": round(peak_mb(), 1),
        "driver_grown_mb": round(peak_mb() - before, 1),
        "object_store_peak_mb": round((shared_memory() - shared) / 1e6, 1),
        "files": len(files),
        "file_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def shared_memory() -> int:
    """Bytes of shared memory in use: it holds Ray's object store, which frees nothing before it ends."""
    return shutil.disk_usage("/dev/shm").used


def one(rows: int) -> None:
    """Measure one size, in this process; prints JSON."""
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as name:
        write_pool(Path(name) / "pool.jsonl", rows)
        with ray_here():
            print(json.dumps(asyncio.run(stages(Path(name), rows))), flush=True)


def run(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    sizes = given.rows or ([2_000, 10_000] if given.quick else [10_000, 100_000, 1_000_000])
    found = []
    for rows in sizes:
        # In its own process, so that each driver's peak is measured separately.
        found.append(run_client(sys.executable, "bench.scale", "--one", str(rows), timeout_s=3600))
        last = found[-1]
        say(
            f"{rows:,} rows: {last['rows_per_s']:,} rows/s through discrimination and generation ({last['seconds']}), "
            f"driver {last['driver_peak_mb']:.0f} MB, object store {last['object_store_peak_mb']:.0f} MB, "
            f"{last['files']:,} files"
        )
    largest = found[-1]
    busy = [one["seconds"]["discrimination"] + one["seconds"]["generation"] for one in found]
    slope = round(common.exponent(sizes, busy), 3) if len(sizes) > 1 else None
    memory = round(found[-1]["driver_peak_mb"] - found[0]["driver_peak_mb"], 1) if len(sizes) > 1 else None
    rate, note = (None, "mostly start-up") if given.quick else (largest["rows_per_s"], "")
    goals = [
        common.at_least(f"rows/s at {largest['rows']:,} rows", rate, ROWS_PER_S, note),
        common.at_most("growth exponent of the time", slope, 1.05),
        common.at_most("driver's memory in MB", largest["driver_peak_mb"], DRIVER_MB),
        common.at_most("growth of the driver's memory over all sizes, MB", memory, 0.1 * DRIVER_MB),
    ]
    return {"sizes": found, "exponent": slope}, goals


def part(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    """Measure one of `scale_parts` at each size."""
    found = []
    for rows in given.rows or ([10_000] if given.quick else [100_000, 1_000_000]):
        found.append(run_client(sys.executable, "bench.scale_parts", given.part, str(rows), timeout_s=3600))
        say(json.dumps(found[-1]))
    return {"part": given.part, "sizes": found}, []


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", help="other pool sizes")
    parser.add_argument("--part", choices=PARTS, help="one part alone, without Ray and without goals")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one)
        return 0
    found, goals = (part if given.part else run)(given, common.say)
    return common.conclude(given, found, goals)


if __name__ == "__main__":
    sys.exit(main())
