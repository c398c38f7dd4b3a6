"""Replaces the weights of a running vLLM engine, from a folder or from memory.

Invariant: no token is generated while weights are replaced, and none from cached keys and values of the old weights.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lion_ray.core.errors import EngineError, first_line

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vllm.v1.engine.async_llm import AsyncLLM


async def replace(llm: AsyncLLM, version: str, load: Callable[[AsyncLLM], Awaitable[None]]) -> None:
    """Wait until nothing is generated, and `load` the weights of `version`. Raises EngineError."""
    try:
        await llm.pause_generation(mode="wait")
        await load(llm)
        if not await llm.reset_prefix_cache():
            raise EngineError("the prefix cache of the old weights could not be reset")
        await llm.resume_generation()
    except Exception as error:  # noqa: BLE001
        # vLLM passes on any exception of its worker; after any of them, the weights cannot be trusted.
        raise EngineError(f"the student engine could not load {version}: {first_line(error)}") from None


async def from_folder(folder: Path, llm: AsyncLLM) -> None:
    """Load the weights in a checkpoint's folder (`worker.take_weights`)."""
    await llm.collective_rpc("take_weights", args=(str(folder),))


async def from_memory(chunks: AsyncIterator[Buffer], llm: AsyncLLM) -> None:
    """Load weights from the chunks of `models.weight_chunks`; the engine was started with the backend for them."""
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    await llm.start_weight_update()
    async for chunk in chunks:
        with shared(chunk) as path:
            await llm.update_weights(WeightTransferUpdateRequest({"path": path}))
    await llm.finish_weight_update()


@contextlib.contextmanager
def shared(content: Buffer) -> Iterator[str]:
    """A path under which this user's other processes on this machine can read `content`.

    Memory without a name in any file system: nothing is left behind, however these processes end, and no size of
    /dev/shm limits it. Whoever has mapped it keeps it until then.
    """
    with os.fdopen(os.memfd_create("lion-ray-weights", os.MFD_CLOEXEC), "r+b") as file:
        size = memoryview(content).nbytes
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            memory[:] = memoryview(content).cast("B")
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
