"""A causal language model that trains on packed rows: loading, loss, adapters, sharding.

Invariants:
- Weights are float32, whatever the arithmetic: bfloat16 weights lose the small updates of a short fine-tuning.
- Samples in one row cannot see one another. The model makes the attention mask itself, from position ids that restart
  with every sample, so that sliding windows and other kinds of layers keep their own masks. `check_packing` verifies
  this.
- Logits exist at labelled positions only: the other positions would take most of a small model's time and memory.

This module does not know steps, optimizers or files other than the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lion_ray.config import LoraConfig
from lion_ray.core.errors import ModelError, first_line
from lion_ray.core.file_kinds import HEAD, why_unreadable
from lion_ray.imitation.training.attention import borders
from lion_ray.imitation.training.data import Batch, Sample, collate
from lion_ray.imitation.training.loss import Head, Reduction, TokenLoss, token_loss
from lion_ray.models.completeness import check_names

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes in a fit."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """From torch.distributed, or this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, value: Any) -> Any:
        """Broadcast the first process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def default_device() -> torch.device:
    """This process's current CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_model(model_dir: str | Path, device: torch.device) -> Any:
    """The model in a folder, in float32, from safetensors and without running code from the folder.

    Raises ModelError if the model cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    for file in sorted(Path(model_dir).glob("*.safetensors")):
        with file.open("rb") as opened:
            if (what := why_unreadable(opened.read(HEAD), binary=True)) is not None:
                raise ModelError(f"{file}: {what}")
    # Load straight to the GPU, so that each worker of a machine does not need a copy in main memory.
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
            f"{model_dir}: its weights are damaged or truncated ({first_line(error)}); download them again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"no model can be loaded from {model_dir}: {first_line(error)}") from error
    check_names(model_dir, model, loaded)
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise ModelError(f"{model_dir}: {name} contains NaN or infinite values; download the model again")
    model.requires_grad_(True)
    return model


def check_length(model: Any, samples: Iterable[Sample], max_length: int) -> None:
    """Raise ModelError if a sample has more tokens than the model has positions."""
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(one.ids) for sample in samples for one in (sample, sample.rejected) if one), default=0)
    if isinstance(known, int) and longest > known > 0:
        raise ModelError(
            f"imitation.max_length is {max_length}, and the model has {known} positions: an answer with its prompt "
            f"takes {longest}; set max_length to {known} or less"
        )


class LabelledLogits:
    """The model's logits at a batch's labelled positions.

    The model's own head is called on the hidden states at labelled positions only, so the architecture's own changes to
    logits (scaling, capping) still apply. `head_rows` counts the rows passed to the head. Logits are float32, also
    under autocast. `rows`: how many tokens' logits may exist at once in `cross_entropy`; 0: all. `loss`: of
    those.
    """

    def __init__(self, model: nn.Module, rows: int = 0, loss: TokenLoss = token_loss) -> None:
        self.model = model
        self._loss = loss
        self.head_rows = 0
        self.rows = rows
        self._head: Head | None = None
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
            # Without an attention mask, the model derives it from the position ids.
            given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **borders(batch, self.model)}
            logits = self.model(**given, use_cache=False).logits
        finally:
            self._positions = None
        return logits.float()

    def losses(self, batch: Batch) -> torch.Tensor:
        """[N]: the cross-entropy of each labelled token in nats."""
        return self.cross_entropy(batch, "none")

    def cross_entropy(self, batch: Batch, reduction: Reduction) -> torch.Tensor:
        """[N], or their sum: the cross-entropy of the labelled tokens in nats."""
        if self.rows and self._head is None:
            self._check(batch)
        if self._head is None or len(batch.targets) <= self.rows:
            return F.cross_entropy(self(batch), batch.targets, reduction=reduction)
        with self._head.losing(batch.targets, self.rows, reduction):
            found = self(batch).flatten()
        return found if reduction == "none" else found.sum()

    @torch.no_grad()
    def _check(self, batch: Batch) -> None:
        """Go without chunks if this model changes its logits after the head. Processes without rows check too."""
        positions, targets = batch.positions[:64], batch.targets[:64]
        if not len(targets):
            positions = targets = batch.input_ids.new_zeros(1)
        few = replace(batch, positions=positions, targets=targets)
        whole = F.cross_entropy(self(few), targets, reduction="none")
        self._head = Head(self.model, self._loss)
        with self._head.losing(targets, max(1, len(targets) // 2), "none"):
            found = self(few).flatten()
        if found.shape != whole.shape or not torch.allclose(found, whole, rtol=1e-3, atol=1e-3):
            self.rows, self._head = 0, None


LEAK = 5e-4
"""The largest accepted change of a token's loss (nats) when tokens change that it must not see. In dense models the
change is exactly 0, because the kernels are the same. Grouping by experts changes the rounding (2e-5 measured on an
H100). The leaks of OPT and Falcon were 0.1 and more."""


@torch.no_grad()
def check_packing(model: nn.Module, samples: Sequence[Sample], device: torch.device) -> None:
    """Raise ModelError if a token's loss depends on tokens that it must not see.

    These are tokens of another sample in its row (recurrent models, or masks made from a padding mask), and later
    tokens of its own sample (encoders such as BERT). The loss must not depend on the place in the row either.
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
        # Same shapes with other tokens: this detects even a leak too small to change the sums.
        swapped = each(_other_words(first, vocabulary), second)[first.labelled :]
        later = each(first, _other_words(second, vocabulary))[: first.labelled]
        if _apart(swapped, others) > LEAK or _apart(later, mine) > LEAK:
            raise ModelError(f"{name} cannot be fine-tuned here: packed samples would see one another")
        # The last token is only a target, never context: as input it must not change any loss.
        batch = collate([[first, second]]).to(device)
        ids = batch.input_ids.clone()
        ids[0, -1] = (ids[0, -1] + 1) % vocabulary
        if _apart(logits.losses(replace(batch, input_ids=ids)), packed) > LEAK:
            raise ModelError(
                f"{name} is not a causal language model: its prediction of a token depends on later tokens"
            )
    except (TypeError, IndexError) as error:
        raise ModelError(f"{name} cannot take packed rows: {first_line(error)}") from error


def _other_words(sample: Sample, vocabulary: int) -> Sample:
    return sample._replace(ids=[(7 * token + 3) % vocabulary for token in sample.ids])


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0


def add_adapters(model: nn.Module, lora: LoraConfig) -> Any:
    """Freeze the weights and add low-rank adapters in float32. Raises ModelError if no layer matches."""
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


def shard(model: nn.Module, mesh: DeviceMesh, *, half: bool = False) -> None:
    """Shard weights, gradients and optimizer state over the mesh: each decoder layer by itself, then the rest.

    `half`: layers are gathered and computed in bfloat16; gradients are always reduced in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32)
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
