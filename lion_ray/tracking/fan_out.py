"""Sends a run's metrics to its trackers, each in its own thread.

Invariants:
- A tracker that raises or hangs does not stop or slow a run. Its first error is logged in one line; a failed call is
  retried, then skipped.
- Steps and results are not queued: when woken, each thread reads them from the run's folder, from its tracker's
  position. So a tracker that is slow, was down, or was added later misses none, and nothing accumulates in memory.
- Stages and spending are queued events, at most `WAITING`; a tracker that is too slow misses the oldest.
- At the end all trackers have `END_S`, concurrently, to receive the rest; then they are abandoned.

This module does not know how a run's folder is read (`History`), nor what a tracker does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.plugins import in_one_line
from lion_ray.core.progress import Stage
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, StageEvent, Tracker, TrainingStep

WAITING = 1000
"""The most queued events of one tracker."""
PAUSES_S = (1.0, 10.0)
"""Pauses before the retries of a failed call; after the last it is skipped."""
END_S = 30.0
"""How long the end of a run waits for its trackers, in seconds."""
SPEND_S = 30.0
"""Interval of reports of the spending, in seconds."""

History = Callable[[Held], "Iterator[TrainingStep | IterationResult]"]
"""Reads the data in a run's folder after a position, in order; if it raises, it is called again later."""


class Named(NamedTuple):
    """A tracker, and its name in the run's log."""

    name: str
    tracker: Tracker


class Trackers:
    """All trackers of an attempt; without any, every method does nothing."""

    def __init__(self, trackers: Sequence[Named] = (), *, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._named = tuple(trackers)
        self._pauses_s = pauses_s
        self._threads: list[_TrackerThread] = []
        self._spend: Spend | None = None
        """The latest one."""
        self._spend_sent: Spend | None = None
        self._spend_sent_at = 0.0
        self._say: Callable[[str], None] = lambda _: None
        self._seen: set[int] = set()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._named)

    def begin(self, run: RunInfo, history: History, say: Callable[[str], None]) -> None:
        """Start the trackers' threads; returns at once. `say` is called with a line for each problem."""
        self._say = say
        self._threads = [_TrackerThread(one, run, history, say, self._pauses_s) for one in self._named]

    def wake(self) -> None:
        """Signal new data in the run's folder."""
        for one in self._threads:
            one.wake()

    def stage(self, stage: Stage) -> None:
        """A listener of `Progress`: reports when a stage begins and ends."""
        if not self._threads:
            return
        began = id(stage) not in self._seen
        if began == stage.ended:  # no change of state, or it began before the trackers did
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
        self._enqueue("stage", event)

    def spend(self, spend: Spend) -> None:
        """The endpoints' cost so far; reported every `SPEND_S` seconds."""
        self._spend = spend
        if time.monotonic() - self._spend_sent_at > SPEND_S:
            self._send_spend()

    def end(self, outcome: Outcome, within_s: float = END_S) -> None:
        """Send the rest, and the end of the attempt; returns after `within_s` at the latest."""
        self._send_spend()
        for one in self._threads:
            one.finish(outcome)
        until = time.monotonic() + within_s
        for one in self._threads:
            one.join(max(0.0, until - time.monotonic()))
            if one.is_alive():
                self._say(f"tracker {one.name}: it did not finish within {within_s:.0f} s and is abandoned")
        self._threads = []

    def _send_spend(self) -> None:
        known, now = self._spend_sent, self._spend
        if now is not None and (known is None or replace(known, time=now.time) != now):
            self._spend_sent, self._spend_sent_at = now, time.monotonic()
            self._enqueue("spend", now)

    def _enqueue(self, method: str, event: StageEvent | Spend) -> None:
        for one in self._threads:
            one.enqueue(method, event)


class _TrackerThread(threading.Thread):
    """One tracker's thread; it starts at once."""

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
        self._logged = False
        """Whether a failure was logged."""
        self._healthy = True
        """Whether the last call succeeded; after a failed one, calls are not retried."""
        self._missed = 0
        self.wake()
        self.start()

    def wake(self) -> None:
        self._woken.set()

    def enqueue(self, method: str, event: StageEvent | Spend) -> None:
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
            self._say(f"tracker {self.name}: it failed to start, and is not used in this attempt")
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
        """Send the data in the run's folder that the tracker lacks; returns its new position."""
        try:
            for one in self._history(held):
                if isinstance(one, TrainingStep):
                    self._call(self._tracker.step, one)
                    held = held._replace(step=one.number)
                else:
                    self._call(self._tracker.iteration, one)
                    held = held._replace(iteration=one.iteration)
        except Exception as error:  # noqa: BLE001 - the storage refuses, or files are damaged: tried again later
            self._fail(error)
        return held

    def _call(self, what: Callable[..., Any], *arguments: Any) -> bool:
        """Make a call, with retries; returns whether it succeeded."""
        for pause_s in (*self._pauses_s, None) if self._healthy else (None,):
            try:
                what(*arguments)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker may raise anything
                self._fail(error)
                if pause_s is not None:
                    self._ending.wait(pause_s)
            else:
                self._healthy = True
                return True
        self._healthy = False
        self._missed += 1
        return False

    def _fail(self, error: BaseException) -> None:
        if not self._logged:
            self._logged = True
            self._say(f"tracker {self.name}: {in_one_line(error)}; the run continues without waiting for it")
