"""Does an engine answer with the weights it should? Its greedy tokens against the trainer's own.

Invariants:
- Tokens must agree up to the first near-tie: where the trainer's two best tokens are closer than an engine's
  arithmetic can tell apart, either is right and what follows may differ.
- Log-probabilities of the agreeing tokens must agree too: a short fine-tune often changes no greedy token, so equal
  tokens alone would let yesterday's weights pass.

This module knows nothing of engines; it compares numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Largest differences that two right implementations of one model were seen to have, with room to spare.
TOLERANCE = {"float32": (0.05, 0.02), "float16": (0.1, 0.05), "bfloat16": (0.5, 0.2)}
"""By dtype: a near-tie in logits, and the mean difference of log-probabilities (nats) that is still agreement."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy continuation: token ids, their log-probabilities (nats), and their lead over the runner-up (logits).

    `margins` is empty where it was not measured.
    """

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Agreement:
    ok: bool
    compared: int
    """Tokens that could be compared."""
    mean_difference: float
    """Of the log-probabilities of those tokens, in nats."""
    detail: str


def compare(expected: Sequence[Greedy], got: Sequence[Greedy], *types: str) -> Agreement:
    """Compare an engine's continuations with the trainer's, prompt by prompt.

    `types`: those of the engine and of the trainer's rounding, which may be another where they run on different
    machines and the type is `auto`; the coarser one decides what is agreement.
    """
    tie, tolerance = max(TOLERANCE[dtype] for dtype in types)
    differences: list[float] = []
    for number, (want, have) in enumerate(zip(expected, got, strict=True)):
        for place, token in enumerate(want.tokens):
            if place >= len(have.tokens) or have.tokens[place] != token:
                if want.margins[place] >= tie:
                    found = have.tokens[place] if place < len(have.tokens) else "nothing"
                    detail = f"prompt {number}, token {place}: {found} where the trainer has {token}"
                    return Agreement(False, len(differences), _mean(differences), detail)
                break
            differences.append(abs(have.logprobs[place] - want.logprobs[place]))
    mean = _mean(differences)
    most = max(differences, default=0.0)
    detail = f"{len(differences)} tokens agree, log-probabilities differ by {mean:.2g} on average, {most:.2g} at most"
    return Agreement(mean <= tolerance and bool(differences), len(differences), mean, detail)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
