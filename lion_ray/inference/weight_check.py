"""Check that an engine runs the right weights: compare its greedy tokens with the trainer's.

Invariants:
- Tokens must agree up to the first near-tie. If the trainer's two best logits are closer than the engine's arithmetic
  can resolve, either token is right and the rest may differ.
- Log-probabilities of the agreeing tokens must agree too: a short fine-tuning often changes no greedy token, so equal
  tokens alone would not detect old weights.

This module does not know engines; it compares numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lion_ray.core import layout

# The largest differences observed between two correct implementations of one model, with a margin.
TOLERANCE = {"float32": (0.05, 0.02), "float16": (0.1, 0.05), "bfloat16": (0.5, 0.2)}
"""By dtype: the largest gap of a near-tie (logits), and the largest accepted mean log-probability difference (nats)."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy continuation: token ids, their log-probabilities (nats), and their lead over the runner-up (logits).

    `margins` is empty if it was not measured.
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
    """Mean absolute difference of those tokens' log-probabilities, in nats."""
    detail: str

    def refusal(self) -> str:
        """What a freshly booted engine does wrong, and what to do about it."""
        return (
            f"does not answer like the trained model: {self.detail}; if only its arithmetic differs (another GPU, "
            "another vLLM), raise student.canary.mean or .tie and run the same command; else the checkpoint's files "
            "are not those that the trainer wrote"
        )


def compare(
    expected: Sequence[Greedy],
    got: Sequence[Greedy],
    *types: str,
    tie: float | None = None,
    tolerance: float | None = None,
) -> Agreement:
    """Compare an engine's continuations with the trainer's, prompt by prompt.

    `types`: the number types of the engine and of the trainer's rounding. They can differ if the type is `auto` and
    the two run on different machines. The coarser type sets the tolerances, unless they are given.
    """
    usual_tie, usual = max(TOLERANCE[dtype] for dtype in types)
    tie = usual_tie if tie is None else tie
    tolerance = usual if tolerance is None else tolerance
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
    if mean > tolerance:
        detail += f", and {tolerance:g} on average is allowed"
    return Agreement(mean <= tolerance and bool(differences), len(differences), mean, detail)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Canary(NamedTuple):
    """What the trainer wrote with a checkpoint: its continuations."""

    entries: list[Greedy]
    dtype: str = "float32"
    """The type to which the weights were rounded for them."""


def read_canary(model_dir: Path) -> Canary:
    """A checkpoint's canary. Without entries for a model that was not trained here."""
    path = model_dir / layout.CANARY
    return canary_of(path.read_bytes()) if path.is_file() else Canary([])


def canary_of(content: bytes) -> Canary:
    """The canary in the content of its file."""
    found = json.loads(content)
    entries = [
        Greedy(**{name: tuple(entry[name]) for name in ("prompt_ids", "tokens", "logprobs", "margins")})
        for entry in found["prompts"]
    ]
    return Canary(entries, str(found.get("dtype", "float32")))
