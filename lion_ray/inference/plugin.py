"""What this project changes in vLLM on a CPU, as a plugin that vLLM loads in each of its processes.

Invariants:
- Nothing is changed on a GPU.
- What is computed stays the same to the bit, except by `int8_kernel`, which is used only where it is asked for.

Named in ``pyproject.toml`` as ``vllm.general_plugins``; vLLM may call `register` several times.
"""

from __future__ import annotations

from typing import Any

from lion_ray.inference import gpu_build, int8_kernel


def register() -> None:
    if not gpu_build():
        int8_kernel.register()
        lay_out_embeddings_late()


def lay_out_embeddings_late() -> None:
    """Keep no copy of an embedding, laid out for products, that nothing multiplies by.

    vLLM makes one for each embedding as for each output head. In the 1.5B model whose head is tied to its embedding it
    takes 0.9 GB. Where a model does multiply by its embedding, it is made then.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

    lay_out = UnquantizedEmbeddingMethod.process_weights_after_loading
    if getattr(lay_out, "late", False):
        return

    def late(method: Any, layer: Any) -> None:
        if isinstance(layer, ParallelLMHead):
            lay_out(method, layer)
            return

        def first(x: Any, weight: Any, bias: Any) -> Any:
            lay_out(method, layer)
            return layer.cpu_linear(x, weight, bias)

        layer.cpu_linear = first

    late.late = True  # type: ignore[attr-defined]
    UnquantizedEmbeddingMethod.process_weights_after_loading = late
