"""One endpoint at several addresses: each call goes to the healthy address with the fewest calls in flight.

Invariants:
- A call is sent to another address at once only if the first could not be reached, so that it was not sent. Any other
  error is the caller's to decide, as with one address.
- An address that could not be reached rests; it is tried again after `REST_S`, or when no other is left.
- The address is no part of a call's key: who answers makes no difference to the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from lion_ray.gateway.reply import Reply
from lion_ray.gateway.transport import Transport
from lion_ray.gateway.wire import Unreachable

REST_S = 10.0
"""How long an address that could not be reached is avoided, in seconds."""


class Spread:
    """A transport over several transports."""

    def __init__(self, transports: Sequence[Transport], clock: Callable[[], float] = time.monotonic) -> None:
        self._transports = list(transports)
        self._clock = clock
        self._in_flight = [0] * len(self._transports)
        self._rests_until = [0.0] * len(self._transports)

    async def chat(self, body: dict[str, Any]) -> Reply:
        """Send `body` once. Raises TransportError: Unreachable only if no address could be reached."""
        untried = set(range(len(self._transports)))
        while True:
            place = min(untried, key=self._rank)
            untried.remove(place)
            self._in_flight[place] += 1
            try:
                reply = await self._transports[place].chat(body)
            except Unreachable:
                self._rests_until[place] = self._clock() + REST_S
                if not untried:
                    raise
            else:
                self._rests_until[place] = 0.0
                return reply
            finally:
                self._in_flight[place] -= 1

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._transports))

    def _rank(self, place: int) -> tuple[bool, int, int]:
        return self._rests_until[place] > self._clock(), self._in_flight[place], place
