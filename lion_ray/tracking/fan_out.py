"""Tells a run's trackers, each in a thread of its own.

Invariants:
- A tracker that raises or hangs ends nothing and slows nothing. The first time it is told in one line; what it raised
  over is tried again, then passed over.
- Steps and results are no events: each thread reads them from the run's folder, from where its tracker stands, when it
  is woken. So a tracker that is slow, was down, or was added later misses none, and nothing waits in memory for it.
- Stages and spending are events, at most `WAITING` of them wait; a tracker that is slower than that misses the oldest.
- At the end each tracker has `END_S` to be told what is left, all of them at the same time; then it is left alone.

This module does not know how a run's folder is read (`History`), nor what a tracker does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lion_ray.core.plugins import in_one_line
from lion_ray.core.progress import Stage
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep

if TYPE_CHECKING:
    from lion_ray.pipeline.results import IterationResult

WAITING = 1000
"""Stages and spending that wait for one tracker, at most."""
PAUSES_S = (1.0, 10.0)
"""Before a call that raised is tried again; after that it is passed over."""
END_S = 30.0
"""How long the end of a run waits for its trackers, in seconds."""
SPEND_S = 30.0
"""Between two tellings of what was spent, in seconds."""

History = Callable[[Held], "Iterator[TrainingStep | IterationResult]"]
"""What stands in a run's folder after what somebody holds, in order; it may raise, and is then asked again later."""


class Named(NamedTuple):
    """A tracker, and what it is called in the run's log."""

    name: str
    tracker: Tracker


class Trackers:
    """All trackers of an attempt; of none, everything here does nothing."""

    def __init__(self, trackers: Sequence[Named] = (), *, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._named = tuple(trackers)
        self._pauses_s = pauses_s
        self._threads: list[_Teller] = []
        self._spend: Spend | None = None
        """The last one that was heard of."""
        self._spend_told: Spend | None = None
        self._spend_told_at = 0.0
        self._say: Callable[[str], None] = lambda _: None
        self._seen: set[int] = set()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._named)

    def begin(self, run: RunInfo, history: History, say: Callable[[str], None]) -> None:
        """Begin to tell of an attempt; returns at once. `say`: told of what fails, in a line."""
        self._say = say
        self._threads = [_Teller(one, run, history, say, self._pauses_s) for one in self._named]

    def wake(self) -> None:
        """There is something new in the run's folder."""
        for one in self._threads:
            one.wake()

    def stage(self, stage: Stage) -> None:
        """A listener of `Progress`: tells when a stage begins and when it ends."""
        if not self._threads:
            return
        began = id(stage) not in self._seen
        if began == stage.ended:  # nothing new, or it began before anybody was told of anything
            return
        (self._seen.add if began else self._seen.remove)(id(stage))
        event = StageEvent(
            name=stage.name,
            state="began" if began else "ended",
            done=stage.done,
            total=stage.total,
            unit=stage.unit,
            seconds=round(stage.seconds(), 3),
            counts=dict(stage.counts),
        )
        self._tell("stage", event)

    def spend(self, spend: Spend) -> None:
        """What the endpoints have cost by now; told now and then."""
        self._spend = spend
        if time.monotonic() - self._spend_told_at > SPEND_S:
            self._tell_spend()

    def end(self, outcome: Outcome, within_s: float = END_S) -> None:
        """Tell what is left, and that the attempt is over; returns after `within_s` at the latest."""
        self._tell_spend()
        for one in self._threads:
            one.finish(outcome)
        until = time.monotonic() + within_s
        for one in self._threads:
            one.join(max(0.0, until - time.monotonic()))
            if one.is_alive():
                self._say(f"tracker {one.name}: it has not come to its end within {within_s:.0f} s and is left alone")
        self._threads = []

    def _tell_spend(self) -> None:
        known, now = self._spend_told, self._spend
        if now is not None and (known is None or replace(known, time=now.time) != now):
            self._spend_told, self._spend_told_at = now, time.monotonic()
            self._tell("spend", now)

    def _tell(self, method: str, event: StageEvent | Spend) -> None:
        for one in self._threads:
            one.tell(method, event)


class _Teller(threading.Thread):
    """One tracker's thread; it begins at once."""

    def __init__(
        self, named: Named, run: RunInfo, history: History, say: Callable[[str], None], pauses_s: Sequence[float]
    ) -> None:
        super().__init__(name=named.name, daemon=True)
        self._tracker = named.tracker
        self._run = run
        self._history = history
        self._say = say
        self._pauses_s = pauses_s
        self._events: deque[tuple[str, StageEvent | Spend]] = deque(maxlen=WAITING)
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._outcome: Outcome | None = None
        self._told = False
        """Whether a failure was told."""
        self._well = True
        """Whether the last call went well: of one that does not, every call is tried but once."""
        self._missed = 0
        self.wake()
        self.start()

    def wake(self) -> None:
        self._woken.set()

    def tell(self, method: str, event: StageEvent | Spend) -> None:
        self._events.append((method, event))
        self.wake()

    def finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._ending.set()
        self.wake()

    def run(self) -> None:
        held = Held()

        def begin() -> None:
            nonlocal held
            held = self._tracker.begin(self._run) or Held()

        if not self._call(begin):
            self._say(f"tracker {self.name}: it did not begin, and is left out of this attempt")
            return
        while True:
            self._woken.wait()
            self._woken.clear()
            outcome = self._outcome
            while self._events:
                method, event = self._events.popleft()
                self._call(getattr(self._tracker, method), event)
            held = self._catch_up(held)
            self._call(self._tracker.flush)
            if outcome is not None:
                self._call(self._tracker.end, outcome)
                break
        if self._missed:
            self._say(f"tracker {self.name}: {self._missed} of the calls to it failed")

    def _catch_up(self, held: Held) -> Held:
        """Tell what stands in the run's folder after what the tracker holds; returns what it holds then."""
        try:
            for one in self._history(held):
                if isinstance(one, TrainingStep):
                    self._call(self._tracker.step, one)
                    held = held._replace(step=one.number)
                else:
                    self._call(self._tracker.iteration, one)
                    held = held._replace(iteration=one.iteration)
        except Exception as error:  # noqa: BLE001 - a storage that refuses, files that are damaged: later, or never
            self._fail(error)
        return held

    def _call(self, what: Callable[..., Any], *arguments: Any) -> bool:
        """Whether it went well, at the latest in the last of its tries."""
        for pause_s in (*self._pauses_s, None) if self._well else (None,):
            try:
                what(*arguments)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker may raise anything
                self._fail(error)
                if pause_s is not None:
                    self._ending.wait(pause_s)
            else:
                self._well = True
                return True
        self._well = False
        self._missed += 1
        return False

    def _fail(self, error: BaseException) -> None:
        if not self._told:
            self._told = True
            self._say(f"tracker {self.name}: {in_one_line(error)}; the run goes on without waiting for it")
