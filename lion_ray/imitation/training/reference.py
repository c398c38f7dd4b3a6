"""Log-probabilities of both answers of each pair under the model as it comes, before a fit changes it.

Invariant: computed once per fit. They are part of its checkpoints (`state.Progress`), so that a restored fit goes on
with the same numbers, whatever machine it is on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lion_ray.imitation.training.balance import micro_batches, share_out
from lion_ray.imitation.training.data import REFERENCE, Sample
from lion_ray.imitation.training.model import LabelledLogits, World
from lion_ray.imitation.training.spec import TrainSpec

Pairs = list[tuple[float, float]]
"""(chosen, rejected), in nats, of each sample that is a pair, in their order."""


@torch.no_grad()
def log_probabilities(
    model: nn.Module, samples: Sequence[Sample], spec: TrainSpec, device: torch.device, world: World
) -> Pairs:
    """The summed log-probabilities of the labelled tokens, in float32 arithmetic.

    The processes of `world` share the work.
    """
    compared = [sample for sample in samples if sample.rejected is not None]
    numbered = [sample._replace(columns={REFERENCE: number}) for number, sample in enumerate(compared)]
    logits = LabelledLogits(model.eval())
    total = torch.zeros(2 * len(compared), dtype=torch.float64, device=device)
    for share in micro_batches(share_out(numbered, spec.max_length, world.size), spec.micro_batch_rows, world):
        batch = share.to(device)
        number = torch.tensor([columns[REFERENCE] for columns in batch.columns], dtype=torch.long, device=device)
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
