"""Who of a fit's processes is still there, and who is not where the others wait.

Invariants:
- No process waits for another longer than a fit's `collective_timeout_s`; then it says who did not come.
- Who is absent is found by asking each by itself, in a group of its own: what failed in the fit's own group says only
  that somebody did not come.
- An error of this process alone (its memory, its data) is raised as it is.

This module does not know what the processes do together.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from lion_ray.core.errors import TrainingError
from lion_ray.imitation.training.model import World

LONGEST_ASKING_S = 60.0
"""Those who wait in one place give up within so many seconds of each other."""


class Roll:
    """The processes of one fit, by their names."""

    def __init__(self, world: World, timeout_s: float) -> None:
        """Every process of the fit makes one, at the same place."""
        self.world = world
        self._timeout_s, self._asking_s = timeout_s, min(LONGEST_ASKING_S, timeout_s)
        self.names = [f"process {world.rank} ({socket.gethostname()}, pid {os.getpid()})"]
        if world.size > 1:
            # Not NCCL's: it ends a process that waits too long, and names nobody.
            self._meeting = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            self._asking = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s + 2 * self._asking_s))
            everyone: list[str] = [""] * world.size
            dist.all_gather_object(everyone, self.names[0], group=self._meeting)
            self.names = everyone

    @contextmanager
    def called(self) -> Iterator[None]:
        """Around all that the processes do together.

        Raises:
            TrainingError: in place of whatever is raised where another process did not come.
        """
        try:
            yield
        except (RuntimeError, CheckpointException) as error:
            if self.world.size == 1 or not _by_waiting(error):
                raise
            absent = [self.names[rank] for rank in self._absent()]
            who = " and ".join(absent) if absent else "another process, which has come back since,"
            raise TrainingError(
                f"{who} did not come within {self._timeout_s:g} s to where {len(self.names)} processes of the fit meet "
                "(imitation.collective_timeout_s): it hangs or is gone. The last checkpoint is kept"
            ) from None

    def meet(self) -> None:
        """Wait until everyone is here."""
        if self.world.size > 1:
            dist.barrier(group=self._meeting)

    def _absent(self) -> list[int]:
        """Ask each of the others whether it is there; the ranks of those that do not answer."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        there: queue.Queue[int] = queue.Queue()
        for rank in others:
            # In threads, as gloo closes every connection of a group as soon as one wait in it has timed out.
            threading.Thread(target=self._greet, args=(rank, there), daemon=True).start()
        until = time.monotonic() + self._asking_s
        answered: set[int] = set()
        while answered < set(others):
            try:
                answered.add(there.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return sorted(set(others) - answered)

    def _greet(self, rank: int, there: queue.Queue[int]) -> None:
        with suppress(RuntimeError):
            sent = dist.isend(torch.ones(1), rank, group=self._asking)
            came = dist.irecv(torch.zeros(1), rank, group=self._asking)
            assert sent is not None
            assert came is not None
            came.wait()
            sent.wait()  # whoever ends before is not heard
            there.put(rank)


_WAITING = ("gloo", "NCCL", "pair closure", "Connection closed", "Connection reset", "Socket closed", "Broken pipe")
"""Words in which torch says that a process waited in vain, or that the other one is gone."""


def _by_waiting(error: BaseException) -> bool:
    """Whether an error came of waiting for another process."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _WAITING)
