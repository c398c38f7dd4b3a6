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

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lion_ray.config import LoraConfig
from lion_ray.core.errors import ModelError, first_line
from lion_ray.core.file_kinds import HEAD, told
from lion_ray.imitation.training.data import Batch, Sample, collate
from lion_ray.imitation.training.spec import TrainSpec

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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    for file in sorted(Path(model_dir).glob("*.safetensors")):
        with file.open("rb") as opened:
            if (what := told(opened.read(HEAD), binary=True)) is not None:
                raise ModelError(f"{file}: {what}")
    # Straight to the GPU, so that the workers of one machine need no copy each in its memory.
    placement = {"device_map": {"": device}} if device.type == "cuda" else {}
    try:
        both: Any = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
        model, loaded = both
    except SafetensorError as error:
        raise ModelError(
            f"{model_dir}: its weights are damaged or cut off ({first_line(error)}); fetch them again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"no model can be loaded from {model_dir}: {first_line(error)}") from error
    _check_weights(model_dir, model, loaded)
    model.requires_grad_(True)
    return model


def _check_weights(model_dir: str | Path, model: Any, loaded: dict[str, Any]) -> None:
    """Raise ModelError where weights are not those of this model: what is not in the files would be random."""
    for found, what in (
        ("missing_keys", "its files lack {}, which would be random; fetch the model again"),
        ("mismatched_keys", "its weights are another model's: {} has another shape than config.json says"),
    ):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in loaded.get(found) or ())
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{model_dir}: {what.format(names[0] + more)}")
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0)
    for name in sorted(loaded.get("unexpected_keys") or ()):
        # Other extras (a vision tower, rotary tables of old versions) change nothing; a layer more is another model.
        if (layer := re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.([0-9]+)\.", name)) and layers <= int(
            layer[1]
        ) < 10 * layers:
            raise ModelError(
                f"{model_dir}: its weights are another model's: {name}, and config.json says {layers} layers"
            )
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise ModelError(
                f"{model_dir}: {name} holds numbers that are none (NaN or infinite); fetch the model again"
            )


def check_length(model: Any, samples: Iterable[Sample], max_length: int) -> None:
    """Raise ModelError where a sample is longer than the model has positions."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(one.ids) for sample in samples for one in (sample, sample.rejected) if one), default=0)
    if isinstance(known, int) and longest > known > 0:
        raise ModelError(
            f"imitation.max_length is {max_length}, and the model has {known} positions: an answer with its prompt "
            f"takes {longest}; set max_length to {known} or less"
        )


class LabelledLogits:
    """The model's logits at a batch's labelled positions.

    The model's own head is called, on the hidden states at labelled positions alone, so that whatever an architecture
    does to its logits (scaling, capping) stays as it is. `head_rows` counts what went into the head. Logits are
    float32, whatever autocast does before.
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
        """[N, vocabulary], in the batch's order. `batch` must be on the model's device."""
        self._positions = batch.positions
        try:
            # No attention mask: then the model makes it from the position ids.
            logits = self.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        finally:
            self._positions = None
        return logits.float()

    def losses(self, batch: Batch) -> torch.Tensor:
        """[N]: the cross-entropy of each labelled token in nats."""
        return F.cross_entropy(self(batch), batch.targets, reduction="none")


LEAK = 5e-4
"""Nats by which a token's loss may move when words change that it must not see. Dense models move by exactly 0, as the
kernels are the same; grouping by experts rounds anew (2e-5 measured on an H100); OPT's and Falcon's leaks were 0.1 and
more."""


@torch.no_grad()
def check_packing(model: nn.Module, samples: list[Sample], device: torch.device) -> None:
    """Raise ModelError where a token's loss depends on what it must not see.

    That is the words of another sample in its row (recurrent models, or masks that are made from a padding mask), that
    anything is packed before it at all, or later words of its own sample (encoders such as BERT).
    """
    single = [sample._replace(rejected=None) for sample in samples]
    first, second = (sorted(single, key=lambda s: len(s.ids)) * 2)[:2]
    logits = LabelledLogits(model.eval())
    whole: Any = model
    vocabulary = int(whole.get_input_embeddings().num_embeddings)
    name = type(model).__name__

    def each(*row: Sample) -> torch.Tensor:
        return logits.losses(collate([list(row)]).to(device))

    try:
        apart = each(first).sum() + each(second).sum()
        packed = each(first, second)
        if not torch.allclose(packed.sum(), apart, rtol=2e-5, atol=1e-3):
            raise ModelError(f"{name} cannot be fine-tuned here: packed samples would see one another")
        mine, others = packed[: first.labelled], packed[first.labelled :]
        # The same shapes with other words: even a leak too small for the sums shows.
        swapped = each(_other_words(first, vocabulary), second)[first.labelled :]
        later = each(first, _other_words(second, vocabulary))[: first.labelled]
        if _apart(swapped, others) > LEAK or _apart(later, mine) > LEAK:
            raise ModelError(f"{name} cannot be fine-tuned here: packed samples would see one another")
        # The last word is nobody's input, only a target: another in its place changes no loss.
        batch = collate([[first, second]]).to(device)
        ids = batch.input_ids.clone()
        ids[0, -1] = (ids[0, -1] + 1) % vocabulary
        if _apart(logits.losses(replace(batch, input_ids=ids)), packed) > LEAK:
            raise ModelError(
                f"{name} is no causal language model: what it says of a word depends on the words after it"
            )
    except (TypeError, IndexError) as error:
        raise ModelError(f"{name} cannot take packed rows: {first_line(error)}") from error


def _other_words(sample: Sample, vocabulary: int) -> Sample:
    return Sample([(7 * token + 3) % vocabulary for token in sample.ids], sample.prompt)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0


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
        raise ModelError(f"lora.target_modules: {first_line(error)}") from error


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
