"""Direct preference optimisation on the verdicts of discrimination, with a supervised term.

Sources: Rafailov et al., Direct Preference Optimization (arXiv 2305.18290), equation 7; the supervised term against
falling likelihoods of both answers is that of RPO (arXiv 2404.19733), equation 1; the length-normalised form divides
each log-probability by its answer's tokens, as in SimPO (arXiv 2405.14734), and keeps the reference.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from lion_ray.config.plugins import PreferenceConfig
from lion_ray.imitation.objectives.base import Logits, cross_entropy
from lion_ray.imitation.training.data import REFERENCE, Batch, Sample


class Preference:
    """The loss of a row with one answer is its mean cross-entropy per token; that of a chosen c and a rejected r is

        -log sigmoid(beta * [(log p(c) - log p_ref(c)) - (log p(r) - log p_ref(r))]) + sft_weight * -log p(c) / |c|

    where p_ref is the student before the fit. A step's loss is the mean over its rows and pairs, each weighted by the
    tokens of its (chosen) answer, so that without pairs it is the cross-entropy of plain imitation.
    """

    columns: tuple[str, ...] = ()
    per_token = False

    def __init__(self, config: PreferenceConfig) -> None:
        self._config = config
        self.min_gap: float | None = config.min_gap

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        paired = [number for number, columns in enumerate(batch.columns) if REFERENCE in columns]
        if not paired:
            return cross_entropy(logits, batch, "sum")
        alone = [number for number, columns in enumerate(batch.columns) if REFERENCE not in columns]
        per_token = -cross_entropy(logits, batch, "none")
        count = len(batch.columns)
        place = 2 * batch.sample + batch.rejected
        sums = per_token.new_zeros(2 * count).index_add(0, place, per_token).view(count, 2)
        lengths = torch.bincount(place, minlength=2 * count).view(count, 2)
        supervised = -sums[:, 0]
        before = sums.new_tensor([batch.columns[number][REFERENCE] for number in paired])
        gained = sums[paired] - before
        if self._config.length_normalised:
            gained = gained / lengths[paired]
        margin = gained[:, 0] - gained[:, 1]
        preferred = -F.logsigmoid(self._config.beta * margin) * lengths[paired, 0]
        pairs = preferred + self._config.sft_weight * supervised[paired]
        return supervised[alone].sum() + pairs.sum()

    def count(self, samples: Iterable[Sample]) -> float:
        return sum(sample.labelled for sample in samples)
