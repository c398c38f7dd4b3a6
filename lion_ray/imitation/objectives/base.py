"""The interface of a training objective (loss).

Invariants:
- An objective returns the sum of a batch's losses, and the number of losses in a step. Neither packing, nor
  micro-batches, nor the number of processes may change what a step does.
- It sees logits at labelled positions only: the other positions would take most of a small model's time and memory.

`contract.ObjectiveContract` tests these rules for any objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    import torch

    from lion_ray.imitation.training.data import Batch, Sample

Logits = Callable[["Batch"], "torch.Tensor"]
"""The model's logits for a batch: [N, vocabulary] in float32, in the order of `Batch.targets`."""


def cross_entropy(logits: Logits, batch: Batch, reduction: Literal["none", "sum"]) -> torch.Tensor:
    """The labelled tokens' cross-entropy in nats, [N] or their sum; in a fit on a GPU not all logits exist at once."""
    import torch.nn.functional as F

    whole = getattr(logits, "cross_entropy", None)
    if whole is not None:
        return cast("torch.Tensor", whole(batch, reduction))
    return F.cross_entropy(logits(batch), batch.targets, reduction=reduction)


class Objective(Protocol):
    """A loss, and the columns that it needs besides the tokens."""

    columns: tuple[str, ...]
    """Columns of INSTRUCTION or ANSWER rows that come with each sample (`Batch.columns`), such as `source`."""
    min_gap: float | None
    """If set, the objective also gets preference pairs of earlier judged rows with at least this gap
    (`imitation.pairs`)."""

    per_token: bool
    """Each sample comes with the log-probability of each of its labelled tokens before the fit, in the column
    `data.REFERENCE`. Without this attribute: False."""

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        """A scalar with gradient: the sum of the losses of a batch, in nats if that applies."""

    def count(self, samples: Iterable[Sample]) -> float:
        """The divisor for a step's sum of losses, given all samples of the step; greater than 0."""
