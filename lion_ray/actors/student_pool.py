"""The pool of student engines: it scales with the work, and each engine serves the current checkpoint.

Invariants:
- Every engine of the pool serves the pool's current checkpoint, or is loading it.
- While a checkpoint is loaded there are `min_engines` to `max_engines` engines: as many as the requested shards keep
  busy. The pool starts with one; the others join when the cluster has room for them.
- An engine that dies is killed and replaced with the *current* checkpoint; its shards go to the others.
- If the canary disagrees after a refresh, the engine is booted afresh; if it disagrees after that, an error is raised.
- The pool holds references to shards, never their rows.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from lion_ray.actors.base import LOST, get_within, why_lost
from lion_ray.actors.engine_slot import Slot, shards_per_engine
from lion_ray.actors.metrics import EnginePoolMetrics
from lion_ray.actors.resources import scarce
from lion_ray.actors.student import StudentActor
from lion_ray.actors.weights import from_memory, in_memory
from lion_ray.config import StudentConfig
from lion_ray.core.errors import EngineError, EngineStartError, as_raised
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.inference import wants_gpu
from lion_ray.inference.engine import Sampling
from lion_ray.inference.memory import AT_ONCE
from lion_ray.models.model_ref import ModelRef

MAX_SHARD_ATTEMPTS = 3
"""Attempts for one shard; a shard whose every engine dies is probably the cause."""
MAX_BOOTS = 3
"""Attempts to boot one engine if its machine or process is lost meanwhile."""
MAX_STARTS = 2
"""Attempts to boot one engine whose processes end by themselves: usually they would end again."""
SHUTDOWN_S = 30.0
"""Timeout for an engine to shut down by itself, in seconds."""


class StudentPool:
    """From `min_engines` to `max_engines` engines that answer shards."""

    def __init__(
        self,
        config: StudentConfig,
        *,
        run_name: str,
        store: RunStore,
        base_dir: Path,
        seed: int,
        shard_rows: int = 64,
        gpus: float | None = None,
    ) -> None:
        """`gpus`: for each engine; default: `tensor_parallel_size`, if engines use GPUs."""
        self._config = config
        whole = config.tensor_parallel_size if wants_gpu(config.use_gpu) else 0
        self._gpus = float(whole) if gpus is None else gpus
        self._per_engine = shards_per_engine(config.max_num_seqs or AT_ONCE, shard_rows)
        self._run_name = run_name
        self._store = store
        self._base_dir = base_dir
        self._seed = seed
        self._slots = [Slot(number) for number in range(config.most_engines)]
        self._changed = asyncio.Condition()
        self._asked = 0
        """Shards requested and not answered yet."""
        self._failed: BaseException | None = None
        """The error because of which no engine can be booted."""
        self._model: ModelRef | None = None
        self._progress: Progress | None = None
        self._loading = asyncio.Lock()
        self._aside: set[asyncio.Task[None]] = set()
        self._metrics = EnginePoolMetrics(run_name)
        self.boots = 0

    @property
    def window(self) -> int:
        """The number of concurrent shards that keeps the maximum number of engines busy."""
        return self._per_engine * len(self._slots)

    @property
    def running(self) -> dict[int, Any]:
        """The actors of the engines that are scheduled now, by slot number."""
        return {slot.number: slot.actor for slot in self._slots if slot.placed}

    @property
    def _answers(self) -> bool:
        return any(slot.ready for slot in self._slots)

    # -- used by stages ---------------------------------------------------------------------------------------------

    async def load(self, model: ModelRef, progress: Progress) -> None:
        """Make every engine serve `model`: running engines are refreshed in place, others booted.

        Returns once one engine answers.

        Raises:
            EngineError: an engine booted afresh disagrees with the trainer's canary, or none can be booted.
        """
        self._progress = progress
        async with self._loading:
            if model != self._model:
                self._model = model
                self._failed = None
                # Engines that are booting load another model.
                await asyncio.gather(*(self._off(slot) for slot in self._slots if slot.booting is not None))
                if ready := [slot for slot in self._slots if slot.ready]:
                    # Held until all of these engines have loaded them, and no longer.
                    weights = await self._in_memory(model)
                    await asyncio.gather(*(self._refresh(slot, weights) for slot in ready))
                    del weights
            self._grow(at_least=1)
            async with self._changed:
                await self._changed.wait_for(lambda: self._failed or self._answers)
            self._check()

    async def answer(self, shard: Any, iteration: int) -> Any:
        """A reference to the answers to `shard`, once they exist. Engines that die on the way are replaced.

        Raises:
            EngineError: every engine that took the shard died, or no engine can be booted any more.
        """
        return await self._on_an_engine(lambda engine: engine.answer.remote(shard, iteration))

    async def rollout(self, shard: Any, sampling: Sampling) -> Any:
        """Like `answer`, with several answers to each instruction (SAMPLE rows)."""
        return await self._on_an_engine(lambda engine: engine.rollout.remote(shard, sampling))

    async def _on_an_engine(self, work: Callable[[Any], tuple[Any, Any]]) -> Any:
        self._asked += 1
        try:
            for attempt in range(1, MAX_SHARD_ATTEMPTS + 1):
                slot, actor = await self._take()
                try:
                    answers, count = work(actor)
                    await count
                    return answers
                except (EngineError, *LOST) as error:
                    self._replace(slot, actor, error)
                    if attempt == MAX_SHARD_ATTEMPTS:
                        raise EngineError(f"one shard ended {attempt} student engines, last: {_why(error)}") from None
                finally:
                    await self._give(slot)
        finally:
            self._asked -= 1
        raise AssertionError("unreachable")

    async def rest(self, keep: int | None = None) -> None:
        """Release the resources of all engines but `keep` (default `min_engines`): no shards are expected for now."""
        keep = self._config.min_engines if keep is None else keep
        async with self._loading:
            used = [slot for slot in self._slots if slot.used]
            # Engines that are booting go first.
            used.sort(key=lambda slot: (not slot.ready, slot.number))
            gone = [slot for slot in used[keep:] if not slot.shards]
            await asyncio.gather(*map(self._off, gone))
            if gone:
                self._say(f"{len(gone)} student engine{'s' if len(gone) > 1 else ''} ended: nothing to answer for now")

    async def stop(self) -> None:
        """Shut every engine down and release its resources."""
        await asyncio.gather(*(self._off(slot) for slot in self._slots))
        for task in self._aside:
            task.cancel()
        self._model = None

    # -- shards and engines -----------------------------------------------------------------------------------------

    async def _take(self) -> tuple[Slot, Any]:
        """The engine with the fewest shards, once it has room for one more."""

        def roomy() -> list[Slot]:
            return [slot for slot in self._slots if slot.ready and slot.shards < self._per_engine]

        self._grow()
        async with self._changed:
            await self._changed.wait_for(lambda: self._failed or roomy())
            self._check()
            slot = min(roomy(), key=lambda one: (one.shards, one.number))
            slot.shards += 1
            slot.taken += 1
            return slot, slot.actor

    async def _give(self, slot: Slot) -> None:
        async with self._changed:
            slot.shards -= 1
            self._changed.notify_all()
        if slot.shards == 0:
            self._look_later(slot)

    def _look_later(self, slot: Slot) -> None:
        asyncio.get_running_loop().call_later(self._config.idle_timeout_s, self._idle, slot, slot.taken)

    def _idle(self, slot: Slot, taken: int) -> None:
        """End an engine that has been idle since, and engines that were never scheduled and are no longer needed, but
        keep at least as many as needed."""
        spare = sum(one.stays for one in self._slots) - max(self._needed(), self._config.min_engines)
        gone = [one for one in reversed(self._slots) if one.stays and not one.placed]
        if slot.ready and slot.taken == taken and not slot.shards:
            gone.append(slot)
        for one in gone[: max(0, spare)]:
            one.ready, one.ending = False, True
            why = f"nothing to do for {self._config.idle_timeout_s:g} s" if one.placed else "not needed any more"
            self._say(f"student engine {one.number} ends: {why}")
            retiring = asyncio.create_task(self._retire(one))
            self._aside.add(retiring)
            retiring.add_done_callback(self._aside.discard)

    async def _retire(self, slot: Slot) -> None:
        await self._off(slot)
        if self._asked:
            self._grow()  # a shard was requested meanwhile, while the slot was still taken

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _needed(self) -> int:
        """How many engines the requested shards can keep busy."""
        return min(len(self._slots), math.ceil(self._asked / self._per_engine))

    def _grow(self, at_least: int = 0) -> None:
        """Boot as many more engines as the requested shards can keep busy."""
        wanted = max(self._needed(), at_least, self._config.min_engines)
        missing = wanted - sum(slot.stays for slot in self._slots)
        for slot in [slot for slot in self._slots if not slot.used][: max(0, missing)]:
            self._start(slot)

    # -- one engine -------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        slot.booting = asyncio.create_task(self._boot(slot))

    async def _boot(self, slot: Slot) -> None:
        """Boot an engine into its slot. An error is raised in the callers that wait for engines."""
        try:
            for attempt in range(1, MAX_BOOTS + 1):
                try:
                    await self._boot_once(slot)
                    break
                except (EngineStartError, *LOST) as error:
                    # The machine was lost, the process killed, or a port taken; the engine itself may be fine.
                    self._end(slot)
                    own = isinstance(error, EngineStartError)
                    how = "did not start" if own else "died while it started"
                    self._say(f"student engine {slot.number} {how} ({_why(error)})")
                    if attempt == (MAX_STARTS if own else MAX_BOOTS):
                        how = (
                            f"did not start in {attempt} attempts" if own else f"died {attempt} times while it started"
                        )
                        raise EngineError(f"student engine {slot.number} {how}, last: {_why(error)}") from None
        except Exception as error:  # noqa: BLE001 - raised in the callers that wait for engines
            self._end(slot)
            self._failed = as_raised(error)
        finally:
            slot.booting = None
            self._count()
        async with self._changed:
            self._changed.notify_all()

    async def _boot_once(self, slot: Slot) -> None:
        assert self._model is not None
        assert self._progress is not None
        gpus = self._gpus
        slot.actor = StudentActor.options(
            name=f"{self._run_name}/student-{slot.number}-{os.urandom(3).hex()}",
            num_cpus=self._config.num_cpus,
            num_gpus=gpus,
        ).remote(self._config, self._store, self._base_dir, self._seed, gpus)
        self.boots += 1
        self._count()

        def held_up() -> bool:
            return not self._answers

        name = f"student engine {slot.number}"
        wanted = {"GPU": gpus} if gpus else {"CPU": self._config.num_cpus}
        alive = slot.actor.alive.remote()
        await self._progress.waiting(alive, lambda: f"{name}: waiting for {scarce(wanted)}", held_up)
        slot.placed = True
        self._count()
        agreement = await self._progress.waiting(slot.actor.start.remote(self._model), f"{name}: starting", held_up)
        if not agreement.ok:
            raise EngineError(f"{name}, booted from {self._model.version}, {agreement.refusal()}")
        self._serves(slot, agreement.detail)
        self._look_later(slot)  # the work may be over by now

    async def _in_memory(self, model: ModelRef) -> list[Any]:
        """References to a model's weights in memory; none if engines are to read its folder."""
        if not model.folder or not from_memory(self._config, self._store):
            return []
        try:
            return await in_memory(model, self._store)
        except Exception as error:  # noqa: BLE001 - whatever it is, the checkpoint can still be read
            self._say(f"{model.version} was not put into memory ({_why(error)}); engines read the checkpoint")
            return []

    async def _refresh(self, slot: Slot, weights: list[Any]) -> None:
        assert self._model is not None
        slot.ready = False
        try:
            agreement, why = await slot.actor.refresh.remote(self._model, weights)
        except (EngineError, *LOST) as error:
            self._say(f"student engine {slot.number} could not be refreshed ({_why(error)}); booting afresh")
        else:
            if why:
                self._say(f"student engine {slot.number} read the checkpoint, not its weights in memory: {why}")
            if agreement.ok:
                self._serves(slot, agreement.detail + ("; from memory" if weights and not why else ""))
                return
            self._say(f"student engine {slot.number}: the canary disagrees ({agreement.detail}); booting afresh")
        await self._off(slot)
        self._start(slot)

    def _serves(self, slot: Slot, canary: str) -> None:
        assert self._model is not None
        self._say(f"student engine {slot.number} serves {self._model.version}; canary: {canary}")
        slot.ready = True

    def _replace(self, slot: Slot, dead: Any, error: BaseException) -> None:
        # Several shards were in flight at the dead engine: the first to notice boots a new one; each retries on any.
        if slot.actor is dead:
            self._say(f"student engine {slot.number} died ({_why(error)}); starting another")
            self._end(slot)
            self._start(slot)

    async def _off(self, slot: Slot) -> None:
        """Shut an engine down in any state and release its resources."""
        if slot.booting is not None:
            slot.booting.cancel()
            await asyncio.gather(slot.booting, return_exceptions=True)
        slot.ready = False
        if slot.placed:
            try:
                await get_within(slot.actor.shutdown.remote(), SHUTDOWN_S)
            except (TimeoutError, ray.exceptions.RayError) as error:
                self._say(f"student engine {slot.number} did not shut down by itself ({_why(error)}); killing it")
        self._end(slot)

    def _end(self, slot: Slot) -> None:
        actor, slot.actor = slot.actor, None
        slot.placed = slot.ready = slot.ending = False
        if actor is not None:
            ray.kill(actor)
        self._count()

    # -- metrics and log --------------------------------------------------------------------------------------------

    def _count(self) -> None:
        ready, placed = sum(slot.ready for slot in self._slots), sum(slot.placed for slot in self._slots)
        self._metrics.show(ready, placed - ready, sum(slot.used for slot in self._slots) - placed)

    def _say(self, message: str) -> None:
        if self._progress is not None:
            self._progress.say(message)


def _why(error: BaseException) -> str:
    remedy = "lower student.max_num_seqs or max_model_len, let fewer engines share a machine, or give it more"
    return why_lost(error, remedy)
