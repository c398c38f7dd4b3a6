"""Scores weighted by the judge's own probabilities: the mean over the numbers that it might have said in their place.

Invariants:
- Only where the place of both numbers is certain: the whole reply is two numbers, or it holds each of the forms that a
  template asks for exactly once, and the numbers there are those that the parser read. Else there is no weighted
  score, and the plain one stands.
- Nothing is guessed about what the judge might have gone on to say: a number that is not one token has no weight, and
  a "1" that may be the beginning of "10" either weighs less than `UNSURE` or makes the score unweighable.

An endpoint gives the alternatives to each token (OpenAI's API reference, chat completions, `top_logprobs`); AlpacaEval
weighs a judge's preference in the same way. This module knows nothing of endpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lion_ray.discrimination.scores import HIGHEST, LOWEST, Pair

Token = tuple[int, str, Sequence[tuple[str, float]]]
"""Where it begins in the text, in characters; itself; and (token, log-probability) of what might have stood there."""

ALTERNATIVES = 20
"""What is asked for at each token: the most that OpenAI's API gives."""
LEAST_NUMBERS = 0.5
"""Where numbers have less of the probability than this, the judge was about to say something else."""
UNSURE = 0.01
"""The share of the numbers' probability that a "1" of unknown continuation may have and be left out."""

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
    """Both scores of `text`, weighted; None where that cannot be done with confidence.

    Args:
        tokens: of the reply, those that are numbers; None where the endpoint gave none.
        pair: what `scores.parse_scores` reads from `text`.
    """
    if tokens is None or (places := _places(text, pair)) is None:
        return None
    first, second = (expectation(text, start, tokens) for start in places)
    return None if first is None or second is None else (first, second)


def expectation(text: str, start: int, tokens: Sequence[Token]) -> float | None:
    """The mean over the whole numbers 1 to 10 that might have stood at `start`, where a number stands in `text`."""
    number = re.compile("[0-9]+").match(text, start)
    found = _token_at(start, tokens)
    if number is None or found is None:
        return None
    _, token, alternatives = found
    mass = _by_number(alternatives)
    if (said := _ONE_NUMBER.fullmatch(token)) is None or (total := sum(mass.values())) < LEAST_NUMBERS:
        return None
    if said[1] != number[0]:
        # "10" as two tokens: how likely the second one was tells 10 from 1.
        rest = _token_at(start + 1, tokens)
        if (said[1], number[0]) != ("1", "10") or rest is None or 10 in mass:
            return None
        ten = min(1.0, sum(math.exp(log) for other, log in rest[2] if other.startswith("0")))
        one = mass.pop(1)
        mass |= {10: one * ten, 1: one * (1 - ten)}
    elif 1 in mass and 10 not in mass:
        # This tokenizer may write 10 as two tokens, and nobody knows what would have followed this "1".
        if int(number[0]) == 1 or mass[1] > UNSURE * total:
            return None
        mass.pop(1)
    return sum(value * share for value, share in mass.items()) / sum(mass.values())


def _by_number(alternatives: Sequence[tuple[str, float]]) -> dict[int, float]:
    """The probability of each whole number from 1 to 10, however it is spaced."""
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
    """Where both numbers begin; None where that is not certain."""
    for form in _FORMS:
        match = form.search(text)
        if match is not None and (float(match[1]), float(match[2])) == pair:
            # A second label means a second verdict, or text that poses as one.
            return (match.start(1), match.start(2)) if len(_LABELS.findall(text)) in (0, 2) else None
    return None
