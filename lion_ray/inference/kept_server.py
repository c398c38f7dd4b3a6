"""A model server that is started again if it exits by itself, for as long as its endpoint is in use.

Invariants:
- Its address stays the same. Callers' requests are retried meanwhile, as in an outage (see `gateway.breaker`).
- A server that exits again soon after each of `MOST_RESTARTS` restarts is given up: whoever waits gets an EndpointError
  that quotes its log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from lion_ray.core.errors import EndpointError
from lion_ray.inference.server import ModelServer

T = TypeVar("T")
MOST_RESTARTS = 3
STEADY_S = 1800.0
"""A server that has run this long is not counted among those that exit at once."""
POLL_S = 0.5


class KeptServer:
    """Starts, watches, restarts and stops one server."""

    def __init__(self, server: ModelServer, say: Callable[[str], None]) -> None:
        """`server`: not started yet."""
        self.server = server
        self._say = say
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start the server and watch it; returns its base URL. Raises EndpointError like `ModelServer.start`."""
        base_url = await self.server.start(self._say)
        self._watch = asyncio.create_task(self._keep())
        return base_url

    async def _keep(self) -> None:
        restarts, started = 0, time.monotonic()
        while True:
            while self.server.alive():  # noqa: ASYNC110 - another process
                await asyncio.sleep(POLL_S)
            restarts = 1 if time.monotonic() - started > STEADY_S else restarts + 1
            why = self.server.why_it_ended()
            if restarts > MOST_RESTARTS:
                raise EndpointError(f"{why}, also after {MOST_RESTARTS} restarts")
            self._say(f"{why}; starting it again")
            try:
                await self.server.restart(self._say)
            except EndpointError:
                if self.server.alive():
                    raise  # it does not answer in time
            started = time.monotonic()

    async def during(self, work: Awaitable[T]) -> T:
        """The result of `work`, which calls the server. Raises EndpointError if the server cannot be kept running."""
        assert self._watch is not None, "not started"
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._watch.result()
            return await task
        finally:
            task.cancel()

    async def stop(self) -> None:
        """Stop the server, and wait until its processes have exited."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError, EndpointError):
                await self._watch
        await asyncio.to_thread(self.server.stop)
