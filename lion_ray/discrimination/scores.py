"""Combine a judge's scores; `score_parser` reads them.

Invariants:
- No score is invented: if an order was judged but has no scores, the row has none.

This module does not know prompts, models or tables.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lion_ray.discrimination.score_json import Pair as Pair
from lion_ray.discrimination.score_parser import HIGHEST as HIGHEST
from lion_ray.discrimination.score_parser import parse_scores as parse_scores

LOWEST = 1.0
"""LOWEST to HIGHEST is the scale in the judge's prompt."""


def in_range(pair: Pair | None) -> bool:
    """Whether both scores are present and within the judge's scale, 1 to 10."""
    return pair is not None and all(LOWEST <= score <= HIGHEST for score in pair)


def combine(teacher_first: Pair | None, student_first: Pair | None, *, one_order: bool = False) -> Pair | None:
    """(teacher, student) means over both orders; each argument is a (teacher, student) pair too.

    Returns None unless both orders are present and within 1 to 10: one order alone carries the judge's position bias.
    With `one_order`, only one order was judged (see `orders`), and its pair is returned.
    """
    given = [pair for pair in (teacher_first, student_first) if pair is not None]
    if len(given) != (1 if one_order else 2) or not all(map(in_range, given)):
        return None
    return sum(pair[0] for pair in given) / len(given), sum(pair[1] for pair in given) / len(given)


_Number = TypeVar("_Number", float, npt.NDArray[np.float64])


def is_hard(teacher: _Number, student: _Number, tau: float) -> Any:
    """Whether the student trails the teacher by at least `tau` points (paper, section 3.2); of arrays, for each row."""
    return teacher - student >= tau
