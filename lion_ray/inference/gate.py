"""Requests and changes of the weights take turns.

Invariants:
- No request is in the engine while its weights change: one that arrives meanwhile waits, then gets the new weights.
  vLLM itself queues such requests or, from 0.33 on, rejects them; here they never reach it.
- After a failed change the weights cannot be trusted, and every request fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lion_ray.core.errors import EngineError, first_line


class Gate:
    """A lock that requests share and a change has alone; a waiting change goes before new requests."""

    def __init__(self) -> None:
        self._inside = 0
        self._empty, self._open = asyncio.Event(), asyncio.Event()
        self._empty.set()
        self._open.set()
        self._failed = ""

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Raises EngineError after a failed change."""
        while not self._open.is_set():
            await self._open.wait()
        if self._failed:
            raise EngineError(f"the student engine's weights cannot be trusted: {self._failed}")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Begins once the requests inside have ended. One change at a time."""
        self._open.clear()
        try:
            await self._empty.wait()
            try:
                yield
            except BaseException as error:
                self._failed = first_line(error)
                raise
        finally:
            self._open.set()
