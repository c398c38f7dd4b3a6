"""An event loop in simulated time, which the world runs step by step.

Invariants:
- Callbacks run in the order in which they became due, one per `step`: between any two of them the world may end the
  process, which is then never stepped again.
- A job for a thread runs atomically after a simulated delay; jobs of one pool keep their order.

The loop reads no clock, opens no file and never blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any


class SimLoop(asyncio.AbstractEventLoop):
    """One process's loop. `clock` returns the simulated time, `thread_s` the duration of the next job in a thread."""

    def __init__(self, clock: Callable[[], float], thread_s: Callable[[], float]) -> None:
        self._clock = clock
        self._thread_s = thread_s
        self._due: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serials = itertools.count()
        self._pool_free_at: dict[int, float] = {}
        self.unheard: list[BaseException] = []
        """Exceptions that nobody awaited."""

    # --- for the world

    def next_at(self) -> float:
        """The time of the next callback; infinity if there is none."""
        if self._due:
            return -math.inf
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    def step(self) -> None:
        """Run the next callback that is due, if there is one."""
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            self._due.append(heapq.heappop(self._timers)[2])
        while self._due:
            handle = self._due.popleft()
            if not handle.cancelled():
                asyncio._set_running_loop(self)
                try:
                    handle._run()
                finally:
                    asyncio._set_running_loop(None)
                return

    # --- asyncio's interface of a loop

    def time(self) -> float:
        return self._clock()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._due.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._serials), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Required by `asyncio.TimerHandle`; cancelled timers are skipped when they are due."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        at = self.time() + self._thread_s()
        if executor is not None:  # the journal's own threads: jobs run sequentially
            at = max(at, self._pool_free_at.get(id(executor), 0.0))
            self._pool_free_at[id(executor)] = at

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - passed to the awaiting code
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_at(at, run)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if (error := context.get("exception")) is not None:
            self.unheard.append(error)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)
