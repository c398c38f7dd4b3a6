"""The state of a batch queue: a requested call, the calls gathered for the next batch, and a batch.

Invariants:
- A gathering holds at most one batch's calls; it is shipped when it is full, or when no call has joined for a while.

This module knows no API and no folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lion_ray.config import BatchConfig
from lion_ray.gateway.batch.lines import Output
from lion_ray.gateway.batch.state import BatchRecord
from lion_ray.gateway.reply import Reply

if TYPE_CHECKING:
    from openai.types import Batch


@dataclass(slots=True)
class PendingCall:
    """A call with a waiting caller, or whose answer is not settled yet."""

    key: str
    line: bytes
    future: asyncio.Future[Reply]
    live: bool = False
    """The caller prefers a live call, and sends it itself if the batch does not answer it."""
    wanted: Callable[[], bool] = lambda: True
    """Whether its caller's own callers still want the answer."""
    waiters: int = 0
    rounds: int = 0
    """Batches that ended without answering it."""
    turned_away: int = 0
    """How often the endpoint had no room for its batch."""
    refusals: int = 0
    """How often that was although no other batch of ours was queued."""

    def __post_init__(self) -> None:
        # Callers may have left: mark an error as retrieved, so that asyncio does not log it.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())


@dataclass
class UnderWay:
    """A batch whose record is open."""

    record: BatchRecord
    open: set[str]
    """Keys that may have an answer in it and are not settled."""
    waiting: dict[str, PendingCall] = field(default_factory=dict)
    """Calls of this process that wait for its end."""
    fresh: bool = False
    """Not bought yet."""
    maybe_created: bool = False
    remote: Batch | None = None
    """The endpoint's last report of it."""
    output: Output | None = None
    task: asyncio.Task[None] | None = None
    closing: bool = False
    """It gives no more answers: a repeated call joins another batch."""

    @property
    def running(self) -> bool:
        return self.task is not None and not self.task.done()

    def has(self, key: str) -> bool:
        """Whether a call with this key may still get an answer from it."""
        return not self.closing and (self.output is None or key in self.open)

    def take(self) -> list[PendingCall]:
        """Remove and return all waiting calls."""
        taken = list(self.waiting.values())
        self.waiting.clear()
        return taken

    def release(self) -> None:
        """Release its output's disk space."""
        if self.output is not None:
            self.output.close()
            self.output = None


class Gathering:
    """Calls that will form the next batch."""

    def __init__(
        self,
        config: BatchConfig,
        ship: Callable[[dict[str, PendingCall]], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """`ship` receives the calls of one batch, in the order in which they joined."""
        self._config = config
        self._ship = ship
        self._clock = clock
        self._sleep = sleep
        self._members: dict[str, PendingCall] = {}
        self._bytes = 0
        self._fit = config.max_requests
        self._joined_at = clock()
        self._lingering: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, call: PendingCall) -> None:
        """Add a call. A call larger than a batch's file may be is sent alone, so that the endpoint decides."""
        if self._members and self._bytes + len(call.line) > self._config.max_bytes:
            self._leave()
        self._members[call.key] = call
        self._bytes += len(call.line)
        self._joined_at = self._clock()
        if len(self._members) >= self._fit:
            self._leave()
        elif not self._closed and (self._lingering is None or self._lingering.done()):
            self._lingering = asyncio.create_task(self._linger())

    def has(self, call: PendingCall) -> bool:
        return self._members.get(call.key) is call

    def drop(self, call: PendingCall) -> bool:
        """Remove a call. Returns False if it is not here any more."""
        if not self.has(call):
            return False
        del self._members[call.key]
        self._bytes -= len(call.line)
        return True

    def narrow(self, calls: int) -> None:
        """This many calls were too many: limit batches to a quarter of that."""
        self._fit = max(1, min(self._fit, calls // 4))

    def widen(self) -> None:
        """A batch was accepted: double the limit for the next ones."""
        self._fit = min(self._fit * 2, self._config.max_requests)

    def close(self) -> None:
        """Ship nothing more."""
        self._closed = True
        if self._lingering is not None:
            self._lingering.cancel()

    async def _linger(self) -> None:
        while self._members:
            left = self._joined_at + self._config.linger_s - self._clock()
            if left > 0:
                await self._sleep(left)
            else:
                self._leave()

    def _leave(self) -> None:
        if self._closed:
            return
        members, self._members, self._bytes = self._members, {}, 0
        self._ship(members)
