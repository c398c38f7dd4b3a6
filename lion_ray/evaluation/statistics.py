"""Statistics of agreement, noise and rank, with intervals by resampling.

Invariants:
- A number that the data does not determine (no rows, no variation) is None, never 0.
- The same arguments give the same interval on every machine.

This module knows nothing of judges or answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the percentile interval of a bootstrap, and what it rests on."""

    value: float
    low: float
    high: float
    n: int


def estimate(
    groups: Sequence[Sequence[Any]], figure: Callable[[list[Any]], float | None], *, seed: int
) -> Estimate | None:
    """A figure of all the groups' members, with a 95 % interval from resampling whole groups.

    Args:
        groups: what belongs together, such as a pair's samples; an empty one counts for nothing.
        figure: of a list of members; None where it is not determined. Such a resample is left out.
    """
    filled = [list(group) for group in groups if group]
    value = figure([member for group in filled for member in group])
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(filled), len(filled))
        one = figure([member for index in drawn for member in filled[index]])
        if one is not None:
            found.append(one)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if found else (value, value)
    return Estimate(value, float(low), float(high), len(filled))


def mean(values: Sequence[float]) -> float | None:
    """None where there are none."""
    return math.fsum(values) / len(values) if values else None


def agreement(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """The share of pairs whose two members are equal."""
    return mean([float(one == other) for one, other in pairs])


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa (1960) of two raters over nominal classes, unweighted.

    (agreement - expected) / (1 - expected), where `expected` is the agreement of raters with these shares of classes
    who judge at random. None where both gave one and the same class throughout.
    """
    observed = agreement(pairs)
    if observed is None:
        return None
    classes = {rating for pair in pairs for rating in pair}
    shares = [[sum(pair[who] == one for pair in pairs) / len(pairs) for who in (0, 1)] for one in classes]
    expected = math.fsum(first * second for first, second in shares)
    return None if math.isclose(expected, 1.0) else (observed - expected) / (1 - expected)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None for fewer than 3 values or one that never varies."""
    if len(first) < 3:
        return None
    one, other = (ranks(np.asarray(values, np.float64)) for values in (first, second))
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale else None


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def pooled_sd(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, each weighted by its degrees of freedom; None where no group has two."""
    squares = freedom = 0.0
    for group in groups:
        if len(group) > 1:
            centre = math.fsum(group) / len(group)
            squares += math.fsum((value - centre) ** 2 for value in group)
            freedom += len(group) - 1
    return math.sqrt(squares / freedom) if freedom else None
