"""The clipped policy gradient on the student's own rewarded answers (one round of on-policy training).

Sources: PPO's clipped objective (arXiv 1707.06347, equation 7) with group-relative advantages (GRPO, arXiv 2402.03300)
that are not divided by the deviation and losses that are summed over tokens (Dr. GRPO, arXiv 2503.20783); no KL term.
Tokens are weighted for the difference between the engine that sampled them and the trainer (truncated importance
sampling).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lion_ray.config.plugins import PolicyGradientConfig
from lion_ray.imitation.objectives.base import Logits, cross_entropy
from lion_ray.imitation.training.data import REFERENCE, Batch, Sample

ADVANTAGE, SAMPLED = "advantage", "logprobs"
"""Columns of a sample: its answer's advantage, and the engine's log-probability of each of its tokens, in nats."""


class PolicyGradient:
    """For each token of an answer with advantage A, minus the lesser of r A and clip(r, 1 - c, 1 + c) A, times w.

    r = p / p_before is the token's probability over that at the round's start, exactly 1 in a round's first step;
    w = min(p_before / p_engine, cap). A step is the mean over its tokens.
    """

    columns: tuple[str, ...] = (ADVANTAGE, SAMPLED)
    min_gap: float | None = None
    per_token = True

    def __init__(self, config: PolicyGradientConfig) -> None:
        self._config = config

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        now = -cross_entropy(logits, batch, "none")
        if not batch.columns:
            return now.sum()  # a batch of padding
        before, engine = (now.new_tensor(_joined(batch.columns, name)) for name in (REFERENCE, SAMPLED))
        advantage = now.new_tensor([columns[ADVANTAGE] for columns in batch.columns])[batch.sample]
        ratio = torch.exp(now - before)
        clip = self._config.clip
        gained = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        weight = torch.exp(before - engine).clamp(max=self._config.importance_cap)
        return -(weight * gained).sum()

    def count(self, samples: Iterable[Sample]) -> float:
        return sum(sample.labelled for sample in samples)

    @staticmethod
    def facts(samples: Iterable[Sample]) -> dict[str, float]:
        """How far the engine's log-probabilities were from the trainer's at the round's start, in nats per token."""
        gaps = [
            abs(before - engine)
            for sample in samples
            for before, engine in zip(sample.columns[REFERENCE], sample.columns[SAMPLED], strict=False)
        ]
        return {"engine_gap_mean": sum(gaps) / len(gaps), "engine_gap_max": max(gaps)}


def _joined(columns: Iterable[object], name: str) -> list[float]:
    """A column of one number a token. An answer that was cut to the maximum length has fewer tokens than numbers."""
    found: list[float] = []
    for one in columns:
        found += one[name][: len(one[REFERENCE])]  # type: ignore[index]
    return found
