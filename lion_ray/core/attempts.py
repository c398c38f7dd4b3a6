"""Who may write a run folder: one attempt at a time, and no clock decides which.

Invariants:
- On a local file system an attempt holds a lock that dies with its process. A lock file that is a link is refused, and
  one that was removed or replaced is noticed before the next commit.
- Where there are no locks (object stores), an attempt counts a `beat` up in its file. Another may take the run over
  only after it has itself watched the file for `STALE_S`, by its own monotonic clock, and it did not change. What a
  wall clock says, here or there, is for people alone.
- Of several that want to take over at once one does: each first writes a claim under a name of its own, which nobody
  overwrites, and goes on only where a listing then shows no other. Who writes later sees who wrote before, and all but
  the smallest name withdraw. (A conditional write would be one step less; not every store that Arrow speaks to has
  them.)
- An attempt file of a newer lion-ray is left alone, and so is its run.
- Everywhere, an attempt whose token is not in the attempt file, or that sees a later claim, stops before it commits.

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
"""Of the attempt file; raise it where an older lion-ray would misread it."""
HEARTBEAT_S = 10.0
"""How often a live attempt says so, in seconds."""
STALE_S = 45.0
"""An attempt that was watched for this long and said nothing may be replaced, in seconds."""
_POLL_S = 3.0
_TRIES = 20
_CLAIM = re.compile(r"(\d{8})-([0-9a-f]{32})\.json")


def read_attempt(store: RunStore) -> Record | None:
    """The attempt file; None before the first attempt. Raises ConfigError where a newer lion-ray wrote it."""
    found = store.read_record(layout.ATTEMPT)
    if found is None:
        return None
    if (number := check(found, ATTEMPT).get("format", 1)) > FORMAT:
        raise ConfigError(
            f"{found.path}: an attempt of a newer lion-ray (format {number}, this knows {FORMAT}); use that one"
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
        # The pulse and a commit may look at once.
        self._at_work = threading.RLock()

    def claim(self, say: Callable[[str], None] = lambda _: None) -> int:
        """Become the run's one attempt; returns its number, from 1.

        Args:
            say: told where it has to watch the last attempt first.

        Raises:
            RunConflictError: another attempt is alive, or the lock file is not one.
            ConfigError: the last attempt was a newer lion-ray's.
        """
        store = self._store
        read_attempt(store)  # before anything is written: a newer version's is none of our business
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
        """Say that this attempt is alive, or that it has ended.

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
        """The attempt file, which must be ours.

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
        """Take the lock; False where this file system has none."""
        path = self._store.path(".lock")
        for _ in range(_TRIES):
            try:
                # Not through a link: it would be somebody else's file.
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
                raise RunConflictError(
                    f"{path} is no lock file but something else: see what it is, remove it"
                ) from None
            taken = lock(descriptor)
            if taken and _is_file_of(descriptor, path):
                self._lock = descriptor
                return True
            os.close(descriptor)
            if taken is None:
                return False
            if not taken:
                raise RunConflictError(self._conflict())
        raise RunConflictError(f"{path} vanishes as soon as it is made: something else removes it")

    def _retake(self) -> None:
        """The lock file is gone or another: take the one that is there now, or stop."""
        assert self._lock is not None
        os.close(self._lock)
        self._lock = None
        try:
            taken = self._take_lock()
        except RunConflictError as error:
            raise RunConflictError(f"the lock of this run was removed while it ran, and: {error}") from None
        # Whoever had it meanwhile has left its token.
        attempt = read_attempt(self._store)
        if not taken or attempt is None or attempt["token"] != self._store.token:
            raise RunConflictError(self._conflict())

    # -- elsewhere: claims and silence -----------------------------------------------------------------------------

    def _take_over(self, last: Record | None, say: Callable[[str], None]) -> None:
        store = self._store
        if last is not None and not last["ended"]:
            who = f"host {last.get('host', '?')}, process {last.get('pid', '?')}"
            say(f"the last attempt ({who}) has not said that it ended: watching it for {STALE_S:.0f} s")
            self._watch(last)
        number, token = (last["attempt"] if last else 0) + 1, uuid.uuid4().hex
        mine = f"{layout.ATTEMPTS}/{number:08d}-{token}.json"
        about = {"host": socket.gethostname(), "pid": os.getpid()}
        store.write_json(mine, about)
        until, withdrawn = self._clock() + STALE_S, False
        while True:
            others = {claim for claim in self._claims() if claim[0] >= number and claim[1] != token}
            if _seen(read_attempt(store)) != _seen(last):
                store.delete(mine)  # somebody was quicker, or the last attempt lives after all
                raise RunConflictError(self._conflict())
            if not others and not withdrawn:
                break
            if not others:
                store.write_json(mine, about)
                withdrawn = False
                continue
            if not withdrawn and min(others) < (number, token):
                # The smallest name stays: whoever has it waits for the others to go.
                store.delete(mine)
                withdrawn = True
            if self._clock() >= until:
                # Of drivers that died when they were about to take over.
                for other in others:
                    store.delete(_claim_name(other))
            self._sleep(_POLL_S)
        self._number, store.token = number, token
        self._write(ended=False)
        for claim in self._claims():
            if claim[0] < number:
                store.delete(_claim_name(claim))

    def _watch(self, last: Record) -> None:
        """See that nothing changes for `STALE_S`; RunConflictError where something does."""
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
            f"{self._store.root}: another attempt at this run is under way (host {other.get('host', 'another machine')}"
            f", process {other.get('pid', '?')}); wait for it, stop it, or give this run another run_name"
        )


def _seen(attempt: Record | None) -> object:
    """What tells a live attempt from a silent one; an older lion-ray's has only its clock."""
    return None if attempt is None else tuple(attempt.get(key) for key in ("token", "beat", "alive", "ended"))


def _claim_name(claim: tuple[int, str]) -> str:
    return f"{layout.ATTEMPTS}/{claim[0]:08d}-{claim[1]}.json"


def _is_file_of(descriptor: int, path: str) -> bool:
    """Whether a path still names the file that is open, and not through a link."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
