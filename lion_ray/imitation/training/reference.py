"""Reference log-probabilities under the model before the fit: of both answers of each pair, or of each token.

Invariant: computed once per fit. They are part of its checkpoints (`state.Progress`), so that a restored fit continues
with the same numbers on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import nn

from lion_ray.imitation.training.balance import micro_batches, share_out
from lion_ray.imitation.training.data import REFERENCE, Sample, step_batches
from lion_ray.imitation.training.model import LabelledLogits, World
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import loss_rows, tensor_cores

Pairs = list[tuple[float, float]]
"""(chosen, rejected) in nats, for each sample that is a pair, in order."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module, samples: Sequence[Sample], spec: TrainSpec, device: torch.device, world: World
) -> Pairs:
    """The summed log-probabilities of the labelled tokens, in float32 arithmetic (on a GPU in TF32).

    The processes of `world` share the work.
    """
    compared = [sample for sample in samples if sample.rejected is not None]
    numbered = [sample._replace(columns={REFERENCE: number}) for number, sample in enumerate(compared)]
    logits = LabelledLogits(model.eval(), loss_rows(model, spec.logits_at_once, device))
    total = torch.zeros(2 * len(compared), dtype=torch.float64, device=device)
    for share in micro_batches(share_out(numbered, spec.max_length, world.size), spec.micro_batch_rows, world):
        batch = share.to(device)
        number = torch.tensor([columns[REFERENCE] for columns in batch.columns], dtype=torch.long, device=device)
        with tensor_cores(device):
            losses = logits.losses(batch)
        total.index_add_(0, 2 * number[batch.sample] + batch.rejected, -losses.double())
    found = world.sum(total).view(-1, 2).tolist() if compared else []
    return [(chosen, rejected) for chosen, rejected in found]


@torch.no_grad()
def token_log_probabilities(
    model: nn.Module, samples: Sequence[Sample], spec: TrainSpec, device: torch.device, world: World
) -> list[list[float]]:
    """The log-probability of each labelled token of each sample, in nats.

    Computed in the batches of the first epoch's steps and in their precision, so that the first step finds the same
    numbers to the bit. The processes of `world` share the work.
    """
    begins = [0, *accumulate(sample.labelled for sample in samples)]
    numbered = [sample._replace(columns={REFERENCE: number}) for number, sample in enumerate(samples)]
    rows = loss_rows(model, spec.logits_at_once, device)
    logits = LabelledLogits(model.train(), rows)  # as in a step; dropout would make the two differ in any case
    flat = torch.zeros(begins[-1], dtype=torch.float64, device=device)
    for indices in step_batches(len(samples), 1, spec.batch_size, spec.seed):
        shares = share_out([numbered[index] for index in indices], spec.max_length, world.size)
        for on_cpu in micro_batches(shares, spec.micro_batch_rows, world):
            batch = on_cpu.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                found = -logits.losses(batch)
            numbers = [columns[REFERENCE] for columns in batch.columns]
            places = [at for number in numbers for at in range(begins[number], begins[number + 1])]
            flat[torch.tensor(places, dtype=torch.long, device=device)] = found.double()
    whole = world.sum(flat).tolist()
    return [whole[begin:end] for begin, end in pairwise(begins)]


def with_reference(samples: Sequence[Sample], found: Sequence[Sequence[float]], *, per_token: bool) -> Sequence[Sample]:
    """The samples, with their log-probabilities in the column `REFERENCE`: each pair, or with `per_token` each one."""
    if per_token:
        each = zip(samples, found, strict=True)
        return [sample._replace(columns={**sample.columns, REFERENCE: list(before)}) for sample, before in each]
    if not found:
        return samples
    left = iter(found)
    return [
        sample if sample.rejected is None else sample._replace(columns={**sample.columns, REFERENCE: tuple(next(left))})
        for sample in samples
    ]
