"""Sees that a run moves, and does something about it where it does not.

Invariants:
- What moves is a stage's count or an endpoint's calls. Waiting that is shown as such (for a GPU, for calls to come
  home), or that ends by itself (for an endpoint that is down, or asks for time), is not standing still.
- An actor is restarted once for each stall; a run that stands still again, or for no actor's sake, ends with what was
  found: who, where, and its stack, in the error and whole in the run folder.

This module knows actors by what they all have (`actors.base`), and stages by their names.
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
"""An actor that has not said in so many seconds that it is alive does not answer."""
STACK_S = 60.0
"""A stack takes at most so many seconds to come: a worker may have to be started for it."""
BACK_S = 300.0
"""A restarted actor has so many seconds to come back."""
LOOKS = 10
"""How often to look in the time after which a run stands still."""
TOLD = 1200
"""Characters of a stack in an error; the whole is in the run folder."""


class Watchdog:
    """Watches one run."""

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
            stall_s: after so many seconds without a move the run stands still.
            actors: the run's actors of now, by name.
            moves: a number that changes when something happens that no stage counts.
        """
        self._progress = progress
        self._store = store
        self._stall_s = stall_s
        self._actors = actors
        self._moves = moves
        self.answer_s = answer_s
        """How long an actor may take to answer; may be changed."""
        self._places: dict[str, Place] = {}
        self._restarted: set[str] = set()
        self._state: tuple[Any, ...] | None = None
        self._moved_at = 0.0

    async def watch(self) -> None:
        """Return never; raise InfrastructureError where the run stands still and a restart has not helped."""
        while True:
            await self.look(time.monotonic())
            await asyncio.sleep(self._stall_s / LOOKS)

    async def look(self, now: float) -> None:
        """See whether anything moved since the last look, and act where nothing has for too long.

        Args:
            now: seconds, of a clock that only goes on.

        Raises:
            InfrastructureError: the run stands still and a restart has not helped.
        """
        stages = self._progress.stages
        state = (*((stage.name, stage.done) for stage in stages), await self._moves())
        if state != self._state or self._progress.waits or not stages:
            self._state, self._moved_at = state, now
        # Also while all is well: a place is known only from before.
        silent = await self._silent()
        if now - self._moved_at >= self._stall_s:
            await self._act(silent)
            self._state = None  # counted anew from the next look

    async def _silent(self) -> list[str]:
        """The actors that do not answer."""
        actors = self._actors()

        async def ask(name: str) -> str | None:
            try:
                self._places[name] = await get_within(actors[name].alive.remote(), self.answer_s)
            except TimeoutError:
                return name
            except ray.exceptions.RayError:
                return None  # dead: Ray or the pool starts another, or the run ends by itself
            return None

        return [name for name in await asyncio.gather(*map(ask, actors)) if name]

    async def _act(self, silent: list[str]) -> None:
        stages = ", ".join(f"{stage.name} ({stage.done} of {stage.total})" for stage in self._progress.stages)
        about = f"nothing has moved for {self._stall_s:g} s in {stages}"
        evidence = await self._evidence(silent or self._actors())
        where = f"{layout.STALLS}/{time.time_ns() // 1_000_000}.txt"
        self._store.write_bytes(where, f"{about}\n\n{evidence}".encode())
        path = self._store.path(where)
        if not silent:
            raise InfrastructureError(f"{about}, though every actor answers; what they are doing is in {path}")
        again = [name for name in silent if name in self._restarted]
        if again:
            raise InfrastructureError(
                f"{about}: {', '.join(again)} does not answer, and did not before it was restarted. Its stack, whole "
                f"in {path}:\n{evidence[:TOLD]}"
            )
        self._restarted.update(silent)
        self._progress.say(f"{about}: {', '.join(silent)} does not answer and is restarted; its stack is in {path}")
        for name in silent:
            ray.kill(self._actors()[name], no_restart=False)
        # What waits for them moves when they are back.
        await asyncio.gather(*map(self._back, silent))

    async def _back(self, name: str) -> None:
        actor = self._actors().get(name)
        if actor is None:
            return  # a pool's: it starts another when it is missed
        try:
            self._places[name] = await get_within(actor.alive.remote(), BACK_S)
        except LOST:
            return
        except TimeoutError:
            raise InfrastructureError(f"{name} was restarted and has not come back within {BACK_S:.0f} s") from None

    async def _evidence(self, names: Iterable[str]) -> str:
        """The stacks of these actors, as far as they can be had."""
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
