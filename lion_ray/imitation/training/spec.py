"""The settings of one fit, as plain data.

Invariants:
- Frozen; pickles; `load(save(spec))` is the same spec.
- `fingerprint` covers exactly what determines the resulting weights: a checkpoint can be resumed with another number of
  workers, but never with another spec.

This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from lion_ray.config import AttentionKernel, ImitationConfig, LoraConfig, NumberType, Precision
from lion_ray.config.imitation import LossOn
from lion_ray.config.plugins import CrossEntropyConfig, FitObjective
from lion_ray.core.errors import ConfigError, first_line

_CROSS_ENTROPY = CrossEntropyConfig()
_NOT_DECISIVE = frozenset(
    {
        "output_dir",
        "rows",
        "heldout",
        "base_dir",
        "serve_dtype",
        "canary_prompts",
        "canary_tokens",
        "sharding",
        "replicas",
    }
    | {"micro_batch_rows", "activation_checkpointing", "collective_timeout_s"}
    | {"checkpoint_every", "checkpoint_every_steps", "attention", "logits_at_once", "compile"}
)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One fit: `model_dir` fine-tuned on rows, the result in `output_dir`. Hyperparameters as in ImitationConfig."""

    model_dir: str
    """A Hugging Face folder with safetensors and a fast tokenizer."""
    output_dir: str
    """The folder to create; its parent must be on a file system with atomic rename."""
    rows: str = ""
    """A .jsonl file of {"instruction", "answer", "finish_reason"}, for callers that pass no rows."""
    heldout: str = ""
    """The same for held-out rows; empty for none."""
    prompt: str = "chat"
    """As in StudentConfig: chat, instruction, or a .txt file relative to `base_dir`."""
    base_dir: str = "."
    seed: int = 0
    serve_dtype: NumberType = "float32"
    """The type in which the weights will be served. The second held-out loss and the canary use it."""
    canary_prompts: tuple[str, ...] = ()
    """Instructions whose greedy answers go into canary.json."""
    canary_tokens: int = 16

    epochs: int = 3
    learning_rate: float = 2e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    batch_size: int = 128
    max_length: int = 1024
    max_grad_norm: float = 1.0
    precision: Precision = "auto"
    truncated: Literal["drop", "keep"] = "drop"
    loss_on: LossOn = "answer"
    objective: FitObjective = _CROSS_ENTROPY
    lora: LoraConfig | None = None
    sharding: Literal["full", "none"] = "full"
    replicas: int = 1
    micro_batch_rows: int = 4
    activation_checkpointing: bool = False
    checkpoint_every: str = "10min"
    checkpoint_every_steps: int | None = None
    attention: AttentionKernel = "auto"
    logits_at_once: int | None = None
    compile: bool | None = None
    collective_timeout_s: float = 900.0

    @classmethod
    def of(cls, config: ImitationConfig, **rest: Any) -> TrainSpec:
        """The hyperparameters of `config` and the other fields from `rest`."""
        names = {field.name for field in dataclasses.fields(cls)} & set(ImitationConfig.model_fields)
        return cls(**{name: getattr(config, name) for name in names}, **rest)

    @classmethod
    def load(cls, path: str | Path) -> TrainSpec:
        """Read what `save` wrote. Raises ConfigError if the file is missing, not JSON, or holds other fields."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not a training spec: {first_line(error)}") from error

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> TrainSpec:
        """The inverse of `to_json`. Raises ValueError or TypeError if there are other fields."""
        fields = dict(given)
        if "objective" in fields:
            fields["objective"] = TypeAdapter(FitObjective).validate_python(fields["objective"])
        if fields.get("lora") is not None:
            fields["lora"] = LoraConfig(**fields["lora"])
        fields["canary_prompts"] = tuple(fields.get("canary_prompts", ()))
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["lora"] = self.lora.model_dump(mode="json") if self.lora else None
        fields["objective"] = self.objective.model_dump(mode="json")
        fields["canary_prompts"] = list(self.canary_prompts)
        return fields

    def fingerprint(self, *extra: str) -> str:
        """A hex digest that identifies this fit. `extra`: other inputs that decide it, such as the samples."""
        fields = {name: value for name, value in self.to_json().items() if name not in _NOT_DECISIVE}
        if self.objective == _CROSS_ENTROPY:
            del fields["objective"]  # so that fits from older versions can resume
        if self.loss_on == "answer":
            del fields["loss_on"]
        # Runs move between machines; the folder's name holds the checkpoint's version.
        fields["model_dir"] = Path(self.model_dir).name
        joined = json.dumps([fields, *extra], sort_keys=True)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]
