"""Base of every long-lived actor: a heartbeat, its node and process, and its stack traces.

Invariant: stacks are available even if an actor no longer answers. Its process writes them on SIGUSR1, whatever its
threads do (`faulthandler`); a task on its node sends the signal and reads the file.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lion_ray.core.errors import as_raised, first_line

WRITING_S = 5.0
"""Timeout for a process to write its stack, in seconds."""
RESTARTS = 5
"""Maximum restarts of one actor in a run."""
LONGEST = 20_000
"""Maximum length of a stack, in characters."""


LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What Ray raises if an actor's process is gone; the second (not a subclass of the first) if Ray killed it."""
_SHORT = re.compile(r"running low on memory.*?\(IP: ([^,)]+).*?was ([0-9.]+ ?GB) used / ([0-9.]+ ?GB) limit", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Place(NamedTuple):
    """An actor's node and process."""

    node: str
    pid: int


class BaseActor:
    """A base for actor classes."""

    def alive(self) -> Place:
        """The heartbeat; returns where this actor runs. After the first call its stack is available."""
        if not hasattr(self, "_stack_file"):
            self._stack_file = _stack_path(os.getpid()).open("w")
            faulthandler.register(signal.SIGUSR1, file=self._stack_file, all_threads=True)
        return Place(ray.get_runtime_context().get_node_id(), os.getpid())


def restartable(role: type, *, at_once: int) -> Any:
    """A role's class as an actor that Ray restarts if its process or machine is lost.

    Its calls are retried without limit: until Ray notices that a machine is gone, a call to it fails within
    milliseconds, so any limit would be used up. After more than `RESTARTS` restarts the calls fail.
    """
    return ray.remote(num_cpus=0, max_restarts=RESTARTS, max_task_retries=-1, max_concurrency=at_once)(role)


def short_of_memory(error: BaseException, remedy: str) -> str:
    """One line if Ray killed a process because its machine was short of memory, with what to do; else ""."""
    said = str(as_raised(error))
    if not isinstance(as_raised(error), ray.exceptions.OutOfMemoryError) and "OOM" not in said:
        return ""
    found = _SHORT.search(said)
    where = f" {found[1]} was short of memory ({found[2]} of {found[3]} used)" if found else " was short of memory"
    return f"Ray ended its process because the machine{where}; {remedy}"


def why_lost(error: BaseException, remedy: str = "give the machine more, or let less run beside it") -> str:
    """One line: why an actor or a worker is gone. `remedy`: what to do if its machine was short of memory."""
    said = _COLOURS.sub("", str(as_raised(error)))
    return short_of_memory(error, remedy) or first_line(said if said.strip() else error)


async def get_within(reference: Any, seconds: float) -> Any:
    """Await a Ray reference with a timeout. Raises TimeoutError, or the reference's own exception."""
    return await asyncio.wait_for(asyncio.wrap_future(reference.future()), seconds)


def stack(place: Place) -> ray.ObjectRef[str]:
    """A Ray reference to the stacks of all threads of an actor's process."""
    here = NodeAffinitySchedulingStrategy(place.node, soft=False)
    return _read_stack.options(scheduling_strategy=here).remote(place.pid)


@ray.remote(num_cpus=0, max_retries=0)
def _read_stack(pid: int) -> str:
    path = _stack_path(pid)
    before = path.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + WRITING_S
    text = ""
    # The stack is complete once the file stops growing.
    while time.monotonic() < until:
        time.sleep(0.1)
        now = path.read_text()[before:]
        if now and now == text:
            break
        text = now
    return text[:LONGEST]


def _stack_path(pid: int) -> Path:
    folder = Path(tempfile.gettempdir()) / f"lion-ray-stacks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{pid}.txt"
