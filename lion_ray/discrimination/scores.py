"""What follows from a judge's scores; `verdicts` reads them.

Invariants:
- No score is ever made up: a row that lacks an order which was asked has none.

This module knows nothing of prompts, models or tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lion_ray.discrimination.score_json import Pair as Pair
from lion_ray.discrimination.score_parser import HIGHEST as HIGHEST
from lion_ray.discrimination.score_parser import parse_scores as parse_scores

MANY_ROWS = 10_000
"""From here on a bootstrap draws pairs of scores, not rows."""

LOWEST = 1.0
"""With HIGHEST: what a judge is asked for."""


def in_range(pair: Pair | None) -> bool:
    """Whether a verdict's two scores are there and within what the judge is asked for, 1 to 10."""
    return pair is not None and all(LOWEST <= score <= HIGHEST for score in pair)


def combine(teacher_first: Pair | None, student_first: Pair | None, *, one_order: bool = False) -> Pair | None:
    """(teacher, student) means over both orders; each order's pair is (teacher, student) too, whoever stood first.

    None unless both orders are there and within 1 to 10: one order alone carries the judge's position bias, and an
    order that could not be read says nothing. With `one_order` the other was never asked (see `orders`), and the one
    that is there stands alone.
    """
    given = [pair for pair in (teacher_first, student_first) if pair is not None]
    if len(given) != (1 if one_order else 2) or not all(map(in_range, given)):
        return None
    return sum(pair[0] for pair in given) / len(given), sum(pair[1] for pair in given) / len(given)


_Number = TypeVar("_Number", float, npt.NDArray[np.float64])


def is_hard(teacher: _Number, student: _Number, tau: float) -> Any:
    """Whether the student trails the teacher by at least `tau` points (paper, section 3.2); of arrays, for each row."""
    return teacher - student >= tau


@dataclass(frozen=True, slots=True)
class RelativeQuality:
    """A candidate's summed score over the reference's, with a confidence interval."""

    ratio: float
    low: float
    high: float
    n: int
    """Rows it rests on."""


def relative_quality(
    teacher: Sequence[float] | npt.NDArray[np.float64],
    student: Sequence[float] | npt.NDArray[np.float64],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> RelativeQuality | None:
    """sum(student) / sum(teacher), with a percentile bootstrap over rows; None where there are no rows.

    Row i of both sequences is the same instruction. The same arguments give the same interval on every machine.
    Raises ValueError where the lengths differ or a reference score is not positive.
    """
    if len(teacher) != len(student):
        raise ValueError(f"{len(teacher)} reference scores for {len(student)} candidate scores")
    if not len(teacher):
        return None
    reference, candidate = np.asarray(teacher, np.float64), np.asarray(student, np.float64)
    if not (reference > 0).all():
        raise ValueError("a reference score is not positive")
    ratios = _resampled(reference, candidate, np.random.default_rng(seed), resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return RelativeQuality(float(candidate.sum() / reference.sum()), float(low), float(high), len(reference))


def _resampled(
    reference: npt.NDArray[np.float64],
    candidate: npt.NDArray[np.float64],
    rng: np.random.Generator,
    resamples: int,
) -> npt.NDArray[np.float64]:
    """The ratio in each resample of the rows."""
    rows = len(reference)
    if rows > MANY_ROWS:
        pairs, counts = np.unique(np.column_stack([reference, candidate]), axis=0, return_counts=True)
        if len(pairs) < rows / 10:
            # Drawing rows is drawing how often each pair of scores occurs, and judges give few different ones.
            drawn = rng.multinomial(rows, counts / rows, size=resamples)
            return np.asarray((drawn @ pairs[:, 1]) / (drawn @ pairs[:, 0]))
    ratios = np.empty(resamples)
    # One by one, because resamples x rows of indices would be gigabytes for a whole Cache Pool.
    for k in range(resamples):
        chosen = rng.integers(0, rows, rows)
        ratios[k] = candidate[chosen].sum() / reference[chosen].sum()
    return ratios
