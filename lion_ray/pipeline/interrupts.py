"""How a run is told to end before its time: SIGTERM, Ctrl-C, or another thread of the same program.

Invariants:
- Each of them ends it as a Ctrl-C does: calls that are out come home, servers and engines end, the same command
  resumes.
- Signals are only this module's while a run is under way, and only in the main thread; afterwards they are the
  program's again.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

OURS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Asked for from any thread; a run that has it looks at it, and its loop is cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._cancel: Callable[[], object] | None = None

    def ask(self) -> None:
        """End the run; returns at once."""
        with self._lock:
            self._asked = True
            if self._cancel is not None:
                self._cancel()

    def look(self) -> None:
        """Raises KeyboardInterrupt where it was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def cancels(self) -> Iterator[None]:
        """While the block runs, this task is cancelled when it is asked for."""
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
            if self._asked:
                self._cancel()
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def signals_given_back() -> Iterator[None]:
    """What handles Ctrl-C and SIGTERM is afterwards what it was before."""
    before = {one: signal.getsignal(one) for one in OURS} if in_main_thread() else {}
    try:
        yield
    finally:
        for one, handler in before.items():
            if handler is not None:  # None: not of Python's making, and not to be had again
                signal.signal(one, handler)


def interrupt_on_sigterm() -> None:
    """Leave on SIGTERM as on a Ctrl-C, saying that the same command resumes. Outside the main thread: nothing."""
    if in_main_thread():
        signal.signal(signal.SIGTERM, _interrupted)


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def stop_on_sigterm() -> None:
    """While the loop runs, leave it on SIGTERM through its tasks: `ray job stop` and kubelets send it, and calls that
    are out, servers and engines must come to their end. Outside the main thread: nothing."""
    main = asyncio.current_task()
    assert main is not None
    if in_main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
