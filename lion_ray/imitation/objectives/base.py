"""What a fit minimises, as something that can be exchanged.

Invariants:
- An objective gives the sum of a batch's losses, and how many there are in a step; neither packing, nor micro-batches,
  nor the number of processes may change what a step does.
- It sees logits at labelled positions only: most of a small model's time and memory would go into the others.

`contract.ObjectiveContract` tests what is said here, of any objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lion_ray.imitation.training.data import Batch, Sample

Logits = Callable[["Batch"], "torch.Tensor"]
"""The model on a batch: [N, vocabulary] in float32, in the order of `Batch.targets`."""


class Objective(Protocol):
    """A loss, and what it needs of the rows beside their tokens."""

    columns: tuple[str, ...]
    """Columns of INSTRUCTION or ANSWER rows that come with each sample (`Batch.columns`), such as `source`."""
    min_gap: float | None
    """It learns from pairs too: of the rows judged before, those with at least this gap (`imitation.pairs`). None, or
    no such attribute: it does not."""

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        """A scalar with gradient: the sum of the losses of a batch, in nats where that has a meaning."""

    def count(self, samples: Iterable[Sample]) -> float:
        """By how much a step's sum is divided, given all samples of the step; more than 0."""
