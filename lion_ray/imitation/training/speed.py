"""What makes a fit fast on a GPU, chosen once per fit; on a CPU all of it is off.

Invariant: nothing here changes what is computed, but for rounding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from lion_ray.core.terminal import tell
from lion_ray.imitation.training import attention
from lion_ray.imitation.training.data import Sample, collate, pack
from lion_ray.imitation.training.loss import TokenLoss, rows_at_once, token_loss
from lion_ray.imitation.training.model import LabelledLogits, World
from lion_ray.imitation.training.spec import TrainSpec

_ALLOCATOR = "expandable_segments:True"
_ALLOCATOR_KEYS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_TRIED = 16
"""Samples at most on which kernels are tried."""


def set_allocator() -> None:
    """Let CUDA's memory grow in place: packed rows differ in length from step to step, and would leave gaps.

    The user's own settings stay. Called before a worker's first tensor.
    """
    if not any(key in os.environ for key in _ALLOCATOR_KEYS):
        os.environ[_ALLOCATOR_KEYS[1]] = _ALLOCATOR  # for a torch that has not read it yet, and for child processes
        with suppress(AttributeError, RuntimeError, ValueError):
            torch._C._accelerator_setAllocatorSettings(_ALLOCATOR)


def choose_attention(
    model: nn.Module, samples: Sequence[Sample], spec: TrainSpec, device: torch.device, world: World
) -> str:
    """Switch the model to the fastest attention kernel that is right (`attention.choose`); returns its name."""
    batch = collate(pack(samples[:_TRIED], spec.max_length)[:1]).to(device)
    logits = LabelledLogits(model.eval(), loss_rows(model, spec.logits_at_once, device))

    def exact() -> torch.Tensor:
        return logits.losses(batch)

    def losses() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            return logits.losses(batch)

    def agreed(good: bool) -> bool:
        return world.sum(torch.tensor([0.0 if good else 1.0], device=device)).item() == 0.0

    def say(text: str) -> None:
        if world.rank == 0:
            tell(f"lion-ray training: {text}", file=sys.stderr)

    return attention.choose(model, spec.attention, losses, exact, device, agreed, say)


def loss_rows(model: Any, wanted: int | None, device: torch.device) -> int:
    """How many tokens' logits may exist at once (`LabelledLogits`)."""
    return rows_at_once(wanted, int(model.config.get_text_config().vocab_size), device)


def compile_layers(model: Any, wanted: bool | None, device: torch.device, backend: str = "inductor") -> int:
    """Compile each decoder layer's forward pass; returns how many. `wanted`: None is on a GPU."""
    if not _compiles(wanted, device):
        return 0
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    for layer in layers:
        # Not the module's call: recomputation and sharding hook in there.
        layer.forward = torch.compile(layer.forward, backend=backend)
    return len(layers)


def compiled_loss(wanted: bool | None, device: torch.device) -> TokenLoss:
    """The loss of some tokens' logits, compiled where layers are."""
    return torch.compile(token_loss) if _compiles(wanted, device) else token_loss


def _compiles(wanted: bool | None, device: torch.device) -> bool:
    if not (device.type == "cuda" if wanted is None else wanted):
        return False
    # What cannot be compiled runs as it is.
    torch._dynamo.config.suppress_errors = True
    return True


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Products of float32 in TF32 on GPUs: for training in fp32, never for what is measured on rounded weights."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
