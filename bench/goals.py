"""What a bench promised, and what came of it: shown to people, and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Goal:
    """One promise; `ok` None where it was not measured."""

    name: str
    ok: bool | None
    measured: Any
    needed: Any
    note: str = ""


def at_most(name: str, measured: float | None, needed: float, note: str = "") -> Goal:
    return Goal(name, None if measured is None else measured <= needed, measured, needed, note)


def at_least(name: str, measured: float | None, needed: float, note: str = "") -> Goal:
    return Goal(name, None if measured is None else measured >= needed, measured, needed, note)


def all_ok(goals: Iterable[Goal]) -> bool:
    """Whether every goal that was measured held."""
    return all(goal.ok is not False for goal in goals)


def lines(goals: Iterable[Goal]) -> Iterator[str]:
    for goal in goals:
        verdict = "not measured" if goal.ok is None else "held" if goal.ok else "MISSED"
        note = f" ({goal.note})" if goal.note else ""
        yield f"{verdict:<14}{goal.name}: {goal.measured} against {goal.needed}{note}"


def as_json(goals: Iterable[Goal]) -> dict[str, dict[str, Any]]:
    return {goal.name: {key: value for key, value in asdict(goal).items() if key != "name"} for goal in goals}


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version()}


def last_line(found: Mapping[str, Any], goals: list[Goal], *, quick: bool) -> str:
    """The object that `--json` prints."""
    whole = {"ok": all_ok(goals), "quick": quick, "goals": as_json(goals), **found, "machine": machine()}
    return json.dumps(whole)
