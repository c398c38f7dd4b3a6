"""The paper's objective: the mean cross-entropy of the answers' tokens (section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lion_ray.imitation.objectives.base import Logits, cross_entropy
from lion_ray.imitation.training.data import Batch, Sample


class CrossEntropy:
    """-log p(token | preceding tokens), over the labelled tokens."""

    columns: tuple[str, ...] = ()
    per_token = False
    min_gap: float | None = None

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        return cross_entropy(logits, batch, "sum")

    def count(self, samples: Iterable[Sample]) -> float:
        return sum(sample.labelled for sample in samples)
