"""One simulated run: real clients, journals, ledgers and run stores with faults, all drawn from one seed.

Real: `gateway.client` and all that it uses (sender, limits, breaker, ledger and budget, batches and their records,
journal with its writer, reader and compaction, wire and reply), and `store`. Simulated: time, the event loop and its
threads, the network and the endpoint (`network`), its Batch API (`batches`), what a disk keeps (`disk`), system calls
that fail or are a process's last (`system`), and Ray: an actor is a process that can be ended before any callback and
in any system call, and is started again.

Invariants:
- Only the seed decides what happens: `python -m tests.simulation --seed N` repeats a failure. Python's garbage
  collector is off meanwhile, because its timing depends on everything that the process did before.
- After the last disaster there are no more faults, and every run must end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import math
import random
import tempfile
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lion_ray.config import PricesConfig
from lion_ray.core.errors import LionError
from lion_ray.gateway.ledger import Budget
from tests.simulation.batches import Service
from tests.simulation.disk import Disk
from tests.simulation.loop import SimLoop
from tests.simulation.model import Model, Violation
from tests.simulation.network import Weather
from tests.simulation.system import REAL_CLOSE, Ended, NobodysMachine, act_for

MOST_STEPS = 20_000
Body = Callable[["World", "Process"], Coroutine[Any, Any, None]]


@dataclass(eq=False)
class Process:
    """A simulated process."""

    name: str
    body: Body
    loop: SimLoop
    began: float
    main: asyncio.Task[None] = field(init=False)
    alive: bool = True
    descriptors: set[int] = field(default_factory=set)
    files: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


class World:
    """The simulation of one seed. Another run of the seed must give the same `steps` and `said` (the log)."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.disk = Disk(folder)
        self.weather = Weather.drawn(self.rng)
        self.prices = PricesConfig(input=1000.0, output=2000.0, batch=0.5)
        self.cap = self.rng.choice((None, None, 0.15, 0.3, 0.5, 2.0))
        self.model = Model(self.prices, self.cap)
        self.budget = Budget(self.cap)
        self.service = Service(self)
        self.in_batches = self.rng.choice((0.0, 0.5, 1.0))
        """How likely a process asks in batches."""
        self.thread_s = self.rng.choice((0.0, 0.001, 0.5))
        self.failing_calls = self.rng.choice((0.0, 0.0, 0.01))
        self.processes: list[Process] = []
        self.graveyard: list[Process] = []
        """Ended processes, kept so that their unfinished coroutines never run while the seed runs."""
        self.working: set[str] = set()
        """The proxies with unfinished calls."""
        self.said: list[str] = []
        self.steps = 0
        self.moments = 0
        self.restarts = 0
        self._current: Process | None = None
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._serials = itertools.count()
        # In moments: most runs take some hundred steps, and some system calls in each.
        spread = self.rng.choice((200, 1000, 4000))
        self._disasters = sorted(self.rng.randrange(spread) for _ in range(self.rng.randrange(5)))
        if not self._disasters:
            self._calm()

    # --- for the parts

    def clock(self) -> float:
        return self.now

    def say(self, line: str) -> None:
        self.said.append(f"{self.now:9.3f} {line}")

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self.now + seconds, next(self._serials), act))

    def start(self, name: str, body: Body) -> None:
        """Start a process; if it is killed, it is restarted until its body finishes."""
        # The loop lacks the methods that only sockets, signals and subprocesses need.
        loop = SimLoop(self.clock, lambda: self.rng.random() * self.thread_s)  # type: ignore[abstract]
        process = Process(name, body, loop, self.now)
        process.main = asyncio.Task(body(self, process), loop=process.loop)
        self.processes.append(process)
        self.say(f"{name} starts")

    # --- for the system's calls

    def owns(self, path: Any) -> bool:
        return not isinstance(path, str | Path) or self.disk.owns(str(path))

    def system_call(self, name: str) -> None:
        assert self._current is not None
        if not self._current.alive:
            raise Ended
        self._tick(f"in {name}")
        if not self._current.alive:
            raise Ended

    def fails(self, name: str) -> bool:
        if self._disasters and self.rng.random() < self.failing_calls:
            self.say(f"{self._named()}: {name} fails")
            self.model.refused_writes += 1
            return True
        return False

    def opened(self, file: Any) -> None:
        assert self._current is not None
        (self._current.descriptors if isinstance(file, int) else self._current.files).add(file)

    def closes(self, descriptor: int) -> bool:
        assert self._current is not None
        self._current.descriptors.discard(descriptor)
        return self._current.alive

    def flush(self, descriptor: int) -> None:
        self.disk.flush(descriptor)

    # --- running

    def run(self) -> None:
        """Let it all happen. Raises Violation where it breaks a promise."""
        while True:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise Violation(f"no end after {MOST_STEPS} steps")
            while self._later and self._later[0][0] <= self.now:
                heapq.heappop(self._later)[2]()
            if not self.processes and not self._later:
                return
            due, ahead = [], self._later[0][0] if self._later else math.inf
            for process in self.processes:
                at = process.loop.next_at()
                if at <= self.now:
                    due.append(process)
                elif at < ahead:
                    ahead = at
            if not due:
                if ahead == math.inf:
                    raise Violation(f"{', '.join(p.name for p in self.processes)}: waits for ever")
                self.now = self.model.now = ahead
                continue
            process = self.rng.choice(due) if len(due) > 1 else due[0]
            self._tick("between two steps")
            if process.alive:
                self._current = process
                act_for(self)
                try:
                    process.loop.step()
                finally:
                    act_for(None)
                if process.alive and process.main.done():
                    self._finished(process)

    def _finished(self, process: Process) -> None:
        error = None if process.main.cancelled() else process.main.exception()
        self._end(process, at_once=error is not None)
        if error is None:
            self.say(f"{process.name} is done")
        elif isinstance(error, LionError):
            self.say(f"{process.name}: {type(error).__name__}: {error}")
            self._restart(process)
        else:
            raise error

    def clear_away(self) -> None:
        """Close the processes' unfinished coroutines now, without effects.

        If a coroutine were garbage-collected later, its `finally` blocks would affect another world, or the descriptors
        of the test process.
        """
        act_for(NobodysMachine())
        try:
            for process in [*self.graveyard, *self.processes]:
                process.alive = False
                for task in sorted(asyncio.all_tasks(process.loop), key=lambda one: one.get_name()):
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
        finally:
            act_for(None)
        self.graveyard.clear()
        self.processes.clear()
        self._later.clear()
        self._current = None
        self.disk.close()

    # --- disasters

    def _tick(self, where: str) -> None:
        """A moment between two steps, or before or after a system call: it may be a process's last."""
        self.moments += 1
        if not self._disasters or self.moments < self._disasters[0]:
            return
        self._disasters.pop(0)
        if not self._disasters:
            self._calm()
        kind = self.rng.choice(("kill one", "kill all", "power cut"))
        one = self._current if self._current in self.processes and where.startswith("in ") else None
        self.say(f"*** {kind} {where} of {self._named()}")
        act_for(None)  # the disaster's own changes of the disk are not system calls of a process
        try:
            self._strike(kind, one)
        finally:
            if where.startswith("in "):
                act_for(self)

    def _strike(self, kind: str, one: Process | None) -> None:
        if kind == "kill one":
            if self.processes:
                victim = one or self.rng.choice(self.processes)
                self._end(victim)
                self._restart(victim)
            return
        victims = list(self.processes)
        for victim in victims:
            self._end(victim)
        if kind == "power cut":
            self.disk.cut_power(self.rng)
        self.budget = Budget(self.cap)
        for victim in victims:
            self._restart(victim)

    def _end(self, process: Process, *, at_once: bool = True) -> None:
        process.alive = False
        self.processes.remove(process)
        self.graveyard.append(process)
        for descriptor in process.descriptors:
            REAL_CLOSE(descriptor)
        process.descriptors.clear()
        for file in list(process.files):
            file.close()
        if at_once:
            self.model.ended(process)

    def _restart(self, process: Process) -> None:
        self.restarts += 1
        if self.restarts > 30:
            raise Violation(f"{process.name} does not come to its end in {self.restarts} restarts")
        # Not at once: what it sent to the actor that holds the budget arrives before it is there again.
        self.later(0.1 + self.rng.random() * 10, lambda: self.start(process.name, process.body))

    def _calm(self) -> None:
        self.weather = Weather({}, self.weather.latency_s)

    def _named(self) -> str:
        return self._current.name if self._current is not None else "nobody"


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A folder for disks: in memory if possible, because deleting from real disks is slow."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="lion-ray-simulation-", dir=memory if memory.is_dir() else None)


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn the garbage collector off, so that reference cycles are collected only after the seed."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def only_its_own_garbage() -> Iterator[None]:
    """For many seeds: exclude earlier objects from garbage collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
