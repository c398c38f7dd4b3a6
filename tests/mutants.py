"""Mutation testing: the share of small faults, injected one at a time, that the fast tests detect.

``make mutants SAMPLE=300`` tests a uniform random sample and reports the share with a confidence interval; ``SEED=2``
draws another sample. ``make mutants`` tests all mutants;
``make mutants MUTATE=lion_ray/gateway/ledger.py TESTED=tests/gateway/test_ledger.py`` tests one module. It works in
``.mutants``, a copy of the files that git tracks. Without a sample an interrupted run resumes there, and a mutant whose
function has not changed is not tested again; a sample is always tested.

A mutant is detected if a test fails or times out; a mutant that no test reaches is a survivor. Faults in the texts of
errors and log lines count too (3 %). Coverage is recorded only in the tests' own process, and EXCLUDED tests
do not run: both lower the share.

The mutants are mutmut's (the `mutants` extra), each in a process forked from one that has imported the tests. mutmut
loads this module into its pytest too: a mutant's fastest tests run first, and the first failure ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".mutants"
MUTATE = (
    "lion_ray/discrimination/*",
    "lion_ray/generation/*",
    "lion_ray/similarity/*",
    "lion_ray/data/*",
    "lion_ray/gateway/*",
    "lion_ray/core/store.py",
)
TESTED = ("tests/unit", "tests/gateway")
EXCLUDED = (
    # They read the package's source files, which contain all mutants there: eleven times the text.
    "tests/unit/test_foreign_code.py",
    "tests/unit/test_imports.py",
    "tests/unit/test_layout.py",
    "tests/unit/test_terminal.py::test_nothing_prints_past_it",
    # Simulations and random bytes reach nearly every function: seconds to minutes for each surviving mutant.
    "tests/gateway/test_simulated_seeds.py",
    "tests/unit/test_fuzz_targets.py",
    # They start a process for each case, where mutmut cannot record coverage.
    "tests/unit/test_cli.py",
)
"""Tests that do not run: faults that only they would detect count as survivors."""
AT_LEAST = 0.9
DETECTED = ("killed", "timeout", "segfault")
"""mutmut's verdicts for a mutant that failed a test, timed out, or ended its tests' process."""
# The first step of `mutmut run`, which has no command of its own.
MAKE = """
from mutmut import __main__ as mutmut
mutmut.set_mutant_under_test("mutant_generation")
mutmut.Path("mutants").mkdir(exist_ok=True)
with mutmut.CatchOutput(spinner_title="Generating mutants"):
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(1)
"""


def pytest_configure() -> None:
    """While mutmut records coverage, hide that from processes that tests start: they run in folders without mutmut's
    settings."""
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        del os.environ["MUTANT_UNDER_TEST"]  # this process has read it already


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests by duration (in powers of ten), then by file, because a file's tests share fixtures."""
    known = Path("mutmut-stats.json")
    took = json.loads(known.read_text())["duration_by_test"] if known.exists() else {}

    def slowness(item: pytest.Item) -> tuple[int, str]:
        seconds = took.get(item.nodeid, 0.0)
        return sum(seconds > limit for limit in (0.1, 1, 10)), item.nodeid.split("::")[0]

    items.sort(key=slowness)


def settings(mutate: list[str], tested: list[str], others: list[str]) -> str:
    """mutmut's section of pyproject.toml; `others`: further files and folders that the tests need."""
    known = {
        "source_paths": ["lion_ray"],
        "only_mutate": mutate,
        "also_copy": others,
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.mutants", "--timeout", "120"),
            *(part for name in EXCLUDED for part in ("--deselect", name)),
        ],
        "pytest_add_cli_args_test_selection": tested,
        # Some tests have started threads when the next process is forked.
        "process_isolation": "forkserver",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in known.items()]
    return "\n".join(["", "[tool.mutmut]", *lines, ""])


def copy_project(mutate: list[str], tested: list[str]) -> None:
    """Copy the files that git tracks from the working tree into `PLACE`; mutmut's own files there stay."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in names:
        (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, PLACE / name)
    others = sorted({name.split("/")[0] for name in names} - {"lion_ray", "tests", "pyproject.toml"})
    with (PLACE / "pyproject.toml").open("a") as project:
        project.write(settings(mutate, tested, others))


def mutmut(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mutmut", *arguments]


def verdicts() -> dict[str, str]:
    """Each mutant's verdict, by its name."""
    done = subprocess.run(mutmut("results", "--all", "1"), cwd=PLACE, check=True, capture_output=True, text=True)
    return dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if "__mutmut_" in line)


def interval(killed: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the share of all mutants, from a sample of `total`."""
    from scipy.stats import binomtest

    found = binomtest(killed, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def main() -> int:
    """Returns 1 if too many mutants survive, or mutmut's exit status if it fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutate", nargs="*", help=f"modules to mutate, * for all below; default {' '.join(MUTATE)}")
    parser.add_argument("--tested", nargs="*", help=f"tests to run; default {' '.join(TESTED)}")
    parser.add_argument("--sample", type=int, metavar="N", help="number of mutants to draw; default: all")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument("--processes", type=int, default=1, help="mutants tested concurrently")
    parser.add_argument("--at-least", type=float, default=AT_LEAST, help="the required share of killed mutants")
    given = parser.parse_args()
    copy_project(given.mutate or list(MUTATE), given.tested or list(TESTED))
    drawn: list[str] = []
    if given.sample:
        subprocess.run([sys.executable, "-c", MAKE], cwd=PLACE, check=True)
        names = sorted(verdicts())
        drawn = random.Random(given.seed).sample(names, min(given.sample, len(names)))
        print(f"{len(drawn)} of {len(names)} mutants drawn (seed {given.seed})", flush=True)
    ran = subprocess.run(mutmut("run", "--max-children", str(given.processes), *drawn), cwd=PLACE, check=False)
    if ran.returncode:
        return ran.returncode
    found = verdicts()
    found = {name: found[name] for name in drawn or sorted(found)}
    counts = Counter(found.values())
    for name, verdict in found.items():
        if verdict not in DETECTED:
            print(f"  {verdict}: {name}")
    print("to show one: (cd .mutants && python -m mutmut show NAME)")
    killed, total = sum(counts[verdict] for verdict in DETECTED), len(found)
    share = killed / total if total else 0.0
    of_all = ""
    if drawn:
        low, high = interval(killed, total)
        of_all = f" (95 % interval for all, Wilson: {low:.1%} to {high:.1%})"
    print(f"{killed} of {total} mutants killed: {share:.1%}{of_all}; required: {given.at_least:.0%}")
    return int(share < given.at_least)


if __name__ == "__main__":
    sys.exit(main())
