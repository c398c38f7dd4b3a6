"""Detect a stalled run, and restart the actor that causes the stall.

Invariants:
- Progress is a change of a stage's count or of an endpoint's calls. Waiting that is shown as such (for a GPU, for calls
  in flight), or that ends by itself (an outage or a pause that the endpoint requested), is not a stall.
- An actor is restarted once. If the run stalls again, or no actor is at fault, it ends with the evidence: which actor,
  on which node, and its stack, in the error and completely in the run folder.

This module uses only what all actors have (`actors.base`), and the names of stages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import ray

from lion_ray.actors.base import LOST, Place, get_within, stack
from lion_ray.core import layout
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore

ANSWER_S = 20.0
"""Heartbeat timeout of an actor, in seconds."""
STACK_S = 60.0
"""Timeout for a stack, in seconds: a worker may have to be started for it."""
BACK_S = 300.0
"""Timeout for a restarted actor to answer, in seconds."""
LOOKS = 10
"""Number of checks within the stall timeout."""
SHOWN = 1200
"""Maximum characters of a stack in an error; the whole stack is in the run folder."""


class Watchdog:
    """Watches one run for stalls."""

    def __init__(
        self,
        progress: Progress,
        store: RunStore,
        stall_s: float,
        actors: Callable[[], Mapping[str, Any]],
        moves: Callable[[], Awaitable[int]],
        answer_s: float = ANSWER_S,
    ) -> None:
        """
        Args:
            stall_s: stall timeout: seconds without progress after which the run counts as stalled.
            actors: returns the run's current actors by name.
            moves: returns a number that changes with progress that no stage counts.
        """
        self._progress = progress
        self._store = store
        self._stall_s = stall_s
        self._actors = actors
        self._moves = moves
        self.answer_s = answer_s
        """The heartbeat timeout; may be changed."""
        self._places: dict[str, Place] = {}
        self._restarted: set[str] = set()
        self._state: tuple[Any, ...] | None = None
        self._moved_at = 0.0

    async def watch(self) -> None:
        """Watch forever. Raises InfrastructureError if the run stalls and a restart has not helped."""
        while True:
            await self.look(time.monotonic())
            await asyncio.sleep(self._stall_s / LOOKS)

    async def look(self, now: float) -> None:
        """Check for progress since the last check, and act on a stall.

        Args:
            now: seconds of a monotonic clock.

        Raises:
            InfrastructureError: the run stalls and a restart has not helped.
        """
        stages = self._progress.stages
        state = (*((stage.name, stage.done) for stage in stages), await self._moves())
        if state != self._state or self._progress.waits or not stages:
            self._state, self._moved_at = state, now
        # Also without a stall: an actor's place must be known before it stops answering.
        silent = await self._silent()
        if now - self._moved_at >= self._stall_s:
            await self._act(silent)
            self._state = None  # restart the timeout at the next check

    async def _silent(self) -> list[str]:
        """The actors that do not answer."""
        actors = self._actors()

        async def ask(name: str) -> str | None:
            try:
                self._places[name] = await get_within(actors[name].alive.remote(), self.answer_s)
            except TimeoutError:
                return name
            except ray.exceptions.RayError:
                return None  # dead: Ray or the pool replaces it, or the run ends by itself
            return None

        return [name for name in await asyncio.gather(*map(ask, actors)) if name]

    async def _act(self, silent: list[str]) -> None:
        stages = ", ".join(f"{stage.name} ({stage.done} of {stage.total})" for stage in self._progress.stages)
        about = f"no progress for {self._stall_s:g} s in {stages}"
        evidence = await self._evidence(silent or self._actors())
        where = f"{layout.STALLS}/{time.time_ns() // 1_000_000}.txt"
        self._store.write_bytes(where, f"{about}\n\n{evidence}".encode())
        path = self._store.path(where)
        if not silent:
            raise InfrastructureError(f"{about}, though every actor answers; their stacks are in {path}")
        again = [name for name in silent if name in self._restarted]
        if again:
            raise InfrastructureError(
                f"{about}: {', '.join(again)} does not answer, even after a restart. Its stack, complete in {path}:\n"
                f"{evidence[:SHOWN]}"
            )
        self._restarted.update(silent)
        self._progress.say(f"{about}: {', '.join(silent)} does not answer and is restarted; its stack is in {path}")
        for name in silent:
            ray.kill(self._actors()[name], no_restart=False)
        # Stages that wait for these actors continue once they are back.
        await asyncio.gather(*map(self._back, silent))

    async def _back(self, name: str) -> None:
        actor = self._actors().get(name)
        if actor is None:
            return  # an engine: the pool starts another if it is needed
        try:
            self._places[name] = await get_within(actor.alive.remote(), BACK_S)
        except LOST:
            return
        except TimeoutError:
            raise InfrastructureError(f"{name} was restarted and has not answered within {BACK_S:.0f} s") from None

    async def _evidence(self, names: Iterable[str]) -> str:
        """The stacks of these actors, as far as they are available."""
        parts = []
        for name in names:
            place = self._places.get(name)
            if place is None:
                parts.append(f"{name}: has never answered")
                continue
            try:
                text = await get_within(stack(place), STACK_S)
            except (TimeoutError, ray.exceptions.RayError) as error:
                text = f"no stack: {type(error).__name__}"
            parts.append(f"{name}, process {place.pid} on node {place.node}:\n{text}")
        return "\n\n".join(parts)
