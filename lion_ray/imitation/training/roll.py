"""Detect which process of a fit hangs or has died when a collective times out.

Invariants:
- No process waits for another longer than a fit's `collective_timeout_s`; then it reports which process is missing.
- Missing processes are found by pinging each one separately, in a separate process group: the failed collective only
  shows that some process did not arrive.
- An error of this process alone (its memory, its data) is raised unchanged.

This module does not know what the processes compute.
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

LONGEST_PING_S = 60.0
"""Processes that wait at the same collective time out within this many seconds of each other."""


class Roll:
    """The processes of one fit, with their names."""

    def __init__(self, world: World, timeout_s: float) -> None:
        """Collective: every process of the fit must construct it at the same point."""
        self.world = world
        self._timeout_s, self._ping_s = timeout_s, min(LONGEST_PING_S, timeout_s)
        self.names = [f"process {world.rank} ({socket.gethostname()}, pid {os.getpid()})"]
        if world.size > 1:
            # Not NCCL: it kills a process that waits too long and does not report which peer is missing.
            self._meeting = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            self._pinging = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s + 2 * self._ping_s))
            everyone: list[str] = [""] * world.size
            dist.all_gather_object(everyone, self.names[0], group=self._meeting)
            self.names = everyone

    @contextmanager
    def called(self) -> Iterator[None]:
        """Wraps all collective work of the processes.

        Raises:
            TrainingError: another process did not arrive; replaces the original exception.
        """
        try:
            yield
        except (RuntimeError, CheckpointException) as error:
            if self.world.size == 1 or not _by_waiting(error):
                raise
            absent = [self.names[rank] for rank in self._absent()]
            who = " and ".join(absent) if absent else "another process, which answers again by now,"
            raise TrainingError(
                f"{who} did not reach a collective of {len(self.names)} processes: it has died (too little memory?) "
                f"or hangs for {self._timeout_s:g} s (imitation.collective_timeout_s). The last checkpoint is kept"
            ) from None

    def meet(self) -> None:
        """Barrier: wait until all processes are here."""
        if self.world.size > 1:
            dist.barrier(group=self._meeting)

    def all(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on every process."""
        if self.world.size == 1:
            return list(flags)
        least = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._meeting)
        return [bool(flag) for flag in least]

    def _absent(self) -> list[int]:
        """Ping each other process. Returns the ranks that do not answer."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        replies: queue.Queue[int] = queue.Queue()
        for rank in others:
            # In threads, because gloo closes all connections of a group once one wait in it has timed out.
            threading.Thread(target=self._ping, args=(rank, replies), daemon=True).start()
        until = time.monotonic() + self._ping_s
        answered: set[int] = set()
        while answered < set(others):
            try:
                answered.add(replies.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return sorted(set(others) - answered)

    def _ping(self, rank: int, replies: queue.Queue[int]) -> None:
        with suppress(RuntimeError):
            sent = dist.isend(torch.ones(1), rank, group=self._pinging)
            received = dist.irecv(torch.zeros(1), rank, group=self._pinging)
            assert sent is not None
            assert received is not None
            received.wait()
            sent.wait()  # if this process exits earlier, its message is lost
            replies.put(rank)


_WAITING = ("gloo", "NCCL", "pair closure", "Connection closed", "Connection reset", "Socket closed", "Broken pipe")
"""Parts of torch's messages for a timeout or a lost peer."""


def _by_waiting(error: BaseException) -> bool:
    """Whether an error was caused by waiting for another process."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _WAITING)
