"""Writes the run's report beside the run, after every iteration.

Invariants:
- A report that fails, in whatever way, is told in the log and ends nothing: not the run, and no actor that the run
  needs. So it is a task in a process of its own, not a method of the run store actor: one that takes too much memory
  or hangs takes itself away only, and does not share an interpreter with the parts that are being committed.
- One at a time, in the order asked for; rows never come to the driver.

This module knows nothing of what a report shows, nor who writes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from lion_ray.core.errors import as_raised, first_line
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore

LAST_S = 300.0
"""How long the end of a run waits for its last report."""


class Reporter:
    """The driver's side: begins reports, and says what became of them."""

    def __init__(self, store: RunStore, progress: Progress, write: Callable[[RunStore], None]) -> None:
        """`write` is a function of a module, for a process of its own to import."""
        self._store = store
        self._progress = progress
        self._write: Any = ray.remote(num_cpus=0, max_retries=0)(write)
        self._last: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to write the report of what is committed, once the one before is written; returns at once."""
        self._last = asyncio.create_task(self._one(self._last))

    async def close(self, *, wait: bool) -> None:
        """Wait for what was begun, or with `wait` false leave it: `lion-ray report` writes it at any time."""
        if self._last is None:
            return
        if wait:
            try:
                await self._progress.waiting(asyncio.wait_for(self._last, LAST_S), "the report")
            except TimeoutError:
                self._failed(f"it was not written within {LAST_S:.0f} s")
        self._last.cancel()

    async def _one(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        writing: Any = self._write.remote(self._store)
        try:
            await writing
        except ray.exceptions.RayError as error:
            # Whatever went wrong there: what a task raises comes home as a RayTaskError, a dead worker as another.
            cause = as_raised(error)
            self._failed(first_line(f"{type(cause).__name__}: {cause}"))

    def _failed(self, why: str) -> None:
        self._progress.say(f"the report could not be written ({why[:400]}); the run goes on. Try: lion-ray report RUN")
