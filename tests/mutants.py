"""Mutation testing: how many small faults, put into the code one at a time, the quick tests notice.

``make mutants`` runs it whole, which takes hours; ``make mutants MUTATE=lion_ray/gateway/ledger.py
TESTED=tests/gateway/test_ledger.py`` looks at one module. It works in ``.mutants``, a copy of the files that git
tracks, and goes on there where it was cut off; a mutant whose function has not changed is not tested again.

The figure is the share of mutants that a test failed for, or that ran for ever; one that no test reaches is a survivor.
The mutants are mutmut's (the `mutants` extra), each in a process forked from one that has imported the tests.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

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
AT_LEAST = 0.9


def settings(mutate: list[str], tested: list[str], beside: list[str]) -> str:
    """mutmut's section of pyproject.toml; `beside` is what the tests need next to the code."""
    known = {
        "source_paths": ["lion_ray"],
        "only_mutate": mutate,
        "also_copy": beside,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist"],
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


def main() -> int:
    """Run; returns 1 where too many survive, or mutmut's exit status where it could not run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutate", nargs="*", help=f"modules, * for all below; by default {' '.join(MUTATE)}")
    parser.add_argument("--tested", nargs="*", help=f"tests that may notice; by default {' '.join(TESTED)}")
    parser.add_argument("--processes", type=int, default=1, help="mutants at once")
    parser.add_argument("--at-least", type=float, default=AT_LEAST, help="the share to be killed")
    given = parser.parse_args()
    lay_out(given.mutate or list(MUTATE), given.tested or list(TESTED))
    mutmut = [sys.executable, "-m", "mutmut"]
    ran = subprocess.run([*mutmut, "run", "--max-children", str(given.processes)], cwd=PLACE, check=False)
    if ran.returncode:
        return ran.returncode
    subprocess.run([*mutmut, "export-cicd-stats"], cwd=PLACE, check=True, capture_output=True)
    subprocess.run([*mutmut, "results"], cwd=PLACE, check=True)
    found = json.loads((PLACE / "mutants" / "mutmut-cicd-stats.json").read_text())
    killed, total = found["killed"] + found["timeout"], found["total"] - found["skipped"]
    share = killed / total if total else 0.0
    print(f"{killed} of {total} mutants killed: {share:.0%} (at least {given.at_least:.0%} are to be)")
    print("one of them: (cd .mutants && python -m mutmut show NAME)")
    return int(share < given.at_least)


if __name__ == "__main__":
    sys.exit(main())
