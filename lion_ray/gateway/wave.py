"""How many calls may be out at an endpoint whose bills are not known yet, or have just been a surprise.

Invariants:
- Under a cap few calls go before the first answer. Each answer that cost no more than was reserved lets one more go at
  a time; one that cost more sets the number back to one. So a surprise is never larger than what was out then.
- A call that is out is never stopped.

This module knows nothing of money, of HTTP or of time.
"""

from __future__ import annotations

import asyncio
from collections import deque

FIRST_WAVE = 4
"""Calls that are out together before an endpoint's first answer, of all its proxies."""


class Wave:
    """A gate for attempts at calls. Use it from one event loop."""

    def __init__(self, *, proxies: int = 1, narrow: bool = True) -> None:
        """For one of `proxies` that share an endpoint; not `narrow`: everybody may pass."""
        self.narrow = narrow
        self.width = max(1, FIRST_WAVE // proxies)
        self._out = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for a place; whoever has one gives it back with `leave`."""
        while self.narrow and self._out >= self.width:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                self._wake()  # the turn may have come, and is somebody else's now
                raise
        self._out += 1

    def leave(self) -> None:
        """An attempt is over, or is not sent."""
        self._out -= 1
        self._wake()

    def answered(self, *, surprised: bool) -> None:
        """A call came home; `surprised`: it cost more than was reserved for it."""
        self.width = 1 if surprised else self.width + 1

    def _wake(self) -> None:
        free = self.width - self._out
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1
