"""The steps of a fit, written down by its first worker and read by whoever follows the run.

Invariants:
- A step that stands before a checkpoint within the fit is written before that checkpoint, and the last one before the
  fit ends: a fit that is restored, or committed, lacks none.
- A step stands there once. A restored fit goes on where its checkpoint was, and what had been written after it is
  written anew.
- Files hold `ROWS` steps each and are replaced whole, so this works on object stores, where nothing can be appended;
  the names follow from the steps' numbers, so nothing is listed.

Numbers are those within the fit, from 1. This module does not know what a step measures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from lion_ray.core import layout
from lion_ray.core.store import RunStore

ROWS = 256
"""Steps in one file."""
EVERY_S = 1.0
"""The file under way is replaced at most this often, but for checkpoints and ends."""


class StepLog:
    """The writing side, in the fit's first worker."""

    def __init__(self, store: RunStore, stage: str) -> None:
        self._store = store
        self._stage = stage
        self._rows: list[dict[str, Any]] | None = None
        self._written_at = 0.0

    def add(self, metrics: Mapping[str, Any], *, at_once: bool) -> None:
        """Note a step (its `step` and what was measured); `at_once`: it must be on storage when this returns.

        Raises:
            InfrastructureError: the storage refused.
        """
        step = int(metrics["step"])
        number = (step - 1) // ROWS
        if self._rows is None:  # a fit that is restored: its checkpoint may be in the middle of a file
            self._rows = [row for row in _read(self._store, self._stage, number) if row["step"] < step]
        self._rows.append({**metrics, "time": round(time.time(), 3)})
        full = step % ROWS == 0
        if at_once or full or time.monotonic() - self._written_at > EVERY_S:
            lines = "".join(json.dumps(row) + "\n" for row in self._rows)
            self._store.write_bytes(layout.steps(self._stage, number), lines.encode())
            self._written_at = time.monotonic()
        if full:
            self._rows = []


def read_steps(store: RunStore, stage: str, after: int = 0) -> list[dict[str, Any]]:
    """The steps of a fit whose numbers are above `after`, in order: those that are on storage by now.

    Raises:
        InfrastructureError: the storage refused.
    """
    found: list[dict[str, Any]] = []
    number = after // ROWS
    while rows := _read(store, stage, number):
        found += [row for row in rows if row["step"] > after]
        if rows[-1]["step"] != (number + 1) * ROWS:
            break
        number += 1
    return found


def _read(store: RunStore, stage: str, number: int) -> list[dict[str, Any]]:
    """The steps in one file; of a file that is replaced while it is read, those before the break."""
    try:
        lines = store.read_bytes(layout.steps(stage, number)).split(b"\n")
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = []
    for line in lines[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        expected = rows[-1]["step"] + 1 if rows else number * ROWS + 1
        if not isinstance(row, dict) or row.get("step") != expected:
            break
        rows.append(row)
    return rows
