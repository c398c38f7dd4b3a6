"""Kernels, losses and sharding by themselves, on models of few layers with a real model's head and attention."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.models import build, samples_of
from bench.gpu_check.numbers import Machine, at_most, distance, failed, number, relative, say
from lion_ray.config import LoraConfig
from lion_ray.config.plugins import CrossEntropyConfig, PreferenceConfig
from lion_ray.imitation.objectives import load_objective
from lion_ray.imitation.training import attention
from lion_ray.imitation.training.data import Batch, collate, pack
from lion_ray.imitation.training.fit import _step
from lion_ray.imitation.training.held import prepared
from lion_ray.imitation.training.loss import rows_at_once, token_loss
from lion_ray.imitation.training.model import LabelledLogits, World, shard
from lion_ray.imitation.training.sharded import mesh_of
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import compile_layers


def kernels(machine: Machine) -> None:
    """Losses and gradients of packed rows: every kernel of this machine, and compiled layers with the last of them,
    against the dense mask in float32."""
    model = build("qwen3-0.6b", machine, layers=2)
    length = 256 if machine.tiny else 2048
    sizes = [length // 8] * 5 + [length // 4, length // 16]
    batch = collate(pack(samples_of(model, sizes), length)).to(machine.device)
    logits = LabelledLogits(model.train(), rows_at_once(None, model.config.vocab_size, machine.device))

    def run(half: bool) -> tuple[float, dict[str, torch.Tensor]]:
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=half):
            loss = logits.cross_entropy(batch, "sum")
        loss.backward()
        return float(loss.detach()), _gradients(model)

    loss, expected = run(half=False)
    usual = distance(run(half=True)[1], expected)
    number("sdpa: distance of gradients in bf16 from those in float32", usual)
    on_cpu = machine.device.type == "cpu"
    for name in ["varlen"] if on_cpu else attention.available(model, machine.device):
        try:
            say(f"attention: {name}")
            attention.use(model, name)
            attention.check_backward(name, model, machine.device)
            found, gradients = run(half=True)
            at_most(f"{name}: relative error of the loss", relative(found, loss), 5e-3)
            at_most(f"{name}: distance of gradients", distance(gradients, expected), 2 * usual + 1e-3)
            found, gradients = run(half=False)
            at_most(f"{name}: relative error of the loss in float32", relative(found, loss), 1e-4)
        except Exception as error:  # noqa: BLE001 - one kernel fails, the others are still measured
            failed(name, error)
            attention.use(model, attention.DENSE)
        finally:
            model.zero_grad()
    try:
        say("compiled layers and loss")
        backend = "eager" if machine.tiny else "inductor"
        compile_layers(model, True, machine.device, backend)
        logits = LabelledLogits(model, logits.rows, torch.compile(token_loss, backend=backend))
        found, gradients = run(half=True)
        at_most("compiled: relative error of the loss", relative(found, loss), 5e-3)
        at_most("compiled: distance of gradients", distance(gradients, expected), 2 * usual + 1e-3)
    except Exception as error:  # noqa: BLE001
        failed("compiled", error)


def losses(machine: Machine) -> None:
    """Each objective, with logits in chunks against all at once: loss, gradients and memory."""
    model = build("qwen3-0.6b", machine, layers=1).train()
    length = 128 if machine.tiny else 4096
    rows = 32 if machine.tiny else 1024
    for objective in (CrossEntropyConfig(), PreferenceConfig(type="preference")):
        name = objective.type
        try:
            pairs = name == "preference"
            samples = samples_of(model, [length // 4] * 4, pairs=pairs)
            batch = collate(pack(samples, length)).to(machine.device)
            made = load_objective(objective, Path())

            def run(rows: int, loss_of: Callable[..., Any] = made.loss, batch: Batch = batch) -> Any:
                machine.fresh()
                loss = loss_of(LabelledLogits(model, rows), batch)
                loss.backward()
                return float(loss.detach()), _gradients(model), machine.peak_gib()

            whole, expected, most = run(0)
            chunked, gradients, less = run(rows)
            at_most(f"{name}: relative error of the loss in chunks", relative(chunked, whole), 1e-4)
            at_most(f"{name}: distance of gradients in chunks", distance(gradients, expected), 1e-3)
            if most is not None and less is not None:
                at_most(f"{name}: GiB at most, in chunks", less, most, all_at_once=most)
        except Exception as error:  # noqa: BLE001
            failed(name, error)


def sharded(machine: Machine) -> None:
    """`fully_shard` over the processes there are (one here), full and with adapters, against the same without it."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if machine.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            for name, lora in (("full", None), ("lora", LoraConfig(rank=4))):
                try:
                    spec = TrainSpec(
                        model_dir="", output_dir="", lora=lora, precision="bf16", learning_rate=1e-3, compile=False
                    )
                    usual, together = _steps(spec, machine, apart=False), _steps(spec, machine, apart=True)
                    off = max(relative(one, other) for one, other in zip(together, usual, strict=True))
                    at_most(f"fully_shard, {name}: relative difference of a step's loss", off, 1e-2, steps=len(usual))
                except Exception as error:  # noqa: BLE001
                    failed(f"fully_shard, {name}", error)
        finally:
            dist.destroy_process_group()


def _steps(spec: TrainSpec, machine: Machine, *, apart: bool) -> list[float]:
    """Losses of a few steps on the same samples; `apart`: with sharded weights."""
    model = build("qwen3-0.6b", machine, layers=2)
    attention.use(model, next(iter(attention.available(model, machine.device)), attention.DENSE))
    samples = samples_of(model, [48, 64, 80] if machine.tiny else [500, 700, 800])
    world = World()
    student = prepared(model, spec, machine.device).train()
    if apart:
        shard(student, mesh_of(world, 1, machine.device), half=machine.device.type == "cuda")
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.learning_rate, fused=True)
    logits = LabelledLogits(student, rows_at_once(None, model.config.vocab_size, machine.device))
    objective = load_objective(spec.objective, Path())
    packed = pack(samples, sum(one.size for one in samples))
    return [_step(spec, [packed], logits, objective, optimizer, world, machine.device)[0] for _ in range(3)]


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
