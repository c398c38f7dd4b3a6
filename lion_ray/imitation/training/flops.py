"""How many operations a fit's step needs, and what share of the GPU's speed that is (MFU).

Model FLOPs, as in PaLM (arXiv 2204.02311), appendix B: what the mathematics needs, whatever is recomputed or padded. A
multiply-add counts as two. Forward is 2 FLOPs for each weight that a token meets, backward 4, of which a frozen weight
needs 2. The head is met at labelled tokens only, and of a layer's experts as many as route a token. Attention is
causal: a token meets the tokens before it in its own sample, within the layer's window.

This module does not know steps or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lion_ray.imitation.training.data import Sample

PEAKS = {
    # The vendors' data sheets: dense bfloat16 with float32 accumulation, TFLOP/s. The first name that fits counts.
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.05,
    "L40": 181.05,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI325X": 1307.4,
    "MI300X": 1307.4,
    "MI250X": 191.5,
}


def peak(name: str, precision: str) -> float | None:
    """FLOP/s of a device by its name, for a fit's precision (fp32: as TF32, half of bf16); None: unknown."""
    words = f" {name} ".replace("-", " ")
    tera = next((tera for known, tera in PEAKS.items() if f" {known} " in words), None)
    return None if tera is None else tera * 1e12 * (1.0 if precision == "bf16" else 0.5)


def device_peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a device; None for a CPU and for a GPU that is not in the table."""
    return peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


@dataclass(frozen=True)
class ModelFlops:
    """What one token costs in training, in FLOPs."""

    token: float
    """In every layer, without attention between tokens."""
    label: float
    """More for a labelled token: the head."""
    pair: float
    """More for each pair of tokens in which one sees the other, summed over full layers."""
    windows: tuple[tuple[int, float], ...] = ()
    """(window, FLOPs of a pair) of the layers with a sliding window, by window."""

    @classmethod
    def of(cls, model: Any) -> ModelFlops:
        """From a model's weights, as they are to be trained (adapters, frozen weights)."""
        config = model.config.get_text_config()
        in_head = {id(module) for module in model.get_output_embeddings().modules()}
        token = label = 0.0
        for path, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                continue
            for weights in module.parameters(recurse=False):
                cost = weights.numel() * (6.0 if weights.requires_grad else 4.0)
                if id(module) in in_head:
                    label += cost
                elif weights.dim() > 1:
                    token += cost * _routed(config, path, weights)
        return cls(token, label, *_attention(config))

    def of_samples(self, samples: Iterable[Sample]) -> float:
        """The FLOPs of one pass over these samples, forward and backward."""
        total = 0.0
        for sample in samples:
            for one in (sample, sample.rejected):
                if one is None:
                    continue
                n = len(one.ids)
                total += self.token * n + self.label * one.labelled + self.pair * _pairs(n, n)
                total += sum(cost * _pairs(n, window) for window, cost in self.windows)
        return total


class Speedometer:
    """Tokens a second and MFU of a fit's steps, over all processes."""

    def __init__(self, flops: ModelFlops, peak: float | None, processes: int) -> None:
        """`peak`: FLOP/s of each process's device; None: unknown, then there is no MFU."""
        self._flops = flops
        self._peak = peak * processes if peak else None
        self._tokens = 0
        self._needed = self.seconds = 0.0

    def step(self, samples: Sequence[Sample], seconds: float) -> dict[str, float]:
        """Count a step that took `seconds`; returns its metrics."""
        tokens = sum(sample.size for sample in samples)
        needed = self._flops.of_samples(samples) if self._peak else 0.0
        self._tokens, self._needed, self.seconds = (
            self._tokens + tokens,
            self._needed + needed,
            self.seconds + seconds,
        )
        return self._metrics(tokens, needed, seconds)

    def overall(self) -> dict[str, float]:
        """The metrics of all steps together; checkpoints between them do not count."""
        return self._metrics(self._tokens, self._needed, self.seconds)

    def _metrics(self, tokens: int, needed: float, seconds: float) -> dict[str, float]:
        found = {"tokens_per_second": tokens / seconds if seconds else 0.0}
        if self._peak and seconds:
            found["mfu"] = needed / seconds / self._peak
        return found


def _pairs(n: int, window: int) -> float:
    """How many tokens the `n` tokens of a sample see, each at most `window`, itself among them."""
    seen = min(n, window)
    return seen * (seen + 1) / 2 + (n - seen) * seen


def _routed(config: Any, path: str, weights: torch.Tensor) -> float:
    """The share of an expert's weights that a token meets; 1 for other weights."""
    used = getattr(config, "num_experts_per_tok", None)
    if not used:
        return 1.0
    if weights.dim() == 3:
        return min(1.0, float(used / weights.shape[0]))
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    return used / experts if experts and ".experts." in path else 1.0


def _attention(config: Any) -> tuple[float, tuple[tuple[int, float], ...]]:
    """FLOPs for each pair of tokens: in all full layers together, and by window."""
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))
    window = getattr(config, "sliding_window", None)
    usual = "sliding_attention" if window else "full_attention"
    layers = getattr(config, "layer_types", None) or [usual] * int(getattr(config, "num_hidden_layers", 0) or 0)
    cost = 12.0 * heads * size
    full, sliding = layers.count("full_attention"), layers.count("sliding_attention")
    if not window:
        return cost * (full + sliding), ()
    return cost * full, (((int(window), cost * sliding),) if sliding else ())
