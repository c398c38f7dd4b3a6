"""The lease on a run folder: one attempt writes at a time, and no wall clock decides which.

Invariants:
- On a local file system an attempt holds a lock that is released when its process ends. A lock file that is a link is
  refused. An attempt notices before its next commit that its lock file was removed or replaced.
- On storage without locks (object stores), an attempt increments a heartbeat counter, `beat`, in its file. Another
  attempt may take over only after it has watched the file for `STALE_S` by its own monotonic clock without a change.
  Wall-clock times are for people only.
- If several attempts race to take over, one wins. Each first writes a claim under a unique name, which no other
  overwrites, and continues only if a listing then shows no other claim. A later writer sees the earlier claims, and all
  but the smallest name withdraw. (A conditional write would save a step; not every store that Arrow supports has them.)
- An attempt file of a newer lion-ray is not touched, nor is its run.
- On any storage, an attempt stops before it commits if its token is not in the attempt file or if it sees a later
  claim.

This module does not know what the folder holds.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lion_ray.core import layout
from lion_ray.core.durable import lock
from lion_ray.core.errors import ConfigError, RunConflictError
from lion_ray.core.leftovers import remove_leftovers
from lion_ray.core.sealed import Record
from lion_ray.core.shapes import ATTEMPT, check

if TYPE_CHECKING:
    from lion_ray.core.store import RunStore

FORMAT = 1
"""Version of the attempt file; increase it if an older lion-ray would misread the file."""
HEARTBEAT_S = 10.0
"""Heartbeat interval of a live attempt, in seconds."""
STALE_S = 45.0
"""Heartbeat timeout, in seconds: an attempt without a heartbeat for this long may be replaced."""
_POLL_S = 3.0
_TRIES = 20
_CLAIM = re.compile(r"(\d{8})-([0-9a-f]{32})\.json")


def read_attempt(store: RunStore) -> Record | None:
    """The attempt file. Returns None before the first attempt; raises ConfigError if a newer lion-ray wrote it."""
    found = store.read_record(layout.ATTEMPT)
    if found is None:
        return None
    if (number := check(found, ATTEMPT).get("format", 1)) > FORMAT:
        raise ConfigError(
            f"{found.path}: a newer lion-ray wrote it (format {number}; this version knows {FORMAT}); use that version"
        )
    return found


class Fence:
    """This process's attempt at a run."""

    def __init__(
        self,
        store: RunStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._clock, self._sleep = clock, sleep
        self._lock: int | None = None
        self._claims_it = not store.is_local
        self._number = 0
        self._beat = 0
        # The heartbeat thread and a commit may check at the same time.
        self._at_work = threading.RLock()

    def claim(self, say: Callable[[str], None] = lambda _: None) -> int:
        """Become the run's one attempt; returns its number, from 1.

        Args:
            say: called with a message if the last attempt has to be watched first.

        Raises:
            RunConflictError: another attempt is alive, or the lock file is not one.
            ConfigError: the last attempt was a newer lion-ray's.
        """
        store = self._store
        read_attempt(store)  # raises before anything is written if a newer version owns the run
        if store.is_local:
            store.make(Path(store.path()))
            locked = self._take_lock()
        else:
            locked = False
        last = read_attempt(store)
        if locked:
            self._number = (last["attempt"] if last else 0) + 1
            store.token = uuid.uuid4().hex
            self._write(ended=False)
            remove_leftovers(Path(store.path()))
        else:
            self._claims_it = True
            self._take_over(last, say)
        return self._number

    def heartbeat(self, *, ended: bool = False) -> None:
        """Write a heartbeat, or record that this attempt has ended.

        Raises:
            RunConflictError: another attempt has taken over.
        """
        with self._at_work:
            self._number = self.check()["attempt"]
            self._write(ended=ended)
            if ended and self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def check(self) -> Record:
        """Returns the attempt file after checking that this attempt owns it.

        Raises:
            RunConflictError: another attempt has taken over, or may have: the lock file was removed or replaced.
        """
        attempt = read_attempt(self._store)
        if self._store.token is None or attempt is None or attempt["token"] != self._store.token:
            raise RunConflictError(self._conflict())
        if self._lock is not None:
            with self._at_work:
                if self._lock is not None and not _is_file_of(self._lock, self._store.path(".lock")):
                    self._retake()
        elif self._claims_it and any(number > attempt["attempt"] for number, _ in self._claims()):
            raise RunConflictError(self._conflict())
        return attempt

    # -- local: a lock -------------------------------------------------------------------------------------------

    def _take_lock(self) -> bool:
        """Take the lock. Returns False if this file system has no locks."""
        path = self._store.path(".lock")
        for _ in range(_TRIES):
            try:
                # O_NOFOLLOW: a link would point to a file that is not this run's.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
                raise RunConflictError(f"{path} is not a lock file; check what it is and remove it") from None
            taken = lock(descriptor)
            if taken and _is_file_of(descriptor, path):
                self._lock = descriptor
                return True
            os.close(descriptor)
            if taken is None:
                return False
            if not taken:
                raise RunConflictError(self._conflict())
        raise RunConflictError(f"{path} is removed as soon as it is created; find the program that removes it")

    def _retake(self) -> None:
        """The lock file was removed or replaced: take the one that exists now, or raise RunConflictError."""
        assert self._lock is not None
        os.close(self._lock)
        self._lock = None
        try:
            taken = self._take_lock()
        except RunConflictError as error:
            raise RunConflictError(f"the lock of this run was removed while it ran, and: {error}") from None
        # An attempt that held the lock meanwhile has written its own token.
        attempt = read_attempt(self._store)
        if not taken or attempt is None or attempt["token"] != self._store.token:
            raise RunConflictError(self._conflict())

    # -- other storage: claims and a heartbeat timeout -------------------------------------------------------------

    def _take_over(self, last: Record | None, say: Callable[[str], None]) -> None:
        store = self._store
        if last is not None and not last["ended"]:
            who = f"host {last.get('host', '?')}, process {last.get('pid', '?')}"
            say(f"the last attempt ({who}) did not record that it ended: watching its heartbeat for {STALE_S:.0f} s")
            self._watch(last)
        number, token = (last["attempt"] if last else 0) + 1, uuid.uuid4().hex
        mine = f"{layout.ATTEMPTS}/{number:08d}-{token}.json"
        about = {"host": socket.gethostname(), "pid": os.getpid()}
        store.write_json(mine, about)
        until, withdrawn = self._clock() + STALE_S, False
        while True:
            others = {claim for claim in self._claims() if claim[0] >= number and claim[1] != token}
            if _seen(read_attempt(store)) != _seen(last):
                store.delete(mine)  # another attempt won the race, or the last one is alive after all
                raise RunConflictError(self._conflict())
            if not others and not withdrawn:
                break
            if not others:
                store.write_json(mine, about)
                withdrawn = False
                continue
            if not withdrawn and min(others) < (number, token):
                # The smallest name stays and waits for the others to withdraw.
                store.delete(mine)
                withdrawn = True
            if self._clock() >= until:
                # These claims are left over from drivers that died while taking over.
                for other in others:
                    store.delete(_claim_name(other))
            self._sleep(_POLL_S)
        self._number, store.token = number, token
        self._write(ended=False)
        for claim in self._claims():
            if claim[0] < number:
                store.delete(_claim_name(claim))

    def _watch(self, last: Record) -> None:
        """Wait for `STALE_S`. Raises RunConflictError if the attempt file changes meanwhile."""
        until = self._clock() + STALE_S
        while self._clock() < until:
            self._sleep(_POLL_S)
            if _seen(read_attempt(self._store)) != _seen(last):
                raise RunConflictError(self._conflict())

    def _claims(self) -> list[tuple[int, str]]:
        found = map(_CLAIM.fullmatch, self._store.names(layout.ATTEMPTS))
        return [(int(match[1]), match[2]) for match in found if match]

    # -- both ------------------------------------------------------------------------------------------------------

    def _write(self, *, ended: bool) -> None:
        self._beat += 1
        mine = {"attempt": self._number, "token": self._store.token, "beat": self._beat}
        who = {"host": socket.gethostname(), "pid": os.getpid(), "alive": time.time(), "ended": ended, "format": FORMAT}
        self._store.write_record(layout.ATTEMPT, mine | who)

    def _conflict(self) -> str:
        other: dict[str, Any] = read_attempt(self._store) or {}
        return (
            f"{self._store.root}: another attempt at this run is running (host {other.get('host', 'another machine')}"
            f", process {other.get('pid', '?')}); wait for it, stop it, or give this run another run_name"
        )


def _seen(attempt: Record | None) -> object:
    """The fields that change while an attempt is alive; an older lion-ray's file has only `alive`, a clock time."""
    return None if attempt is None else tuple(attempt.get(key) for key in ("token", "beat", "alive", "ended"))


def _claim_name(claim: tuple[int, str]) -> str:
    return f"{layout.ATTEMPTS}/{claim[0]:08d}-{claim[1]}.json"


def _is_file_of(descriptor: int, path: str) -> bool:
    """Whether a path still names the open file itself, not a link to it."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
