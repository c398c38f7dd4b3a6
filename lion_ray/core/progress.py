"""Progress: bars in a terminal, plain lines in a log, and a file that `status` reads.

Invariants:
- A plain log never holds control characters, and a long stage logs a line at least every `QUIET_S` seconds.
- Waiting is shown as such, with its reason (contract: pending is a state).

This module knows nothing of Ray or of the loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from lion_ray.core.terminal import Terminal, one_line

T = TypeVar("T")
QUIET_S = 15.0
METER_S = 60.0


class Stage:
    """A running stage: `total` units of `unit`, `done` of them finished."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.note = ""
        self.waits_for = ""
        """What the stage is blocked on; empty if it is not blocked."""
        self.counts: Counter[str] = Counter()
        """Rows by outcome: ok and quarantined."""
        self.started = time.time()
        self.ended = False
        self._progress = progress
        self._task: Any = None
        self._paced: tuple[float, int] | None = None

    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.time() - self.started

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` adds a few words."""
        self.update(self.done + count, note)

    def left_s(self) -> float | None:
        """Seconds left, by the pace since the first finished unit, so that the start-up does not count."""
        if self._paced is None or self.done <= self._paced[1] or not self.total:
            return None
        began, already = self._paced
        return (time.time() - began) / (self.done - already) * (self.total - self.done)

    def line(self) -> str:
        """The stage's progress, as a log line."""
        if self.waits_for:
            return f"{self.name}: waiting for {self.waits_for} ({self.seconds():.0f} s)"
        left = self.left_s()
        # Where all units are done, what is left is not known by their pace.
        about = f", about {left:.0f} s left" if left else ""
        note = f"; {self.note}" if self.note else ""
        if not self.total:  # the total is not known yet
            return f"{self.name}: {self.seconds():.0f} s{note}"
        return f"{self.name}: {self.done} of {self.total} {self.unit}{about}{note}"

    def update(self, done: int, note: str = "") -> None:
        self.done = done
        if self._paced is None and done:
            self._paced = (time.time(), done)
        self.note = note or self.note
        self._progress._changed(self)


class _BarsWithMeter(Bars):
    """Progress bars with a status line under them."""

    meter = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.meter:
            yield Text(one_line(self.meter), style="dim")


class Progress:
    """Shows a run's messages and stages."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        stream = stream or sys.stdout
        self.listeners: list[Callable[[Stage], None]] = []
        """Called with a stage when it begins, changes and ends."""
        self.console = Terminal(file=stream, soft_wrap=True)
        self.started = time.time()
        self.stages: list[Stage] = []
        self._bars: _BarsWithMeter | None = None
        self._last_line = 0.0
        self._last_meter = time.time()
        self.metered = ""
        self.left = ""
        """How long the run will still take, as text; empty if unknown."""
        self._waits: list[Callable[[], bool]] = []
        self.ended_in = ""
        """The stage that an error ended, and its progress."""
        if self.console.is_terminal:
            self._bars = _BarsWithMeter(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]} {task.fields[note]}", style="dim", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()

    def say(self, message: str) -> None:
        """Log one line, with the time since the start."""
        self._last_line = time.time()
        seconds = int(self._last_line - self.started)
        self.console.print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {one_line(message)}")

    def meter(self, text: str) -> None:
        """Show the current state in one line: under the bars in a terminal, every `METER_S` seconds in a log."""
        text = f"{text} · {self.left} left" if self.left else text
        self.metered = text
        if self._bars:
            self._bars.meter = text
        elif text and self.stages and time.time() - self._last_meter > METER_S:
            self._last_meter = time.time()
            self.say(text)

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        """Show a stage while it runs, and its duration when it is done."""
        stage = Stage(self, name, total, unit)
        self.stages.append(stage)
        self._notify(stage)
        if self._bars:
            stage._task = self._bars.add_task(one_line(name), total=total or None, unit=unit, note="")
        else:
            self.say(f"{name}: {count(total, unit)}" if total else name)
        try:
            yield stage
        except BaseException:
            self.ended_in = self.ended_in or f"{name} ({stage.done} of {count(stage.total, unit)})"
            raise
        finally:
            self.stages.remove(stage)
            stage.ended = True
            self._notify(stage)
            if self._bars:
                self._bars.remove_task(stage._task)
        note = f"; {stage.note}" if stage.note else ""
        self.say(f"{name}: done, {count(stage.done, unit)} in {stage.seconds():.0f} s{note}")

    def _notify(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener(stage)

    def _changed(self, stage: Stage) -> None:
        self._notify(stage)
        if self._bars:
            note = f"waiting for {stage.waits_for}" if stage.waits_for else stage.note
            self._bars.update(stage._task, completed=stage.done, total=stage.total or None, note=one_line(note))
        elif time.time() - self._last_line > QUIET_S:
            self.say(stage.line())

    @property
    def waits(self) -> int:
        """How many waits block the run now."""
        return sum(holds_up() for holds_up in self._waits) + sum(bool(stage.waits_for) for stage in self.stages)

    async def waiting(
        self, work: Awaitable[T], what: str | Callable[[], str], holds_up: Callable[[], bool] = lambda: True
    ) -> T:
        """Await `work`, and log every `QUIET_S` seconds that the run waits for it.

        Args:
            what: the log line; a function is called each time.
            holds_up: whether the wait blocks the run.
        """
        task = asyncio.ensure_future(work)
        started = time.time()
        self._waits.append(holds_up)
        try:
            while not (await asyncio.wait([task], timeout=QUIET_S))[0]:
                self.say(f"{what if isinstance(what, str) else what()} ({time.time() - started:.0f} s)")
            return task.result()
        finally:
            self._waits.remove(holds_up)
            task.cancel()  # a caller that stops waiting does not need the result

    async def follow(self, work: Awaitable[T], stage: Stage, look: Callable[[], Awaitable[int]]) -> None:
        """Await `work`, and show its progress, which `look` returns, until it is done."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=2.0))[0]:
                stage.update(await look())
            task.result()
        finally:
            task.cancel()

    def snapshot(self) -> dict[str, Any]:
        """The current progress, for the run folder's progress file."""
        return {
            "time": time.time(),
            "meter": self.metered,
            "stages": [
                {"name": s.name, "done": s.done, "total": s.total, "unit": s.unit, "seconds": s.seconds()}
                for s in self.stages
            ],
        }

    def close(self) -> None:
        if self._bars:
            self._bars.stop()


def count(number: int, unit: str) -> str:
    """A number with its unit, given in the plural: "1 call", "2,000 calls", "1 second copy"."""
    if number == 1:
        unit = unit.removesuffix("ies") + "y" if unit.endswith("ies") else unit.removesuffix("s")
    return f"{number:,} {unit}"
