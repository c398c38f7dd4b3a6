"""One iteration with and without overlap of its stages: see `bench/README.md`.

A real run on real Ray: proxy, referee and generator actors, run folder, journal. The endpoint is a stub server with
latency, the engine a stub with a delay. Fine-tuning is omitted, because nothing overlaps with it.

Exit code 0 if every measured goal was met, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench import goals as common
from bench.gantt import Lane, gantt
from bench.goals import Goal
from bench.stub_run import Engine, Recorder, bench_run, commit_checkpoints, ray_here, stub_config
from bench.texts import made
from lion_ray.config import RunConfig
from lion_ray.pipeline.loop import discrimination_and_generation, prepare
from lion_ray.pipeline.stages.teacher_answers import TeacherAnswers
from tests.stub_api import fetch_stats, stub_process


class Endpoint(NamedTuple):
    """The stub's latency and concurrency."""

    latency_s: float
    in_flight: int

    def least_s(self, calls: float) -> float:
        """The minimum time of `calls` calls: `in_flight` at a time, each as long as the latency."""
        return calls * self.latency_s / self.in_flight


FULL = Endpoint(0.5, 32)
QUICK = Endpoint(0.125, 8)
"""The same rate, with a latency scaled to a short iteration, in which half a dozen calls follow each other."""
STUDENT_SHARE = 0.6
"""The student's time to answer, as a share of the endpoint's total time."""
SAMPLE_S = 0.1


def config(folder: Path, name: str, base_url: str, *, in_flight: int, **sizes: int) -> RunConfig:
    return stub_config(folder, name, base_url, max_concurrency=in_flight, shard_rows=16, overlap=name == "on", **sizes)


async def prepared(given: RunConfig, base_dir: Path) -> None:
    """Import the pools and get the teacher's answers, from which both variants start."""
    engine = Engine.remote(0.0)
    async with bench_run(given, base_dir, engine) as run:
        commit_checkpoints(run.store, 1)
        await prepare(run)


async def iteration(
    given: RunConfig, base_dir: Path, base_url: str, endpoint: Endpoint, row_s: float
) -> dict[str, Any]:
    """Judge, generate, and get the teacher's answers; returns the total seconds and the timeline."""
    engine = Engine.remote(row_s)
    async with bench_run(given, base_dir, engine) as run:
        await run.actors.ready()
        before = fetch_stats(base_url)["total"]
        began = time.time()
        samples: list[tuple[float, int]] = []
        watching = asyncio.create_task(_watch(run.actors.proxies["default"][0], began, samples))
        await discrimination_and_generation(run, 1)
        await TeacherAnswers().run(run, 2)
        seconds = time.time() - began
        watching.cancel()
        calls = fetch_stats(base_url)["total"] - before
        assert isinstance(run.progress, Recorder)
        stages = sorted((start - began, end - began, name) for name, start, end in run.progress.spans)
        busy = [(start - began, end - began) for start, end in await engine.busy.remote()]
    calls_lane = Lane(
        "endpoint: calls in flight",
        [(at, at + SAMPLE_S) for at, count in samples if count],
        "resource",
        [min(1.0, count / endpoint.in_flight) for _, count in samples if count],
    )
    return {
        "seconds": seconds,
        "calls": calls,
        "endpoint_s": endpoint.least_s(calls),
        "student_s": sum(end - start for start, end in busy),
        "lanes": [
            *(Lane(name, [(start, end)]) for start, end, name in stages),
            Lane("student's engine", busy, "resource"),
            calls_lane,
        ],
    }


async def _watch(proxy: Any, began: float, samples: list[tuple[float, int]]) -> None:
    while True:
        stats = await proxy.stats.remote()
        samples.append((time.time() - began, stats.in_flight))
        await asyncio.sleep(SAMPLE_S)


def run(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    rows, heldout, new = (240, 32, 64) if given.quick else (960, 96, 192)
    endpoint = QUICK if given.quick else FULL
    # Two verdicts per row, an answer for each new row, and somewhat more generator requests than new rows.
    student_s = STUDENT_SHARE * endpoint.least_s(2 * (rows + heldout) + 2.2 * new)
    rounds: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
    with (
        ray_here(),
        stub_process("--lion", "--latency-ms", str(1000 * endpoint.latency_s)) as base_url,
        tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as name,
    ):
        base = Path(name)
        texts = made(rows + heldout)
        (base / "pool.jsonl").write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
        first = config(base / "prepared", "on", base_url, in_flight=512, heldout=heldout, new=new)
        say(f"{rows} rows, {heldout} held out, {new} new; the teacher answers them first")
        asyncio.run(prepared(first, base))
        for number in range(1 if given.quick else 3):
            for overlap in ("on", "off"):
                folder = base / f"round-{number}"
                shutil.copytree(base / "prepared" / "on", folder / overlap)
                run_config = config(folder, overlap, base_url, in_flight=endpoint.in_flight, heldout=heldout, new=new)
                found = asyncio.run(iteration(run_config, base, base_url, endpoint, student_s / (rows + heldout)))
                rounds[overlap].append(found)
                say(
                    f"round {number + 1}, overlap {overlap}: {found['seconds']:.1f} s; "
                    f"endpoint {found['endpoint_s']:.1f} s ({found['calls']} calls), student {found['student_s']:.1f} s"
                )
    return _findings(given, rounds)


def _findings(given: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> tuple[dict[str, Any], list[Goal]]:
    on, off = rounds["on"], rounds["off"]
    to_longest = statistics.median(one["seconds"] / max(one["endpoint_s"], one["student_s"]) for one in on)
    faster = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(on, off, strict=True))
    if given.picture:
        parts = [(f"overlap {name}: {found[0]['seconds']:.1f} s", found[0]["lanes"]) for name, found in rounds.items()]
        given.picture.write_text(gantt(parts))
    found = {
        overlap: {
            key: round(statistics.median(one[key] for one in ones), 2)
            for key in ("seconds", "calls", "endpoint_s", "student_s")
        }
        for overlap, ones in rounds.items()
    }
    goals = [
        common.at_most("time / time of the busiest resource", round(to_longest, 3), 1.15),
        common.at_least("times faster than without overlap", round(faster, 3), 1.5),
    ]
    if given.quick:
        common.undecided(goals[:1], "a fifth of such a short iteration is start and end")
    return {**found, "rounds": len(on), **(QUICK if given.quick else FULL)._asdict()}, goals


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--picture", type=Path, help="write the timelines of the first round to this SVG file")
    given = parser.parse_args()
    found, goals = run(given, common.say)
    return common.conclude(given, found, goals)


if __name__ == "__main__":
    sys.exit(main())
