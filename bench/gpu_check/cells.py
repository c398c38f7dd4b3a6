"""How fast models of real sizes train on rows of 8,192 tokens: random weights, the fit's own step, one GPU."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.models import build, samples_of
from bench.gpu_check.numbers import Machine, between, failed, number, say
from lion_ray.config import LoraConfig
from lion_ray.config.plugins import PreferenceConfig
from lion_ray.imitation.objectives import load_objective
from lion_ray.imitation.training import attention
from lion_ray.imitation.training.data import pack
from lion_ray.imitation.training.fit import _step
from lion_ray.imitation.training.flops import ModelFlops, Speedometer, device_peak
from lion_ray.imitation.training.held import prepared
from lion_ray.imitation.training.model import LabelledLogits, World
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import choose_attention, compiled_loss, loss_rows, tensor_cores

PUBLISHED = {"published": 26_010.0, "published_mfu": 0.168, "by": "prime-rl, Qwen3-0.6B, 8,192 tokens, one H100"}
SPEC = TrainSpec(model_dir="", output_dir="", precision="bf16", micro_batch_rows=1, max_length=8192, compile=False)
WARM, TIMED = 2, 3


def qwen3(machine: Machine) -> None:
    """Full fine-tuning of Qwen3-0.6B's shape: by kernel, compiled, with recomputation, and by objective."""
    for kernel in [*_kernels("qwen3-0.6b", machine), attention.DENSE]:
        _cell(f"attention {kernel}", "qwen3-0.6b", replace(SPEC, attention=kernel), machine)  # type: ignore[arg-type]
    _cell("compiled", "qwen3-0.6b", replace(SPEC, compile=not machine.tiny), machine, published=PUBLISHED)
    _cell("recomputed", "qwen3-0.6b", replace(SPEC, activation_checkpointing=True), machine)
    preference = replace(SPEC, objective=PreferenceConfig(type="preference"))
    _cell("preference", "qwen3-0.6b", preference, machine, pairs=True)


def llama_1b(machine: Machine) -> None:
    """Full fine-tuning of Llama-3.2-1B's shape."""
    _cell("compiled", "llama-1b", replace(SPEC, compile=not machine.tiny), machine)


def llama_7b_lora(machine: Machine) -> None:
    """Adapters for Llama-7B's shape, with recomputed activations."""
    spec = replace(SPEC, lora=LoraConfig(rank=16), activation_checkpointing=True)
    _cell("compiled", "llama-7b", replace(spec, compile=not machine.tiny), machine, rows=2)


def _kernels(name: str, machine: Machine) -> list[str]:
    if machine.device.type == "cpu":
        return ["varlen"]
    with torch.device("meta"):
        model = build(name, replace(machine, device=torch.device("meta")), layers=1)
    return attention.available(model, machine.device)


def _cell(
    name: str,
    shape: str,
    spec: TrainSpec,
    machine: Machine,
    *,
    rows: int = 4,
    pairs: bool = False,
    published: dict[str, Any] | None = None,
) -> None:
    """Take some steps of `rows` full rows and report tokens/s, MFU and memory of those after the first ones."""
    try:
        machine.fresh()
        say(f"{shape}: {name}")
        device, world = machine.device, World()
        model = build(shape, machine)
        length = 64 if machine.tiny else spec.max_length
        samples = samples_of(model, [length] * (1 if machine.tiny else rows), pairs=pairs)
        kernel = choose_attention(model, samples[:1], spec, device, world)
        vocabulary = model.config.vocab_size
        model = prepared(model, spec, device).train()
        flops = ModelFlops.of(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        rows_at_once = loss_rows(model, spec.logits_at_once, device)
        logits = LabelledLogits(model, rows_at_once, compiled_loss(spec.compile, device))
        objective = load_objective(spec.objective, Path())
        speed = Speedometer(flops, device_peak(device, spec.precision), 1)
        packed = pack(samples, length)
        losses = []
        with tensor_cores(device):
            for step in range(WARM + TIMED):
                machine.wait()
                began = time.monotonic()
                losses.append(_step(spec, [packed], logits, objective, optimizer, world, device)[0])
                machine.wait()
                if step >= WARM:
                    speed.step(samples, time.monotonic() - began)
        found = speed.overall()
        about = {"attention": kernel, "mfu": found.get("mfu"), "gib": machine.peak_gib()}
        number(f"{name}: tokens/s", found["tokens_per_second"], **about, **(published or {}))
        # With random weights, about as likely as any of the vocabulary; a pair costs -log(1/2) and that for each token.
        usual = math.log(vocabulary) + (math.log(2) if pairs else 0.0)
        between(f"{name}: first loss, of what random weights give", losses[0] / usual, 0.85, 1.2)
    except Exception as error:  # noqa: BLE001 - one cell fails, the others are still measured
        failed(f"{shape}: {name}", error)
