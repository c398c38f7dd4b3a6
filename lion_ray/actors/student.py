"""One student engine as a Ray actor.

Invariants:
- An answer carries the version of the weights that generated it.
- vLLM's core can die while its actor lives, so Ray's restarts are off: the pool (`actors.student_pool`) replaces it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from lion_ray.actors.base import BaseActor
from lion_ray.actors.metrics import EngineMetrics, own_name, vllm_loggers
from lion_ray.actors.weights import arriving, from_memory
from lion_ray.config import StudentConfig
from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.inference.engine import Engine, Sampling
from lion_ray.inference.weight_check import Agreement
from lion_ray.models.model_ref import ModelRef


class StudentEngine(BaseActor):
    """One vLLM engine; `gpus` is what it has reserved."""

    def __init__(self, config: StudentConfig, store: RunStore, base_dir: Path, seed: int, gpus: float) -> None:
        self._store = store
        self._base_dir = base_dir
        self._engine = Engine(
            config,
            base_dir=base_dir,
            seed=seed,
            gpus=gpus,
            stat_loggers=vllm_loggers,
            name=own_name(),
            transfers=from_memory(config, store),
        )
        self._metrics = EngineMetrics()

    async def start(self, model: ModelRef) -> Agreement:
        folder = await self._fetched(model)
        await self._engine.start(folder, model.version)
        self._metrics.serves(model.version)
        return await self._engine.canary(folder)

    async def refresh(self, model: ModelRef, weights: list[ray.ObjectRef[Any]]) -> tuple[Agreement, str]:
        """Load a model's weights in place: those in memory (`actors.weights`), if there are any, else its folder's.

        Returns the agreement with the canary, and why weights in memory were not used although there are some.
        """
        canary, why = b"", ""
        if weights:
            try:
                canary = await asyncio.to_thread(self._store.read_bytes, f"{model.folder}/{layout.CANARY}")
            except FileNotFoundError:
                why = "the checkpoint has no canary"
        if canary:
            fetch, chunks = partial(self._fetched, model), arriving(weights)
            agreement, why = await self._engine.refresh_from_memory(chunks, canary, fetch, model.version)
        else:
            agreement = await self._engine.refresh(await self._fetched(model), model.version)
        self._metrics.serves(model.version)
        return agreement, why

    async def _fetched(self, model: ModelRef) -> Path:
        return await asyncio.to_thread(model.fetch, self._store, self._base_dir)

    @ray.method(num_returns=2)
    async def answer(self, shard: pa.Table, iteration: int) -> tuple[pa.Table, int]:
        """The answers and their number: awaiting the number waits for the answers without moving them."""
        return await self._counted(self._engine.answer(shard, iteration))

    @ray.method(num_returns=2)
    async def rollout(self, shard: pa.Table, sampling: Sampling) -> tuple[pa.Table, int]:
        """Several answers to each instruction, with their tokens, and the number of answers."""
        return await self._counted(self._engine.rollout(shard, sampling))

    async def _counted(self, answering: Awaitable[pa.Table]) -> tuple[pa.Table, int]:
        self._metrics.answering(1)
        try:
            answers = await answering
        finally:
            self._metrics.answering(-1)
        self._metrics.answered(pc.sum(answers["completion_tokens"]).as_py() or 0)
        return answers, answers.num_rows

    @ray.method(concurrency_group="health")
    async def processes(self) -> list[int]:
        return self._engine.processes()

    @ray.method(concurrency_group="health")
    async def busy(self) -> bool:
        """Whether a shard is being answered now."""
        return self._engine.busy

    async def shutdown(self) -> None:
        await asyncio.to_thread(self._engine.shutdown)


StudentActor: Any = ray.remote(
    max_restarts=0, max_task_retries=0, max_concurrency=100, concurrency_groups={"health": 2}
)(StudentEngine)
