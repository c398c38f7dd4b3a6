"""Does Lion improve a student? Arms that use the same number of teacher answers, on tasks with known answers.

Runs the missing cells (an arm, a seed, a teacher's error, a judge's noise) one by one, and shows all results.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also as a script

from bench.harness import BenchError
from bench.learning.arms import ARMS, FULL, HALF, QUICK, Cell
from bench.learning.experiment import ensure, read_result, result_file
from bench.learning.picture import curves
from bench.learning.summary import arms_table, by_settings, curve, families_table, outcome

QUICK_ARMS = ("seed_only", "lion")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [arm.name for arm in ARMS]
    parser = argparse.ArgumentParser(
        prog="python bench/learning",
        description=__doc__,
        epilog="arms: " + "; ".join(f"{arm.name}: {arm.about}" for arm in ARMS),
    )
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK_ARMS)}, one seed, very few rows")
    parser.add_argument("--half", action="store_true", help="half the teacher's answers")
    parser.add_argument("--arm", action="append", choices=names, help="only this arm (repeatable)")
    parser.add_argument("--seeds", type=int, help="number of seeds, from 0; default 3, with --quick 1")
    parser.add_argument("--error", type=float, action="append", help="the teacher's error rate (repeatable); default 0")
    parser.add_argument("--noise", type=float, action="append", help="the judge's noise (repeatable); default 0")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="folder of runs and results")
    parser.add_argument("--picture", type=Path, help="an SVG file for the learning curves; default FOLDER/curves.svg")
    parser.add_argument("--alone", action="store_true", help="do not reuse another run's first imitation")
    parser.add_argument("--show", action="store_true", help="run nothing, only show the results")
    return parser.parse_args(arguments)


def cells(given: argparse.Namespace) -> list[Cell]:
    """The cells to run: every arm of a seed before the next seed."""
    arms = given.arm or (QUICK_ARMS if given.quick else [arm.name for arm in ARMS])
    seeds = range(given.seeds or (1 if given.quick else 3))
    settings = itertools.product(given.error or [0.0], given.noise or [0.0])
    size = QUICK if given.quick else HALF if given.half else FULL
    return [Cell(arm, seed, *world, size) for world in settings for seed in seeds for arm in arms]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the run is stopped too
    given = parse()
    folder = given.folder.absolute()
    wanted = cells(given)
    failed = []
    for cell in [] if given.show else wanted:
        try:
            ensure(folder, cell, alone=given.alone)
        except BenchError as reason:
            print(f"learning: {reason}", file=sys.stderr, flush=True)
            failed.append(cell)
    found = [outcome(read_result(file)) for cell in wanted if (file := result_file(folder, cell)).exists()]
    if found:
        print("\n".join(arms_table(found)))
        for settings, arms in by_settings(found).items():
            error, noise = settings
            about = f"teacher's error {error:g}, judge's noise {noise:g}"
            print(f"\nExact match by family (new rows of it), {about}:\n")
            print("\n".join(families_table(found, settings)))
            file = given.picture or folder / "curves.svg"
            if len(by_settings(found)) > 1:
                file = file.with_stem(f"{file.stem}-error{error:g}-noise{noise:g}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(curves({name: curve(runs) for name, runs in arms.items()}, f"exact match, {about}"))
            print(f"\n{file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
