"""The result of a fit: a model folder, and metrics measured on it.

Invariants:
- The folder is written completely or not at all: in a temporary folder, flushed to disk, then renamed.
- Its weights are float32, so the next iteration starts from exactly what was learned. The loss of what the engines
  serve is measured too, with the same weights rounded to the serving type.
- Metrics are measured on what was written (see `held`), not on the weights that were trained.
- Measurements use float32 arithmetic: bfloat16 arithmetic would itself round, and hide the effect of rounded weights.

This module does not know steps, or how processes hold the model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from lion_ray.core import layout
from lion_ray.core.durable import make_folder, sync_path
from lion_ray.imitation.training.balance import micro_batches, share_out
from lion_ray.imitation.training.data import Sample
from lion_ray.imitation.training.model import DTYPES, LabelledLogits, World, add_adapters, default_device, load_model
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import loss_rows
from lion_ray.models.prompter import Prompter


def finished(output_dir: str | Path) -> dict[str, Any] | None:
    """The metrics in a finished fit's folder. Returns None if the fit is not finished."""
    path = Path(output_dir) / layout.TRAINING
    return json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.exists() else None


def write(
    spec: TrainSpec,
    save: Callable[[Path], Any],
    metrics: dict[str, Any],
    heldout: list[Sample],
    prompter: Prompter,
    device: torch.device,
    started: float,
    world: World,
) -> dict[str, Any]:
    """Write ``spec.output_dir`` and measure it; every process of `world` must call it, and the first one writes.

    `save` writes the trained model into a folder and returns it to be measured. `started` is the fit's
    start on time.monotonic()'s clock. Returns `metrics` with the measurements.
    """
    target, first = Path(spec.output_dir), world.rank == 0
    partial = Path(f"{spec.output_dir}.partial")
    if first:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed attempt
        make_folder(partial.parent)
        partial.mkdir()
        prompter.tokenizer.save_pretrained(partial)
    model = save(partial)
    after = served = evaluate_loss(model, heldout, spec, device, world)
    if spec.serve_dtype != "float32":  # float32 weights need no rounding
        round_weights(model, spec.serve_dtype)
        served = evaluate_loss(model, heldout, spec, device, world)
    metrics = metrics | {
        "heldout_loss_after": after,
        "heldout_loss_served": served,
        "serve_dtype": spec.serve_dtype,
    }
    canary = _canary(model, prompter, spec.canary_prompts, spec.canary_tokens, spec.serve_dtype, device, world)
    del model
    metrics["seconds"] = time.monotonic() - started
    if not first:
        return metrics
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    _write_json(partial / layout.CANARY, canary)
    _write_json(partial / layout.TRAINING, {"metrics": metrics, "spec": spec.to_json(), "versions": versions})
    _flush(partial)
    partial.rename(target)
    sync_path(target.parent)
    return metrics


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    samples: Sequence[Sample],
    spec: TrainSpec,
    device: torch.device,
    world: World = World(),  # noqa: B008  immutable
) -> float | None:
    """Mean loss over the labelled tokens of `samples`, in nats, in float32 arithmetic; None without samples.

    The processes of `world` share the work.
    """
    labelled = sum(sample.labelled for sample in samples)
    if not labelled:
        return None
    logits = LabelledLogits(model.eval(), loss_rows(model, spec.logits_at_once, device))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in micro_batches(share_out(samples, spec.max_length, world.size), spec.micro_batch_rows, world):
        total += logits.losses(batch.to(device)).sum()
    return world.sum(total).item() / labelled


@torch.no_grad()
def round_weights(model: nn.Module, dtype: str) -> None:
    """Round float32 weights, in place, to the values that `dtype` (float32, float16 or bfloat16) can hold."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(DTYPES[dtype]))


def canary_for(
    model_dir: str | Path,
    prompts: Sequence[str],
    tokens: int,
    *,
    serve_dtype: str,
    prompt: str = "chat",
    base_dir: str | Path = ".",
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The content of canary.json for a model that was not trained here, such as the base model.

    ``{"dtype": …, "prompts": [{"prompt", "prompt_ids", "tokens", "logprobs", "margins"}, …]}``: for each instruction
    the greedy token ids (at most `tokens`, none after a stop token), each with its log-probability (nats) and its lead
    over the runner-up (logits). Weights are rounded to `serve_dtype`; arithmetic is float32.
    """
    device = device or default_device()
    model = load_model(model_dir, device)
    round_weights(model, serve_dtype)
    return _canary(model, Prompter.load(model_dir, prompt, base_dir), prompts, tokens, serve_dtype, device)


@torch.no_grad()
def _canary(
    model: Any,
    prompter: Prompter,
    prompts: Sequence[str],
    tokens: int,
    dtype: str,
    device: torch.device,
    world: World = World(),  # noqa: B008  immutable
) -> dict[str, Any]:
    model.eval()
    # An engine also stops at the model's own end tokens.
    also = model.generation_config.eos_token_id
    stops = {*prompter.stop_token_ids, *(also if isinstance(also, list) else [also])}
    entries = []
    for prompt in prompts:
        ids = prompter.prompt_ids(prompt)
        entry: dict[str, Any] = {"prompt": prompt, "prompt_ids": ids, "tokens": [], "logprobs": [], "margins": []}
        cache, step = None, ids
        while len(entry["tokens"]) < tokens and not stops.intersection(entry["tokens"][-1:]):
            outputs = model(input_ids=torch.tensor([step], device=device), past_key_values=cache, use_cache=True)
            cache, logits = outputs.past_key_values, outputs.logits[0, -1].float()
            best = logits.topk(2)
            token = world.from_first(int(best.indices[0]))  # so that all processes take as many steps
            entry["tokens"].append(token)
            entry["logprobs"].append(float(logits.log_softmax(-1)[token]))
            entry["margins"].append(float(best.values[0] - best.values[1]))
            step = [token]
        entries.append(entry)
    return {"dtype": dtype, "prompts": entries}


def write_model(spec: TrainSpec, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the model with the trained weights (with LoRA: the adapters'), which are whole."""
    model = load_model(spec.model_dir, torch.device("cpu"))
    if spec.lora is None:
        model.load_state_dict(weights)
    else:
        adapted = add_adapters(model, spec.lora)
        adapted.load_state_dict(weights, strict=False)  # the frozen weights are already loaded
        # With False, peft does not ask a model hub whether the vocabulary has grown.
        adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
        model = adapted.merge_and_unload()
    if copy_generation_config(spec, folder):
        model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(folder)
    copy_generation_config(spec, folder)


def copy_generation_config(spec: TrainSpec, folder: Path) -> bool:
    """Copy the model's, if it has one; returns whether it has.

    Byte for byte: transformers refuses to write some published ones (a temperature without sampling).
    """
    own = Path(spec.model_dir) / "generation_config.json"
    if own.exists():
        shutil.copyfile(own, folder / own.name)
    return own.exists()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync_path(path)
    sync_path(folder)
