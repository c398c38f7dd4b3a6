"""The log of a fit's steps: its first worker writes it, and the run's driver reads it.

Invariants:
- A step is written before the next checkpoint within the fit, and the last step before the fit ends: a restored or
  committed fit lacks no step.
- A step is logged once. A restored fit resumes at its checkpoint and overwrites the later steps.
- Files hold `ROWS` steps each and are replaced whole, because object stores cannot append. Their names follow from the
  steps' numbers, so no listing is needed.

Steps are numbered within the fit, from 1. This module does not know what a step measures.
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
"""The current file is replaced at most this often, except at checkpoints and at the end."""


class StepLog:
    """The writing side, in the fit's first worker."""

    def __init__(self, store: RunStore, stage: str) -> None:
        self._store = store
        self._stage = stage
        self._rows: list[dict[str, Any]] | None = None
        self._written_at = 0.0

    def add(self, metrics: Mapping[str, Any], *, at_once: bool) -> None:
        """Log a step (its `step` and its metrics); with `at_once` it is on storage when this returns.

        Raises:
            InfrastructureError: the storage refused.
        """
        step = int(metrics["step"])
        number = (step - 1) // ROWS
        if self._rows is None:  # a restored fit may resume in the middle of a file
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
    """The steps of a fit after number `after` that are on storage, in order.

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
    """The steps in one file; if it is replaced while it is read, those before the first inconsistency."""
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
