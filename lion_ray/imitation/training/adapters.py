"""Adapters (LoRA) over a frozen model: their frozen weights' type, and merging them row by row.

Invariants:
- Frozen linear weights are bfloat16 where the arithmetic is: it would round them for every product anyway, so no result
  changes, and they take half the memory. Everything else stays float32.
- In 4 bits (`lora.base: nf4`) they are loaded anew from the files, by bitsandbytes.
- Adapters are merged into the weights as the files hold them, in float32, not into rounded ones.

This module does not know steps, optimizers or where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lion_ray.config import LoraConfig
from lion_ray.core.errors import ConfigError, ModelError
from lion_ray.imitation.training.sharded import plain

if TYPE_CHECKING:
    from lion_ray.imitation.training.sharded import Rows


@dataclass(frozen=True)
class Adapter:
    """A change of a weight [out, in]: scaling × up @ down; transposed where the weight is [in, out]."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    transposed: bool

    def rows(self, begin: int, end: int | None) -> torch.Tensor:
        """Rows of the change, as the weight's own are counted."""
        if self.transposed:
            return self.scaling * (self.down.T[begin:end] @ self.up.T)
        return self.scaling * (self.up[begin:end] @ self.down)


def initialise(model: nn.Module, seed: int) -> None:
    """Give new adapters their first weights, the same whether or not the model has its own already."""
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name, part in module.named_children():
            if name != "base_layer" and any(p.is_meta for p in part.parameters()):
                part.to_empty(device="cpu")
        module.reset_lora_parameters("default", True)


def round_frozen(model: nn.Module) -> None:
    """Keep the frozen linear weights in bfloat16."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        # A head that is tied to the embedding stays with it: embeddings are not rounded by the arithmetic.
        if weight is not None and not weight.requires_grad and id(weight) not in embedded:
            module._parameters["weight"] = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)


def check_base(lora: LoraConfig | None) -> None:
    """Raise ConfigError if the frozen weights' type needs a package that is not installed."""
    if lora is not None and lora.base == "nf4" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "imitation.lora.base: nf4 needs the package bitsandbytes, which is not installed; pip install "
            "bitsandbytes, or set it to auto"
        )


def load_in_4_bits(model_dir: str, device: torch.device, *, half: bool) -> Any:
    """The model in a folder with its linear weights in 4 bits; `half`: products are in bfloat16."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if half else torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.float32,
        quantization_config=quantized,
        device_map={"": device},
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
    )


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights (the adapters' own), whole, on the CPU of every process. Collective."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def adapters_of(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, Adapter]:
    """The adapters of a model, by the plain name of the weight that each changes; `weights` from `gathered`.

    Raises ModelError if one is not that of a linear layer.
    """
    from peft.tuners.lora import Linear

    found, left = {}, set(weights)
    for name, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        ends: Any = [f"{name}.lora_{end}.default.weight" for end in "AB"]
        left -= set(ends)
        down, up = (weights[end] for end in ends)
        found[plain(f"{name}.weight")] = Adapter(down, up, module.scaling["default"], module.fan_in_fan_out)
    if left:
        raise ModelError(
            f"lora.target_modules: {plain(min(left))} is not of a linear layer, and only their adapters can be merged "
            "into a sharded model; name linear layers, or set imitation.sharding to none"
        )
    return found


def merged(rows: Rows, adapters: Mapping[str, Adapter]) -> Rows:
    """`rows` with the adapters' changes."""

    def both(name: str, begin: int, end: int | None) -> torch.Tensor:
        found = rows(name, begin, end)
        return found if name not in adapters else found + adapters[name].rows(begin, end)

    return both
