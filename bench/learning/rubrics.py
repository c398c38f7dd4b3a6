"""Rubrics of the world: criteria from a reference answer, and whether a text meets one. Pure.

Invariant: a criterion is decided from its own text and the answer alone, as a verifier decides it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from bench.learning.world import normalised, rng_of

MOST_PARTS = 5
YES_AT = 0.5


def criteria(reference: str) -> list[tuple[str, int]]:
    """What tells answers like `reference` from others, and its points: being right, and being partly right."""
    text = normalised(reference)
    parts = list(dict.fromkeys(text.split(", " if ", " in text else " ")))
    found = [(f"Apart from spaces and a full stop at its end, it is exactly {_quoted(text)}.", 5)]
    found += [(f"It contains {_quoted(part)}.", 2) for part in parts[:MOST_PARTS] if part != text]
    found.append((f"It has {len(text.split())} words.", 1))
    found.append((f"It has {len(text)} characters.", 1))
    found.append((f"It begins with {_quoted(text[:1])}.", 1))
    return found


def meets(criterion: str, answer: str) -> bool:
    """Whether an answer meets a criterion. Raises ValueError for one that is not of this world."""
    for pattern, decide in _KINDS.items():
        if (match := re.fullmatch(pattern, criterion, re.DOTALL)) is not None:
            return decide(json.loads(match[1]), normalised(answer))
    raise ValueError(f"no criterion of this world: {criterion[:80]!r}")


def decided(criterions: Sequence[str], answer: str, noise: float, seed: int) -> list[bool]:
    """The decisions of a verifier whose certainty, from 0 to 1, has Gaussian noise of `noise` tenths."""
    found = []
    for one in criterions:
        certainty = float(meets(one, answer)) + rng_of("verifier", seed, one, answer).gauss(0, noise / 10)
        found.append(certainty > YES_AT)
    return found


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_KINDS: dict[str, Callable[..., bool]] = {
    r"Apart from spaces and a full stop at its end, it is exactly (.*)\.": lambda given, said: said == given,
    r"It contains (\".*\")\.": lambda given, said: given in said,
    r"It has (\d+) words\.": lambda given, said: len(said.split()) == given,
    r"It has (\d+) characters\.": lambda given, said: len(said) == given,
    r"It begins with (\".*\")\.": lambda given, said: said.startswith(given),
}
