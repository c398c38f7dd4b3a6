"""What a batch queue keeps in mind: a call that was asked for, calls that gather to become a batch, and a batch.

Invariants:
- A gathering holds at most what one batch may; it is shipped when it is full, or when no call has joined for a while.

This module knows no API and no folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from openai.types import Batch

from lion_ray.config import BatchConfig
from lion_ray.gateway.batch.lines import Output
from lion_ray.gateway.batch.state import BatchRecord
from lion_ray.gateway.reply import Reply


@dataclass(slots=True)
class Asked:
    """A call that someone here waits for, or whose answer is not settled yet."""

    key: str
    line: bytes
    future: asyncio.Future[Reply]
    live: bool = False
    """Whoever asks would rather have it live: what a batch leaves undone is theirs to send."""
    waiters: int = 0
    rounds: int = 0
    """Batches that ended without doing it."""
    turned_away: int = 0
    """Times the endpoint had no room for its batch."""
    refusals: int = 0
    """Those of them when nothing else of ours was there."""

    def __post_init__(self) -> None:
        # A caller may have left; an error that nobody takes is no news.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())


@dataclass
class UnderWay:
    """A batch whose record is open."""

    record: BatchRecord
    open: set[str]
    """Keys that may have an answer in it and are not settled."""
    waiting: dict[str, Asked] = field(default_factory=dict)
    """Calls that wait for its end, here."""
    fresh: bool = False
    """Not bought yet."""
    maybe_created: bool = False
    remote: Batch | None = None
    """As the endpoint last showed it."""
    output: Output | None = None
    task: asyncio.Task[None] | None = None
    closing: bool = False
    """Nothing more is had from it: who asks for one of its calls now joins another."""

    @property
    def running(self) -> bool:
        return self.task is not None and not self.task.done()

    def has(self, key: str) -> bool:
        """Whether whoever asks for one of its calls now may get an answer from it."""
        return not self.closing and (self.output is None or key in self.open)

    def take(self) -> list[Asked]:
        """Everyone who waits for it, and from now on no more."""
        taken = list(self.waiting.values())
        self.waiting.clear()
        return taken

    def release(self) -> None:
        """Give its output's disk space back."""
        if self.output is not None:
            self.output.close()
            self.output = None


class Gathering:
    """Calls that will be a batch."""

    def __init__(
        self,
        config: BatchConfig,
        ship: Callable[[dict[str, Asked]], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """`ship` takes the calls of one batch, in the order in which they joined."""
        self._config = config
        self._ship = ship
        self._clock = clock
        self._sleep = sleep
        self._members: dict[str, Asked] = {}
        self._bytes = 0
        self._fit = config.max_requests
        self._joined_at = clock()
        self._lingering: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, asked: Asked) -> None:
        """Let a call join. One that is larger than a batch's file may be goes alone, for the endpoint to judge."""
        if self._members and self._bytes + len(asked.line) > self._config.max_bytes:
            self._leave()
        self._members[asked.key] = asked
        self._bytes += len(asked.line)
        self._joined_at = self._clock()
        if len(self._members) >= self._fit:
            self._leave()
        elif not self._closed and (self._lingering is None or self._lingering.done()):
            self._lingering = asyncio.create_task(self._linger())

    def drop(self, asked: Asked) -> bool:
        """Take a call out; False where it has left already."""
        if self._members.get(asked.key) is not asked:
            return False
        del self._members[asked.key]
        self._bytes -= len(asked.line)
        return True

    def narrow(self, calls: int) -> None:
        """So many calls were too much: batches of a quarter from now on."""
        self._fit = max(1, min(self._fit, calls // 4))

    def widen(self) -> None:
        """A batch went through: the next ones may be twice as large again."""
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
