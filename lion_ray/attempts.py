"""Who may write a run folder: one attempt at a time.

Invariants:
- On a local file system an attempt holds a lock that dies with its process, everywhere an attempt file whose token is
  looked at before each manifest. An attempt that finds another's token there stops.

This module does not know what the folder holds.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lion_ray.errors import RunConflictError
from lion_ray.sealed import Record
from lion_ray.shapes import ATTEMPT, check

if TYPE_CHECKING:
    from lion_ray.store import RunStore

FILE = "attempt.json"
HEARTBEAT_S = 10.0
"""How often a live attempt says so, in seconds."""
STALE_S = 45.0
"""An attempt that has not said so for this long may be replaced (object stores only: they have no locks)."""


def read_attempt(store: RunStore) -> Record | None:
    """The attempt file; None before the first attempt."""
    found = store.read_record(FILE)
    return None if found is None else check(found, ATTEMPT)


class Fence:
    """This process's attempt at a run."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._lock: IO[str] | None = None

    def claim(self) -> int:
        """Become the run's one attempt; returns its number, from 1.

        Raises:
            RunConflictError: another attempt is alive.
        """
        store = self._store
        if store.is_local:
            Path(store.path()).mkdir(parents=True, exist_ok=True)
            lock = Path(store.path(".lock")).open("w")  # noqa: SIM115 - held until the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise RunConflictError(self._conflict()) from None
            self._lock = lock
        last = read_attempt(store)
        if last and not store.is_local and time.time() - last["alive"] < STALE_S and not last["ended"]:
            raise RunConflictError(self._conflict())
        store.token = uuid.uuid4().hex
        number = (last["attempt"] if last else 0) + 1
        self._write(number, ended=False)
        return number

    def heartbeat(self, *, ended: bool = False) -> None:
        """Say that this attempt is alive, or that it has ended.

        Raises:
            RunConflictError: another attempt has taken over.
        """
        self._write(self.check()["attempt"], ended=ended)
        if ended and self._lock is not None:
            self._lock.close()
            self._lock = None

    def check(self) -> Record:
        """The attempt file, which must be ours.

        Raises:
            RunConflictError: another attempt has taken over.
        """
        attempt = read_attempt(self._store)
        if self._store.token is None or attempt is None or attempt["token"] != self._store.token:
            raise RunConflictError(self._conflict())
        return attempt

    def _write(self, number: int, *, ended: bool) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "alive": time.time(), "ended": ended}
        self._store.write_record(FILE, {"attempt": number, "token": self._store.token, **who})

    def _conflict(self) -> str:
        other = read_attempt(self._store) or {}
        return (
            f"{self._store.root}: another attempt at this run is under way (host {other.get('host', 'another machine')}"
            f", process {other.get('pid', '?')}); wait for it, stop it, or give this run another run_name"
        )
