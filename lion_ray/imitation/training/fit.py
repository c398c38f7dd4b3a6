"""Fine-tuning: the loop.

Invariants:
- A step's loss is the sum of its losses divided by their number (the objective's count; for cross-entropy, the labelled
  tokens), over all processes and micro-batches: neither packing, nor micro-batches, nor the number of processes changes
  what a step does.
- Every process takes the same number of micro-batches, some of them empty, so no collective waits forever. If a process
  hangs or has died, the others report which one (`roll`).
- All randomness in a step derives from (seed, step, process), and the learning rate from the step: see `state`.
- Where each process holds the whole model, no collective runs after the last step, so none waits while the first one
  writes.

This module does not know its launcher (Ray Train, torchrun or none): checkpoints go to a plain callable.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lion_ray.core.errors import DataError, TrainingError
from lion_ray.core.records import derive_seed
from lion_ray.imitation.objectives import load_objective
from lion_ray.imitation.objectives.base import Objective
from lion_ray.imitation.objectives.policy_gradient import PolicyGradient
from lion_ray.imitation.training import output, state
from lion_ray.imitation.training.balance import Shares, micro_batches, share_out
from lion_ray.imitation.training.checkpoints import Checkpoints, Report
from lion_ray.imitation.training.data import Sample, count_steps, encode, step_batches
from lion_ray.imitation.training.flops import ModelFlops, Speedometer, device_peak
from lion_ray.imitation.training.held import hold
from lion_ray.imitation.training.model import LabelledLogits, World, check_length, check_packing, default_device
from lion_ray.imitation.training.output import evaluate_loss
from lion_ray.imitation.training.reference import log_probabilities, token_log_probabilities, with_reference
from lion_ray.imitation.training.roll import Roll
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import (
    choose_attention,
    compiled_loss,
    loss_rows,
    set_allocator,
    tensor_cores,
)
from lion_ray.imitation.training.tokens import count_pairs, digest_of, extremes, tokenise
from lion_ray.models.machine import resolve_precision
from lion_ray.models.prompter import Prompter


def train(
    spec: TrainSpec,
    *,
    rows: Sequence[Any],
    heldout_rows: Sequence[Any] = (),
    report: Report,
    restore: Path | None = None,
    device: torch.device | None = None,
    heldout_before: float | None = None,
) -> dict[str, Any]:
    """Fine-tune as `spec` says and write the result to ``spec.output_dir``; a finished fit is not repeated.

    Every process of the fit calls this with the same arguments except `device`. Rows are what `data.as_row` takes.
    `restore` is a folder with a complete checkpoint. `heldout_before` is the held-out loss of the initial model, if the
    fit that made this model has measured it; otherwise it is measured here. Returns the fit's metrics as in
    training.json; processes other than the first lack those measured on the result.

    Raises DataError if no row can be trained on, ModelError if the model cannot be used, and TrainingError if a
    checkpoint belongs to another fit, the loss is not finite, or a process does not arrive within the timeout.
    """
    device = device or default_device()
    if device.type == "cuda":
        set_allocator()
        torch.cuda.set_device(device)
    roll = Roll(World.current(), spec.collective_timeout_s)
    with roll.called():
        return _train(spec, rows, heldout_rows, report, restore, device, heldout_before, roll)


def _train(
    spec: TrainSpec,
    rows: Sequence[Any],
    heldout_rows: Sequence[Any],
    report: Report,
    restore: Path | None,
    device: torch.device,
    heldout_before: float | None,
    roll: Roll,
) -> dict[str, Any]:
    started = time.monotonic()
    world = roll.world
    finished = world.from_first(output.finished(spec.output_dir) if world.rank == 0 else None)
    if finished is not None:
        return finished

    objective = load_objective(spec.objective, Path(spec.base_dir))
    prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
    samples, dropped = tokenise(rows, prompter, spec)
    if not samples:
        why = f"none of {len(rows)} answers can be trained on: {dropped}" if rows else "no answer is left to train on"
        raise DataError(why)
    heldout, heldout_dropped = encode(heldout_rows, prompter, spec.max_length, spec.truncated)
    fingerprint = spec.fingerprint(digest_of(samples))
    # After the fingerprint: with `auto`, a fit may resume on a machine that chooses another precision.
    chosen = world.from_first(resolve_precision(spec.precision, gpu=device.type == "cuda") if world.rank == 0 else None)
    spec = dataclasses.replace(spec, precision=chosen)

    held = hold(spec, world, device)
    model = held.measured()
    check_length(model, [*extremes(samples), *heldout], spec.max_length)
    kernel = choose_attention(model, samples, spec, device, world)
    check_packing(model, extremes(samples), device)
    if restore is None:
        progress = state.Progress(fingerprint)
        if heldout_before is None:
            heldout_before = evaluate_loss(model, heldout, spec, device, world)
        progress.heldout_before = heldout_before
        if objective.min_gap is not None:
            progress.reference = log_probabilities(model, samples, spec, device, world)
        elif objective.per_token:
            progress.reference = token_log_probabilities(model, samples, spec, device, world)
    else:
        progress = state.read_progress(restore, fingerprint)
    samples = with_reference(samples, progress.reference, per_token=objective.per_token)

    model = held.trained(kernel)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        fused=True,
    )
    if restore is not None:
        state.load(restore, model, optimizer, world)
    speed = Speedometer(ModelFlops.of(model), device_peak(device, spec.precision), world.size)
    with tensor_cores(device):
        _run(spec, objective, samples, model, optimizer, progress, report, roll, device, speed)

    metrics = {
        "steps": progress.step,
        "samples": len(samples),
        "pairs": count_pairs(samples),
        "dropped": dropped,
        "heldout_samples": len(heldout),
        "heldout_dropped": heldout_dropped,
        "tokens": progress.tokens,
        **speed.overall(),
        "fill": progress.tokens / progress.positions,
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "heldout_loss_before": progress.heldout_before,
        "workers": world.size,
        **(objective.facts(samples) if isinstance(objective, PolicyGradient) else {}),
        "attention": kernel,
    }
    held.gather()
    del model, optimizer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if held.writes:
        metrics = output.write(spec, held.save, metrics, heldout, prompter, device, started, held.writers)
    return metrics


def learning_rate(spec: TrainSpec, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, counted from 0, as in transformers' schedules with warm-up.

    Exception: a fit of a single step uses the peak rate; the schedules start at 0, so it would learn nothing.
    """
    warmup = min(math.ceil(steps * spec.warmup_ratio), steps - 1)
    if step < warmup:
        return spec.learning_rate * step / warmup
    if spec.schedule == "constant":
        return spec.learning_rate
    done = (step - warmup) / (steps - warmup)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _run(
    spec: TrainSpec,
    objective: Objective,
    samples: Sequence[Sample],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: state.Progress,
    report: Report,
    roll: Roll,
    device: torch.device,
    speed: Speedometer,
) -> float:
    """Run the remaining steps. Returns the seconds spent in them, without checkpoints."""
    world = roll.world
    steps = count_steps(len(samples), spec.epochs, spec.batch_size)
    rows = loss_rows(model, spec.logits_at_once, device)
    logits = LabelledLogits(model, rows, compiled_loss(spec.compile, device))
    checkpoints = Checkpoints(spec, model, optimizer, report, roll)
    for indices in step_batches(len(samples), spec.epochs, spec.batch_size, spec.seed, start=progress.step):
        began = time.monotonic()
        torch.manual_seed(derive_seed(spec.seed, "step", progress.step, world.rank))
        chosen = [samples[i] for i in indices]
        shares = share_out(chosen, spec.max_length, world.size)
        rate = learning_rate(spec, progress.step, steps)
        roll.meet()
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, norm, positions = _step(spec, shares, logits, objective, optimizer, world, device)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"step {progress.step + 1}: the loss is {loss} and the gradient's norm {norm}")
        passed = speed.step(chosen, time.monotonic() - began)

        progress.first_loss = loss if progress.step == 0 else progress.first_loss
        progress.last_loss = loss
        progress.step += 1
        progress.tokens += sum(sample.size for sample in chosen)
        progress.positions += positions
        metrics = {
            "step": progress.step,
            "steps": steps,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": progress.tokens,
            **passed,
        }
        checkpoints.after_step(metrics, progress)
    return speed.seconds


def _step(
    spec: TrainSpec,
    shares: Shares,
    logits: LabelledLogits,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    world: World,
    device: torch.device,
) -> tuple[float, float, int]:
    """One optimizer step: mean loss (nats per token, of cross-entropy), gradient norm before clipping, positions."""
    sharded = world.size > 1 and spec.sharding == "full"
    count = objective.count(sample for rows in shares for row in rows for sample in row)
    # fully_shard averages gradients over the processes; the loss needs their sum.
    scale = (world.size if sharded else 1) / count
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in micro_batches(shares, spec.micro_batch_rows, world):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            loss = objective.loss(logits, batch.to(device))
        (loss * scale).backward()
        totals[0] += loss.detach()
        totals[1] += batch.input_ids.numel()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if world.size > 1 and not sharded:
        _sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    loss_sum, positions = world.sum(totals).tolist()
    return loss_sum / count, float(_whole(norm)), int(positions)


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    pending = []
    for parameter in parameters:
        if parameter.grad is None:  # an expert to which no token of this process was routed
            parameter.grad = torch.zeros_like(parameter)
        pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()


def _whole(value: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
