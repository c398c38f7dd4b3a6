"""Limits the calls in flight at an endpoint whose billing is not known yet, or has just exceeded a reservation.

Invariants:
- Under a cap few calls are sent before the first answer. Each answer within its reservation raises the limit by one; an
  answer beyond it resets the limit to one. So an excess affects only the calls in flight at that time.
- A call in flight is never stopped.

This module knows nothing of money, of HTTP or of time.
"""

from __future__ import annotations

import asyncio
from collections import deque

FIRST_WAVE = 4
"""Calls in flight before an endpoint's first answer, over all its proxies."""


class Wave:
    """A gate for attempts at calls. Use it from one event loop."""

    def __init__(self, *, proxies: int = 1, narrow: bool = True) -> None:
        """For one of `proxies` that share an endpoint; without `narrow` there is no limit."""
        self.narrow = narrow
        self.width = max(1, FIRST_WAVE // proxies)
        self._out = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for a place; the caller releases it with `leave`."""
        while self.narrow and self._out >= self.width:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                self._wake()  # pass the turn on, in case it came
                raise
        self._out += 1

    def leave(self) -> None:
        """An attempt has ended, or will not be sent."""
        self._out -= 1
        self._wake()

    def answered(self, *, surprised: bool) -> None:
        """A call was answered; `surprised`: it exceeded its reservation."""
        self.width = 1 if surprised else self.width + 1

    def _wake(self) -> None:
        free = self.width - self._out
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1
