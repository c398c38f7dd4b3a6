"""A bench's goals and their results, as text and as JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass
class Goal:
    """One goal; `ok` is None if it was not measured."""

    name: str
    ok: bool | None
    measured: Any
    needed: Any
    note: str = ""


def at_most(name: str, measured: float | None, needed: float, note: str = "") -> Goal:
    return Goal(name, None if measured is None else measured <= needed, measured, needed, note)


def at_least(name: str, measured: float | None, needed: float, note: str = "") -> Goal:
    return Goal(name, None if measured is None else measured >= needed, measured, needed, note)


def undecided(goals: Iterable[Goal], why: str) -> None:
    """Mark goals as not evaluated: they are shown, and neither met nor missed."""
    for goal in goals:
        goal.ok, goal.note = None, goal.note or why


def all_ok(goals: Iterable[Goal]) -> bool:
    """Whether every measured goal was met."""
    return all(goal.ok is not False for goal in goals)


def lines(goals: Iterable[Goal]) -> Iterator[str]:
    for goal in goals:
        verdict = "not measured" if goal.ok is None else "met" if goal.ok else "MISSED"
        note = f" ({goal.note})" if goal.note else ""
        yield f"{verdict:<14}{goal.name}: {goal.measured}, goal {goal.needed}{note}"


def as_json(goals: Iterable[Goal]) -> dict[str, dict[str, Any]]:
    return {goal.name: {key: value for key, value in asdict(goal).items() if key != "name"} for goal in goals}


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version()}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The growth of cost with size: the slope of log(cost) over log(size), by least squares."""
    slope, _ = np.polyfit([math.log(size) for size in sizes], [math.log(cost) for cost in costs], 1)
    return float(slope)


def parser(about: str | None, quick: str = "a smaller version: under a minute") -> argparse.ArgumentParser:
    """The options of every bench; `quick` describes a quick run."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="one JSON object on the last line")
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def conclude(given: argparse.Namespace, found: Mapping[str, Any], goals: list[Goal]) -> int:
    """Print the results; returns the exit code."""
    print("\n".join(lines(goals)))
    if given.json:
        print(last_line(found, goals, quick=given.quick))
    return 0 if all_ok(goals) else 1


def last_line(found: Mapping[str, Any], goals: list[Goal], *, quick: bool) -> str:
    """The object that `--json` prints."""
    whole = {"ok": all_ok(goals), "quick": quick, "goals": as_json(goals), **found, "machine": machine()}
    return json.dumps(whole)
