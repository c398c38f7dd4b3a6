"""A checkpoint's weights in Ray's object store, for the engines that are to be refreshed with them.

Invariants:
- They are read from the committed checkpoint, where the fit ran: that machine has it, so one reading serves all engines
  and none of their machines downloads or stores it.
- The driver owns the objects and drops them once every engine has been refreshed, so they end with the run in any case.
- All of them together take at most `SHARE` of the smallest object store in the cluster; a larger model is refused, and
  its engines read the checkpoint.

Why the object store and not CUDA IPC or NCCL: see `inference.weight_transfer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lion_ray.config import StudentConfig
from lion_ray.core import layout
from lion_ray.core.copies import copies_folder
from lion_ray.core.errors import ModelError
from lion_ray.core.store import RunStore
from lion_ray.models.model_ref import ModelRef
from lion_ray.models.weight_chunks import chunks, weight_bytes

SHARE = 0.5
"""The largest part of an object store that weights may take; Ray would spill more than the store holds to a disk."""


def from_memory(config: StudentConfig, store: RunStore) -> bool:
    """Whether engines are refreshed from memory.

    Not with several GPUs for an engine: its workers may run where the engine's actor cannot share memory with them.
    """
    wanted = config.refresh == "memory" or (config.refresh == "auto" and not store.is_local)
    return wanted and config.tensor_parallel_size == 1


async def in_memory(model: ModelRef, store: RunStore) -> list[ray.ObjectRef[Any]]:
    """The weights of a folder of the run, in chunks (`models.weight_chunks`). They stay as long as the references.

    Raises:
        Exception: whatever the reading raised, or Ray, if its process or node was lost.
    """
    seen = await asyncio.to_thread(store.read_json, layout.progress(str(Path(model.folder).parent)))
    near = {}
    if node := (seen or {}).get("node"):
        near = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}
    *references, end = [one async for one in _read.options(**near).remote(store, model.folder)]
    await end  # an error of the reading is its last object
    return references


async def arriving(references: list[ray.ObjectRef[Any]]) -> AsyncIterator[Any]:
    """The objects one after another."""
    for reference in references:
        yield await reference


@ray.remote(num_cpus=0, max_retries=0)
def _read(store: RunStore, folder: str) -> Iterator[Any]:
    local = store.local_folder(folder, cache=copies_folder())
    check_room(weight_bytes(local), (node["Resources"] for node in ray.nodes() if node["Alive"]))
    yield from chunks(local)
    yield None


def check_room(size: int, nodes: Iterable[Mapping[str, float]]) -> None:
    """Raises ModelError if weights of `size` bytes take too much of the object store of one of the nodes."""
    smallest = min(resources.get("object_store_memory", 0.0) for resources in nodes)
    if size > SHARE * smallest:
        raise ModelError(
            f"its weights take {size / 2**20:.0f} MiB, more than {SHARE:.0%} of the cluster's smallest object store "
            f"({smallest / 2**20:.0f} MiB)"
        )
