"""What the gateway's tests share: time that a test moves, and completions to write."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lion_ray.gateway.calls import Account, Call, Completion
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.segments import SUFFIX

ACCOUNT = Account("run-1", "teacher", "answers-0")


class QuickTime:
    """Sleeping takes no time but moves the clock, and is noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


class ManualTime:
    """Sleepers stay asleep until the test moves the clock far enough."""

    def __init__(self) -> None:
        self.now = 0.0
        self._asleep: list[tuple[float, asyncio.Future[None]]] = []
        self._changed = asyncio.Condition()

    def clock(self) -> float:
        return self.now

    @property
    def asleep(self) -> int:
        return sum(not future.done() for _, future in self._asleep)

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asleep.append((self.now + seconds, woken))
        async with self._changed:
            self._changed.notify_all()
        await woken

    async def until_asleep(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.asleep == count)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for until, woken in self._asleep:
            if until <= self.now and not woken.done():
                woken.set_result(None)


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def completion(number: int, text: str | None = None) -> Completion:
    return Completion(
        key=key(number),
        text=f"answer {number}" if text is None else text,
        finish_reason="stop",
        model="stub-model-0001",
        endpoint="default",
        prompt_tokens=number,
        completion_tokens=2,
        seconds=0.25,
    )


def call(text: str, **fields: object) -> Call:
    return Call(messages=({"role": "user", "content": text},), max_tokens=64, role="teacher", **fields)  # type: ignore[arg-type]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


async def filled(folder: Path, numbers: Iterable[int], **options: int) -> None:
    """A journal that one writer filled and closed."""
    journal = Journal.open(str(folder), **options)  # type: ignore[arg-type]
    for number in numbers:
        await journal.put(completion(number), ACCOUNT)
    await journal.close()


async def served(journal: Journal, numbers: Iterable[int]) -> list[int]:
    """Those of the numbers whose completion the journal serves, whatever it cost."""
    found = []
    for number in numbers:
        answer = await journal.get(key(number))
        if answer is not None and replace(answer, cost_usd=None) == replace(completion(number), replayed=True):
            found.append(number)
    return found
