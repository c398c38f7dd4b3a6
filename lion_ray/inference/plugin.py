"""This project's changes to vLLM, as a plugin that vLLM loads in each of its processes.

Invariants:
- On a GPU nothing is changed; a backend of vLLM's weight transfer is added (`weight_transfer`).
- Results stay the same to the bit, except with `int8_kernel`, which is used only if it is requested.

Named in ``pyproject.toml`` as ``vllm.general_plugins``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any

from lion_ray.inference import gpu_build, int8_kernel
from lion_ray.inference.engine_settings import TRANSFER


@cache  # vLLM may call it several times
def register() -> None:
    """Called by vLLM before it loads a model."""
    register_transfer()
    if gpu_build():
        return
    if int8_kernel.wanted():
        int8_kernel.register()
    lay_out_embeddings()
    if multiprocessing.parent_process() is not None:
        leave_at_once()


def register_transfer() -> None:
    """Add the backend for weights from memory. An engine that does not use it must start with any vLLM."""
    with suppress(ImportError):
        from vllm.distributed.weight_transfer import WeightTransferEngineFactory

        WeightTransferEngineFactory.register_engine(TRANSFER, "lion_ray.inference.weight_transfer", "MemoryWeights")


def leave_at_once() -> None:
    """Let the process of an engine's core end without taking down what it has imported, which takes two seconds.

    Only after an orderly end: the exit code of any other end stays as it is.
    """
    from vllm.v1.engine.core import EngineCoreProc

    original = EngineCoreProc.run_busy_loop

    def run_busy_loop(core: Any) -> None:
        try:
            original(core)
        except SystemExit:
            atexit.register(leave)
            raise

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    EngineCoreProc.run_busy_loop = run_busy_loop


def lay_out_embeddings() -> None:
    """Do not keep a packed copy of an embedding that is never used in a matrix product.

    vLLM makes a packed copy for each embedding, as for each output head. In the 1.5B model, whose head is tied to its
    embedding, the copy takes 0.9 GB. If a model does multiply by its embedding, the copy is made at the first product.
    """
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

    original = UnquantizedEmbeddingMethod.process_weights_after_loading

    def lay_out(method: Any, layer: Any) -> None:
        if not isinstance(layer, ParallelLMHead):
            layer.cpu_linear = first_product(method, layer)
        elif int8_kernel.wanted() and layer.weight.dtype == torch.float32 and not layer.weight.is_meta:
            int8_kernel.lay_out_head(layer)
        else:
            original(method, layer)

    def first_product(method: Any, layer: Any) -> Any:
        def product(rows: Any, weight: Any, bias: Any) -> Any:
            original(method, layer)
            return layer.cpu_linear(rows, weight, bias)

        return product

    def look_up(method: Any, layer: Any, ids: Any) -> Any:
        return int8_kernel.look_up(ids, layer.weight)

    UnquantizedEmbeddingMethod.process_weights_after_loading = lay_out  # type: ignore[method-assign, assignment]
    UnquantizedEmbeddingMethod.embedding = look_up  # type: ignore[method-assign, assignment]
