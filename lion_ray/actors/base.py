"""What every long-lived actor lets be seen of itself: that it answers, where it runs, and what it is doing.

Invariant: a stack can be had of an actor that no longer answers: the process writes it on SIGUSR1, whatever its threads
are at (`faulthandler`), and a task on its node sends the signal and reads what was written.
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

from lion_ray.core.errors import as_raised

WRITING_S = 5.0
"""How long a process may take to write its stack."""
RESTARTS = 5
"""How often one actor of a role is started again in a run."""
LONGEST = 20_000
"""Characters of a stack that are kept."""


LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What Ray raises where an actor's process is gone; the second, which is not one of the first, where Ray ended it."""
TOLD = 300
"""Characters of what Ray said."""
_SHORT = re.compile(r"running low on memory.*?\(IP: ([^,)]+).*?was ([0-9.]+ ?GB) used / ([0-9.]+ ?GB) limit", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Place(NamedTuple):
    """Where an actor's process is."""

    node: str
    pid: int


class BaseActor:
    """A base for actor classes."""

    def alive(self) -> Place:
        """Where this actor runs; that it answers is the point. From the first answer on its stack can be had."""
        if not hasattr(self, "_stack_file"):
            self._stack_file = _stack_path(os.getpid()).open("w")
            faulthandler.register(signal.SIGUSR1, file=self._stack_file, all_threads=True)
        return Place(ray.get_runtime_context().get_node_id(), os.getpid())


def restartable(role: type, *, at_once: int) -> Any:
    """A role's class as an actor that Ray starts again where its process or its machine went.

    What it was asked is asked again without end: as long as nobody has seen that a machine is gone, a call to it fails
    within milliseconds, and any number of retries would be used up by then. An actor that dies `RESTARTS` times and
    once more ends its callers all the same.
    """
    return ray.remote(num_cpus=0, max_restarts=RESTARTS, max_task_retries=-1, max_concurrency=at_once)(role)


def short_of_memory(error: BaseException, remedy: str) -> str:
    """In a line, that Ray ended a process whose machine was short of memory, and what to do; "" where it did not."""
    said = str(as_raised(error))
    if not isinstance(as_raised(error), ray.exceptions.OutOfMemoryError) and "OOM" not in said:
        return ""
    found = _SHORT.search(said)
    where = f" {found[1]} was short of memory ({found[2]} of {found[3]} used)" if found else " was short of memory"
    return f"Ray ended its process, as the machine{where}; {remedy}"


def why_lost(error: BaseException, remedy: str = "give the machine more, or let less run beside it") -> str:
    """In a line, why an actor or a worker is gone. `remedy`: where its machine was short of memory."""
    said = _COLOURS.sub("", str(as_raised(error)))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return short_of_memory(error, remedy) or (lines[0] if lines else type(error).__name__)[:TOLD]


async def get_within(reference: Any, seconds: float) -> Any:
    """What `reference` comes to. Raises TimeoutError where that takes longer, and what it raises."""
    return await asyncio.wait_for(asyncio.wrap_future(reference.future()), seconds)


def stack(place: Place) -> ray.ObjectRef[str]:
    """A reference to the stacks of all threads of an actor's process."""
    here = NodeAffinitySchedulingStrategy(place.node, soft=False)
    return _read_stack.options(scheduling_strategy=here).remote(place.pid)


@ray.remote(num_cpus=0, max_retries=0)
def _read_stack(pid: int) -> str:
    path = _stack_path(pid)
    before = path.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + WRITING_S
    text = ""
    # It is whole when it has stopped growing.
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
