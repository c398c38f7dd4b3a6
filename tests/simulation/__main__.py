"""Simulate many seeds, or one again: ``python -m tests.simulation [--seeds N] [--first N] [--seed N]``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
import warnings
from pathlib import Path

from tests.simulation.scenario import simulate
from tests.simulation.world import folder_in_memory


def main() -> int:
    parser = argparse.ArgumentParser(description="simulate runs among disasters, each from one seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one, telling all that happens")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    options = parser.parse_args()
    # Ended processes leave unfinished coroutines behind, as they do.
    sys.unraisablehook = lambda unraisable: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    gc.collect()
    gc.freeze()  # an ended process is a heap of cycles: only the simulation's own are to be looked through
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    failed, steps, began = 0, 0, time.monotonic()
    for done, seed in enumerate(seeds, 1):
        with folder_in_memory() as folder:
            try:
                world = simulate(seed, Path(folder))
            except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be told
                failed += 1
                traceback.print_exception(error)
                print(f"seed {seed} failed: python -m tests.simulation --seed {seed}", flush=True)
                if not options.keep_going:
                    return 1
                continue
        steps += world.steps
        if options.seed is not None:
            print("\n".join(world.said))
        if done % 5000 == 0:
            print(f"{done:,} seeds, {steps:,} steps, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(seeds):,} seeds, {steps:,} steps, {failed} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
