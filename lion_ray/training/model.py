"""A causal language model that learns from packed rows: loading, loss, adapters, sharding.

Invariants:
- Weights are float32, whatever the arithmetic: bfloat16 weights swallow the updates of a short fine-tune.
- Samples in one row cannot see one another. The model makes the attention mask itself, from position ids that restart
  with every sample, so that sliding windows and other kinds of layers keep their own masks; `check_packing` proves
  that it did.
- Logits exist at labelled positions only: most of a small model's time and memory would go into the others.

This module knows nothing of steps, optimizers or files other than the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lion_ray.config import LoraConfig
from lion_ray.errors import ModelError
from lion_ray.training.data import Batch, Sample, collate
from lion_ray.training.spec import TrainSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class World:
    """The processes that share a fit, and which one this is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """As torch.distributed has it, or this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def default_device() -> torch.device:
    """The CUDA device that is current in this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_model(model_dir: str | Path, device: torch.device) -> Any:
    """The model in a folder, in float32, from safetensors and without running code from the folder.

    Raises ModelError where it cannot be loaded, or its architecture cannot take packed rows.
    """
    from transformers import AutoModelForCausalLM

    # Straight to the GPU, so that the workers of one machine need no copy each in its memory.
    placement = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            **placement,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ModelError(f"no model can be loaded from {model_dir}: {reason}") from error
    model.requires_grad_(True)
    return model


class PackedLoss:
    """Sums the losses of a batch's labelled tokens.

    The model's own head is called, on the hidden states at labelled positions alone, so that whatever an architecture
    does to its logits (scaling, capping) stays as it is. `head_rows` counts what went into the head. Logits are
    float32 in the loss, whatever autocast does before.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.head_rows = 0
        self._positions: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)  # type: ignore[operator]

    def _select(self, _head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._positions is None:
            return args
        hidden = args[0].flatten(0, -2)[self._positions]
        self.head_rows += len(hidden)
        return (hidden, *args[1:])

    def __call__(self, batch: Batch) -> torch.Tensor:
        """A scalar: the sum in nats. `batch` must be on the model's device."""
        self._positions = batch.positions
        try:
            # No attention mask: then the model makes it from the position ids.
            logits = self.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        finally:
            self._positions = None
        return F.cross_entropy(logits.float(), batch.targets, reduction="sum")


@torch.no_grad()
def check_packing(model: nn.Module, samples: list[Sample], device: torch.device) -> None:
    """Raise ModelError where a sample's loss depends on what is packed with it (recurrent models, for example)."""
    first, second = (sorted(samples, key=lambda s: len(s.ids)) * 2)[:2]
    losses = PackedLoss(model.eval())
    try:
        apart = [losses(collate([[s]]).to(device)) for s in (first, second)]
        packed = losses(collate([[first, second]]).to(device))
    except TypeError as error:
        raise ModelError(f"{type(model).__name__} cannot take packed rows: {error}") from error
    if not torch.allclose(packed, apart[0] + apart[1], rtol=1e-3):
        raise ModelError(f"{type(model).__name__} cannot be fine-tuned here: packed samples would see one another")


def add_adapters(model: nn.Module, lora: LoraConfig) -> Any:
    """Freeze the weights and add low-rank adapters, float32 too; ModelError where no layer fits."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.target_modules: {str(error).splitlines()[0]}") from error


def shard(model: nn.Module, spec: TrainSpec, world: World, device: torch.device) -> None:
    """Split weights, gradients and optimizer over all processes: every decoder layer by itself, then the rest.

    On GPUs with bf16, layers are gathered and computed in bfloat16; gradients are always reduced in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = spec.precision == "bf16" and device.type == "cuda"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (world.size,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
