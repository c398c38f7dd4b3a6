"""Interrupt a run: by SIGTERM, Ctrl-C, or another thread of the same program.

Invariants:
- Each of them ends the run like a Ctrl-C: calls in flight finish, servers and engines stop, the same command resumes.
- This module handles signals only while a run is in progress, and only in the main thread; afterwards the program's
  handlers are restored.
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
    """A stop request that any thread can make; the run checks it, and its loop is cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._cancel: Callable[[], object] | None = None

    def ask(self) -> None:
        """Request the end of the run; returns at once."""
        with self._lock:
            self._requested = True
            if self._cancel is not None:
                self._cancel()

    def look(self) -> None:
        """Raises KeyboardInterrupt if a stop was requested."""
        if self._requested:
            raise KeyboardInterrupt

    @contextmanager
    def cancels(self) -> Iterator[None]:
        """While the block runs, a stop request cancels this task."""
        task = asyncio.current_task()
        assert task is not None
        with self._lock:
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
            if self._requested:
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
    """Restore the handlers of Ctrl-C and SIGTERM after the block."""
    before = {one: signal.getsignal(one) for one in OURS} if in_main_thread() else {}
    try:
        yield
    finally:
        for one, handler in before.items():
            if handler is not None:  # None: not installed from Python, and cannot be restored
                signal.signal(one, handler)


@contextmanager
def raising_on_interrupt() -> Iterator[None]:
    """In the block, Ctrl-C raises KeyboardInterrupt, whatever handler another library left behind: Ray Train's, for
    one, stays after a fit and calls an actor that has ended. No effect outside the main thread."""
    with signals_given_back():
        if in_main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM like a Ctrl-C, with the same message. No effect outside the main thread."""
    if in_main_thread():
        signal.signal(signal.SIGTERM, _interrupted)


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def stop_on_sigterm() -> None:
    """On SIGTERM, cancel the loop's main task: `ray job stop` and kubelets send it, and calls in flight, servers and
    engines must end properly. No effect outside the main thread."""
    main = asyncio.current_task()
    assert main is not None
    if in_main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
