"""Simulate many seeds, or repeat one: ``python -m tests.simulation [--seeds N] [--first N] [--jobs N] [--seed N]``."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.simulation.scenario import play, simulate
from tests.simulation.world import World, folder_in_memory, only_its_own_garbage

REPORT_S = 10.0
BLOCK = 50
"""Seeds that one process simulates at a time, which takes seconds."""


class Block(NamedTuple):
    """The results of some seeds."""

    seeds: int
    steps: int
    failed: tuple[tuple[int, str], ...]


def simulate_block(seeds: range) -> Block:
    steps, failed = 0, []
    for seed in seeds:
        with folder_in_memory() as folder:
            try:
                steps += simulate(seed, Path(folder)).steps
            except Exception as error:  # noqa: BLE001 - any failure must be reported with its seed
                failed.append((seed, "".join(traceback.format_exception(error))))
    return Block(len(seeds), steps, tuple(failed))


def results(seeds: range, jobs: int) -> Iterator[Block]:
    """Each block's result, in the order of completion."""
    blocks = [seeds[at : at + BLOCK] for at in range(0, len(seeds), BLOCK)]
    if jobs == 1:
        yield from map(simulate_block, blocks)
        return
    # A forked process has all imports, and a frozen heap.
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate_block, blocks)


def many(seeds: range, jobs: int, *, keep_going: bool) -> int:
    done = steps = failed = 0
    began = reported = time.monotonic()
    for block in results(seeds, jobs):
        done, steps, failed = done + block.seeds, steps + block.steps, failed + len(block.failed)
        for seed, trace in block.failed:
            print(f"{trace}seed {seed} failed: python -m tests.simulation --seed {seed}", flush=True)
        if failed and not keep_going:
            break
        now = time.monotonic()
        if now - reported >= REPORT_S:
            reported, rate = now, done / (now - began)
            print(
                f"{done:,} of {len(seeds):,} seeds, {steps:,} steps, {failed} failed, {rate:.1f} seeds/s, "
                f"{_minutes((len(seeds) - done) / rate)} left",
                flush=True,
            )
    print(f"{done:,} seeds, {steps:,} steps, {failed} failed, {_minutes(time.monotonic() - began)}")
    return 1 if failed else 0


def one(seed: int, folder: str | None) -> int:
    """Print the log of one seed."""
    with tempfile.TemporaryDirectory(dir=folder) if folder else folder_in_memory() as base:
        world, failed = World(seed, Path(base)), ""
        try:
            play(world)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told after the history
            del error.__notes__[:]
            failed = "".join(traceback.format_exception(error))
    for line in world.said:
        print(line.replace(f"{base}/", ""))
    print(f"{failed}seed {seed}: {world.steps:,} steps")
    return 1 if failed else 0


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> int:
    parser = argparse.ArgumentParser(description="simulate runs with faults, each from one seed")
    parser.add_argument("--seeds", type=int, default=1000, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--seed", type=int, help="run only this seed and print its log")
    parser.add_argument("--folder", help="with --seed: folder of the simulated disks (default: in memory)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args()
    # Killed processes leave unfinished coroutines behind.
    sys.unraisablehook = lambda unraisable: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    if options.seed is not None:
        return one(options.seed, options.folder)
    seeds = range(options.first, options.first + options.seeds)
    with only_its_own_garbage():
        return many(seeds, max(1, options.jobs), keep_going=options.keep_going)


if __name__ == "__main__":
    sys.exit(main())
