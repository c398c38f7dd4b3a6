"""Models of published shapes with random weights, and samples of random tokens."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu_check.numbers import Machine
from lion_ray.imitation.training.data import REFERENCE, Sample

_QWEN = {"head_dim": 128, "max_position_embeddings": 40_960, "tie_word_embeddings": True}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # Vocabulary, width, inner width, layers, heads, key-value heads; then what else the published configuration says.
    "qwen3-0.6b": ("qwen3", {**_QWEN, "shape": (151_936, 1024, 3072, 28, 16, 8), "rope_theta": 1e6}),
    "llama-1b": ("llama", {"shape": (128_256, 2048, 8192, 16, 32, 8), "tie_word_embeddings": True, "head_dim": 64}),
    "llama-7b": ("llama", {"shape": (32_000, 4096, 11_008, 32, 32, 32)}),
}
_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_HEADS = ("num_attention_heads", "num_key_value_heads")


def build(name: str, machine: Machine, *, layers: int | None = None) -> Any:
    """A model on the machine's device in float32; the same weights each time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, about = SHAPES[name]
    about = {"max_position_embeddings": 16_384, **about}
    fields = dict(zip((*_NAMES, *_HEADS), about.pop("shape"), strict=True))
    if machine.tiny:
        fields |= {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        about.pop("head_dim", None)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    torch.manual_seed(0)
    with machine.device:
        config = AutoConfig.for_model(kind, **fields, **about)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def samples_of(model: Any, sizes: list[int], *, pairs: bool = False) -> list[Sample]:
    """Samples with these numbers of tokens, all but the first of them labelled. `pairs`: each as two answers."""
    random = torch.Generator().manual_seed(1)
    vocabulary = int(model.config.get_text_config().vocab_size)

    def one(size: int) -> Sample:
        return Sample(torch.randint(0, vocabulary, (size,), generator=random).tolist(), 1)

    if not pairs:
        return [one(size) for size in sizes]
    # Random weights find every token equally likely.
    before = -float(torch.tensor(float(vocabulary)).log())
    return [
        one(size // 2)._replace(rejected=one(size // 2), columns={REFERENCE: (before * (size // 2 - 1),) * 2})
        for size in sizes
    ]
