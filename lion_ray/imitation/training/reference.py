"""Reference log-probabilities: of both answers of each pair, under the model before the fit.

Invariant: computed once per fit. They are part of its checkpoints (`state.Progress`), so that a restored fit continues
with the same numbers on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lion_ray.imitation.training.data import REFERENCE, Sample, collate, pack
from lion_ray.imitation.training.model import LabelledLogits, World
from lion_ray.imitation.training.spec import TrainSpec

Pairs = list[tuple[float, float]]
"""(chosen, rejected) in nats, for each sample that is a pair, in order."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module, samples: Sequence[Sample], spec: TrainSpec, device: torch.device, world: World
) -> Pairs:
    """The summed log-probabilities of the labelled tokens, in float32 arithmetic.

    The processes of `world` share the work; each must hold the whole model.
    """
    compared = [sample for sample in samples if sample.rejected is not None]
    numbered = [sample._replace(columns={REFERENCE: number}) for number, sample in enumerate(compared)]
    logits = LabelledLogits(model.eval())
    total = torch.zeros(2 * len(compared), dtype=torch.float64, device=device)
    mine = pack(numbered, spec.max_length)[world.rank :: world.size]
    for start in range(0, len(mine), spec.micro_batch_rows):
        batch = collate(mine[start : start + spec.micro_batch_rows]).to(device)
        number = torch.tensor([columns[REFERENCE] for columns in batch.columns], device=device)
        total.index_add_(0, 2 * number[batch.sample] + batch.rejected, -logits.losses(batch).double())
    found = world.sum(total).view(-1, 2).tolist() if compared else []
    return [(chosen, rejected) for chosen, rejected in found]


def with_reference(samples: Sequence[Sample], found: Sequence[Sequence[float]]) -> list[Sample]:
    """The samples, each pair with its log-probabilities in the column `REFERENCE`."""
    left = iter(found)
    return [
        sample if sample.rejected is None else sample._replace(columns={**sample.columns, REFERENCE: tuple(next(left))})
        for sample in samples
    ]
