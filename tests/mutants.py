"""Mutation testing: how many small faults, put into the code one at a time, the quick tests notice.

``make mutants SAMPLE=300`` tests so many, drawn from all with the same chance for each, and says how far the share in
all may be from the share in the sample; ``SEED=2`` draws others. ``make mutants`` tests every one;
``make mutants MUTATE=lion_ray/gateway/ledger.py TESTED=tests/gateway/test_ledger.py`` looks at one module. It works in
``.mutants``, a copy of the files that git tracks. What is not sampled goes on there where it was cut off, and a mutant
whose function has not changed is not tested again; a sample always is.

The figure is the share of mutants that a test failed for, or that ran for ever; one that no test reaches is a survivor.
Faults in the text of an error or of a log line count like any other (455 of 14,105). Which tests reach a function is
seen in the tests' own process alone, and tests that are LEFT_OUT notice nothing: both make the share smaller.

The mutants are mutmut's (the `mutants` extra), each in a process forked from one that has imported the tests. mutmut
loads this module into its pytest too: a mutant's quickest tests run first, and the first that fails ends it.
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
LEFT_OUT = (
    # They read the package's source files, which hold every mutant at once there: eleven times the text.
    "tests/unit/test_foreign_code.py",
    "tests/unit/test_imports.py",
    "tests/unit/test_layout.py",
    "tests/unit/test_terminal.py::test_nothing_prints_past_it",
    # Whole histories and random bytes, through nearly every function: seconds to minutes for each mutant that survives.
    "tests/gateway/test_simulated_seeds.py",
    "tests/unit/test_fuzz_targets.py",
    # They start a process for each case, where mutmut cannot see which functions are reached.
    "tests/unit/test_cli.py",
)
"""Tests that no mutant is shown: what they alone would notice counts as a survivor."""
AT_LEAST = 0.9
NOTICED = ("killed", "timeout", "segfault")
"""What mutmut calls a mutant that a test failed for, that ran out of time, and that ended the process of its tests."""
# What `mutmut run` does first; it has no command for that alone.
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
    """While mutmut asks which tests reach which function, it does so in this process alone: another, which a test
    starts, has no settings of mutmut's where it runs."""
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":
        del os.environ["MUTANT_UNDER_TEST"]  # it is known to this process without


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickest tests first, by the tenfold, and file by file: files have fixtures that their tests share."""
    known = Path("mutmut-stats.json")
    took = json.loads(known.read_text())["duration_by_test"] if known.exists() else {}

    def slowness(item: pytest.Item) -> tuple[int, str]:
        seconds = took.get(item.nodeid, 0.0)
        return sum(seconds > limit for limit in (0.1, 1, 10)), item.nodeid.split("::")[0]

    items.sort(key=slowness)


def settings(mutate: list[str], tested: list[str], beside: list[str]) -> str:
    """mutmut's section of pyproject.toml; `beside` is what the tests need next to the code."""
    known = {
        "source_paths": ["lion_ray"],
        "only_mutate": mutate,
        "also_copy": beside,
        "pytest_add_cli_args": [
            *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.mutants", "--timeout", "120"),
            *(part for name in LEFT_OUT for part in ("--deselect", name)),
        ],
        "pytest_add_cli_args_test_selection": tested,
        # Some tests have started threads by the time that the next is forked.
        "process_isolation": "forkserver",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in known.items()]
    return "\n".join(["", "[tool.mutmut]", *lines, ""])


def lay_out(mutate: list[str], tested: list[str]) -> None:
    """Copy what git tracks into `PLACE`, as it is in the working tree; what mutmut left there stays."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in names:
        (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, PLACE / name)
    beside = sorted({name.split("/")[0] for name in names} - {"lion_ray", "tests", "pyproject.toml"})
    with (PLACE / "pyproject.toml").open("a") as project:
        project.write(settings(mutate, tested, beside))


def mutmut(*words: str) -> list[str]:
    return [sys.executable, "-m", "mutmut", *words]


def verdicts() -> dict[str, str]:
    """What became of each mutant, by its name."""
    told = subprocess.run(mutmut("results", "--all", "1"), cwd=PLACE, check=True, capture_output=True, text=True)
    return dict(line.strip().split(": ", 1) for line in told.stdout.splitlines() if "__mutmut_" in line)


def interval(killed: int, total: int) -> tuple[float, float]:
    """Wilson's interval for the share in all, 95 %, where `total` of them were drawn."""
    from scipy.stats import binomtest

    found = binomtest(killed, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def main() -> int:
    """Run; returns 1 where too many survive, or mutmut's exit status where it could not run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutate", nargs="*", help=f"modules, * for all below; by default {' '.join(MUTATE)}")
    parser.add_argument("--tested", nargs="*", help=f"tests that may notice; by default {' '.join(TESTED)}")
    parser.add_argument("--sample", type=int, metavar="N", help="draw so many mutants of all; by default, all")
    parser.add_argument("--seed", type=int, default=1, help="which are drawn")
    parser.add_argument("--processes", type=int, default=1, help="mutants at once")
    parser.add_argument("--at-least", type=float, default=AT_LEAST, help="the share to be killed")
    given = parser.parse_args()
    lay_out(given.mutate or list(MUTATE), given.tested or list(TESTED))
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
        if verdict not in NOTICED:
            print(f"  {verdict}: {name}")
    print("one of them: (cd .mutants && python -m mutmut show NAME)")
    killed, total = sum(counts[verdict] for verdict in NOTICED), len(found)
    share = killed / total if total else 0.0
    of_all = ""
    if drawn:
        low, high = interval(killed, total)
        of_all = f", of all {low:.1%} to {high:.1%} (95 %, Wilson)"
    print(f"{killed} of {total} mutants killed: {share:.1%}{of_all}; at least {given.at_least:.0%} are to be")
    return int(share < given.at_least)


if __name__ == "__main__":
    sys.exit(main())
