"""Probability-weighted scores: the expected score under the judge's own token probabilities.

Invariants:
- A score is weighted only if the position of both numbers is certain: the whole reply is two numbers, or it contains
  each form that a template asks for exactly once, with the numbers that the parser read. Otherwise the plain score is
  used.
- Continuations are never guessed: a number of several tokens has no weight, and a "1" that may begin "10" either has a
  share below `UNSURE` and is left out, or the score is not weighted.

The endpoint returns alternatives to each token (OpenAI's API reference, chat completions, `top_logprobs`). AlpacaEval
weights a judge's preference in the same way. This module does not know endpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lion_ray.discrimination.scores import HIGHEST, LOWEST, Pair

Token = tuple[int, str, Sequence[tuple[str, float]]]
"""Start in the text (characters), the token, and its alternatives as (token, log-probability)."""

ALTERNATIVES = 20
"""Alternatives requested for each token: the maximum of OpenAI's API."""
LEAST_NUMBERS = 0.5
"""Minimum total probability of numbers; below it the judge was about to say something else."""
UNSURE = 0.01
"""The largest share of the numbers' probability at which a "1" of unknown continuation may be left out."""

_NUMBER = r"([0-9]{1,2})"
_FORMS = tuple(
    re.compile(pattern, re.I | re.M)
    for pattern in (
        rf"\A\s*{_NUMBER}[ ,\t]+{_NUMBER}\s*\Z",
        rf'\A\s*\{{[^{{}}]*"assistant_1"\s*:\s*{_NUMBER}\s*,\s*"assistant_2"\s*:\s*{_NUMBER}\s*\}}\s*\Z',
        rf"^Score of the Assistant 1: *{_NUMBER} *\nScore of the Assistant 2: *{_NUMBER}\s*\Z",
    )
)
_LABELS = re.compile(r'"assistant_[12]"|score of the assistant [12]', re.I)
_ONE_NUMBER = re.compile(r"\W*([0-9]+)\W*")


def weighted_pair(text: str, tokens: Sequence[Token] | None, pair: Pair) -> Pair | None:
    """Both scores of `text`, weighted. Returns None if that cannot be done reliably.

    Args:
        tokens: the number tokens of the reply; None if the endpoint returned none.
        pair: the result of `scores.parse_scores` for `text`.
    """
    if tokens is None or (places := _places(text, pair)) is None:
        return None
    first, second = (expectation(text, start, tokens) for start in places)
    return None if first is None or second is None else (first, second)


def expectation(text: str, start: int, tokens: Sequence[Token]) -> float | None:
    """The expected value of the number at `start` in `text`, over the whole numbers 1 to 10."""
    number = re.compile("[0-9]+").match(text, start)
    found = _token_at(start, tokens)
    if number is None or found is None:
        return None
    _, token, alternatives = found
    mass = _by_number(alternatives)
    if (said := _ONE_NUMBER.fullmatch(token)) is None or (total := sum(mass.values())) < LEAST_NUMBERS:
        return None
    if said[1] != number[0]:
        # "10" as two tokens: the probability of the second token separates 10 from 1.
        rest = _token_at(start + 1, tokens)
        if (said[1], number[0]) != ("1", "10") or rest is None or 10 in mass:
            return None
        ten = min(1.0, sum(math.exp(log) for other, log in rest[2] if other.startswith("0")))
        one = mass.pop(1)
        mass |= {10: one * ten, 1: one * (1 - ten)}
    elif 1 in mass and 10 not in mass:
        # This tokenizer may write 10 as two tokens, so the continuation of this "1" is unknown.
        if int(number[0]) == 1 or mass[1] > UNSURE * total:
            return None
        mass.pop(1)
    return sum(value * share for value, share in mass.items()) / sum(mass.values())


def _by_number(alternatives: Sequence[tuple[str, float]]) -> dict[int, float]:
    """The probability of each whole number from 1 to 10, with any spacing."""
    mass: dict[int, float] = {}
    for token, log in alternatives:
        if (match := _ONE_NUMBER.fullmatch(token)) and len(match[1]) <= 2 and LOWEST <= int(match[1]) <= HIGHEST:
            mass[int(match[1])] = mass.get(int(match[1]), 0.0) + math.exp(log)
    return mass


def _token_at(start: int, tokens: Sequence[Token]) -> Token | None:
    """The token whose number begins at `start`."""
    for token in tokens:
        match = re.search("[0-9]", token[1])
        if match is not None and token[0] + match.start() == start:
            return token
    return None


def _places(text: str, pair: Pair) -> tuple[int, int] | None:
    """Where both numbers begin. Returns None if that is not certain."""
    for form in _FORMS:
        match = form.search(text)
        if match is not None and (float(match[1]), float(match[2])) == pair:
            # A second label means a second verdict, or text that poses as one.
            return (match.start(1), match.start(2)) if len(_LABELS.findall(text)) in (0, 2) else None
    return None
