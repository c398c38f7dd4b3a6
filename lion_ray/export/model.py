"""The student as files: the trained checkpoint, and its adapters merged into one.

Invariants:
- Weights are copied, not converted, so the exported model is the measured one. Besides them only the files of the
  tokenizer and the configuration are exported.
- The folder is self-contained: its chat template builds the training's prompt, and it has the run's own stop tokens.
- The training record is included without machine paths.

Each iteration's adapters are relative to the previous iteration's student. Low-rank updates of the same layers add up,
so concatenating them (A by rows, B by columns; ranks add) gives one adapter for the run's base model.

This module does not know cards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lion_ray.core import layout
from lion_ray.core.errors import ConfigError, DataError, one_line
from lion_ray.export.source import Source, public_name
from lion_ray.models.checkpoints import last_round
from lion_ray.models.prompter import Prompter, frame_template

if TYPE_CHECKING:
    import torch

TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece")
"""Prefixes of a tokenizer's file names."""
CONFIGURATION = ("config.json", "generation_config.json", "model.safetensors.index.json")
WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PATHS = ("model_dir", "output_dir", "base_dir", "rows", "heldout")


def fetch_tokenizer(source: Source, folder: Path) -> Prompter:
    """Copy the student's tokenizer and configuration into `folder`; return its prompter.

    Raises:
        ConfigError, ModelError: as `Prompter.load`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in source.store.names(source.checkpoint):
        if name.startswith(TOKENIZER) or name in CONFIGURATION:
            source.store.copy_out(f"{source.checkpoint}/{name}", folder / name)
    return Prompter.load(folder, source.get("student.prompt"), source.base_dir)


def write_model(source: Source, folder: Path) -> None:
    """Copy the checkpoint into `folder`.

    Raises:
        DataError: it has no weights.
    """
    prompter = fetch_tokenizer(source, folder)
    weights = [name for name in source.store.names(source.checkpoint) if name.endswith(".safetensors")]
    if not weights:
        raise DataError(f"{source.store.path(source.checkpoint)}: no .safetensors files")
    for name in weights:
        source.store.copy_out(f"{source.checkpoint}/{name}", folder / name)
    template = frame_template(folder, source.get("student.prompt"), source.base_dir)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _add_stop_tokens(folder / "generation_config.json", prompter)
    _write_json(folder / layout.TRAINING, training_record(source))


def training_record(source: Source) -> dict[str, Any]:
    """The training record of the exported iteration, without machine paths."""
    record: dict[str, Any] = source.store.read_json(f"{source.checkpoint}/{layout.TRAINING}") or {}
    spec = {name: value for name, value in record.get("spec", {}).items() if name not in _PATHS}
    return record | ({"spec": spec} if spec else {})


def _add_stop_tokens(path: Path, prompter: Prompter) -> None:
    """Add the run's stop tokens to the generation configuration, the only place where other engines look for them."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = config.get("eos_token_id")
    stops = [] if known is None else known if isinstance(known, list) else [known]
    if missing := [token for token in prompter.stop_token_ids if token not in stops]:
        _write_json(path, config | {"eos_token_id": [*stops, *missing]})


def has_adapters(source: Source) -> bool:
    """Whether the run trained low-rank adapters."""
    return source.get("imitation.lora") is not None


def write_adapter(source: Source, folder: Path) -> int:
    """Merge the adapters of all iterations into one in `folder`, or only copy the last one's if each iteration started
    from the base model; return its rank.

    Raises:
        ConfigError: the run trained all weights, so it has no adapters.
        DataError: an iteration's adapters are missing or incompatible.
    """
    import torch
    from safetensors.torch import save_file

    if not has_adapters(source):
        raise ConfigError(f"{source.name}: trained without adapters (imitation.lora is null); leave them out of --what")
    configs: list[dict[str, Any]] = []
    weights: list[dict[str, torch.Tensor]] = []
    first = source.iteration if source.starts_from_base else 1
    for iteration in range(first, source.iteration + 1):
        config, tensors = _read_adapter(source, iteration)
        if weights and (_adapter_shape(config) != _adapter_shape(configs[0]) or tensors.keys() != weights[0].keys()):
            raise DataError(f"{source.name}: the adapters of iterations 1 and {iteration} are not compatible")
        configs.append(config)
        weights.append(tensors)
    merged = {
        # A is [rank, in], B is [out, rank]: the concatenated B A is the sum over iterations.
        name: torch.cat([one[name] for one in weights], dim=0 if ".lora_A." in name else 1).contiguous()
        for name in sorted(weights[0])
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(merged, folder / WEIGHTS, metadata={"format": "pt"})
    rank = sum(config["r"] for config in configs)
    # The scale alpha / rank must not change.
    scaled = {"r": rank, "lora_alpha": configs[0]["lora_alpha"] * rank / configs[0]["r"]}
    base = public_name(source.get("student.model"))
    _write_json(folder / ADAPTER_CONFIG, configs[0] | scaled | {"base_model_name_or_path": base})
    return rank


def _read_adapter(source: Source, iteration: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if last_round(source.store, iteration):
        raise DataError(
            f"{source.store.root}: iteration {iteration} has on-policy rounds, which the adapters do not hold; export "
            "the merged model instead"
        )
    folder = f"{layout.model(iteration)}/adapter"
    config = source.store.read_json(f"{folder}/{ADAPTER_CONFIG}")
    if config is None:
        raise DataError(f"{source.store.path(folder)}: iteration {iteration} has no adapters")
    try:
        tensors = load(source.store.read_bytes(f"{folder}/{WEIGHTS}"))
    except (SafetensorError, FileNotFoundError) as error:
        raise DataError(f"{source.store.path(folder)}/{WEIGHTS}: cannot be read ({one_line(error)})") from None
    if other := [name for name in tensors if ".lora_A." not in name and ".lora_B." not in name]:
        raise DataError(f"{source.store.path(folder)}/{WEIGHTS}: {other[0]} is not a low-rank adapter's")
    return config, tensors


def _adapter_shape(config: dict[str, Any]) -> list[Any]:
    return [config.get(name) for name in ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "fan_in_fan_out")]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
