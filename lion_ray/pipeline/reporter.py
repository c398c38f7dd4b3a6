"""Write the run's report in the background after every iteration.

Invariants:
- A failed report is logged and never ends the run or one of its actors. Therefore it is a Ray task in its own process,
  not a method of the run store actor: if it hangs or takes too much memory, only this process is affected.
- Reports are written one at a time, in order; rows never reach the driver.

This module does not know what a report shows or who writes it.
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
"""Timeout for the last report at the end of a run, in seconds."""


class Reporter:
    """The driver's side: starts reports and logs failures."""

    def __init__(self, store: RunStore, progress: Progress, write: Callable[[RunStore], None]) -> None:
        """`write` must be a module-level function, so that another process can import it."""
        self._store = store
        self._progress = progress
        self._write: Any = ray.remote(num_cpus=0, max_retries=0)(write)
        self._last: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start writing the report of the committed work, after the previous report; returns at once."""
        self._last = asyncio.create_task(self._one(self._last))

    async def close(self, *, wait: bool) -> None:
        """Wait for the last report; with `wait` false, cancel it: `lion-ray report` can write it at any time."""
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
            # A task's exception arrives as a RayTaskError, a dead worker as another RayError.
            cause = as_raised(error)
            self._failed(first_line(f"{type(cause).__name__}: {cause}"))

    def _failed(self, why: str) -> None:
        self._progress.say(f"the report could not be written ({why[:400]}); the run continues; try lion-ray report")
