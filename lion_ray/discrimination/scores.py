"""What follows from a judge's scores; `verdicts` reads them.

Invariants:
- No score is ever made up: a row that lacks an order which was asked has none.

This module knows nothing of prompts, models or tables.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lion_ray.discrimination.score_json import Pair as Pair
from lion_ray.discrimination.score_parser import HIGHEST as HIGHEST
from lion_ray.discrimination.score_parser import parse_scores as parse_scores

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
