"""Estimates with confidence intervals, and significance tests: one bootstrap, and scipy for the rest.

Invariants:
- A number that the data does not determine (no rows, no variation) is None, never 0.
- The same arguments give the same interval on every machine: the seed is an argument and the only randomness.
- Comparisons are paired: a row's numbers are resampled together.

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
AT_ONCE = 5_000_000
"""The most resampled counts held in memory at once."""
MANY_ROWS = 10_000
"""Above this many rows, resampling draws from the distinct rows if there are few of them."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate, its percentile bootstrap interval, and the number of rows or groups."""

    value: float
    low: float
    high: float
    n: int


# -- the bootstrap ---------------------------------------------------------------------------------------------------


def resampled_sums(columns: npt.ArrayLike, seed: int) -> Floats:
    """The sum of each column over each resample of the rows: (columns, RESAMPLES). All columns are resampled together.

    A resample is drawn as the count of each row, which is multinomial; many rows are drawn in several steps.

    Args:
        columns: (columns, rows), at least one row.
    """
    values = np.asarray(columns, np.float64)
    rows = values.shape[1]
    shares = np.full(rows, 1 / rows)
    if rows > MANY_ROWS:
        different, counts = np.unique(values, axis=1, return_counts=True)
        if different.shape[1] < rows / 10:  # judges give few different scores
            values, shares = different, counts / rows
    rng = np.random.default_rng(seed)
    step = max(1, AT_ONCE // values.shape[1])
    drawn = (
        rng.multinomial(rows, shares, size=min(step, RESAMPLES - start)) @ values.T
        for start in range(0, RESAMPLES, step)
    )
    return np.concatenate(list(drawn)).T


def percentiles(figures: npt.ArrayLike) -> tuple[float, float]:
    """The 95 % percentile interval of a figure from its value in each resample; NaN (undetermined) is left out."""
    low, high = np.nanquantile(np.asarray(figures, np.float64), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate(
    groups: Sequence[Sequence[Any]], figure: Callable[[list[Any]], float | None], *, seed: int
) -> Estimate | None:
    """A figure over all groups' members that is not a ratio of sums, with an interval from resampling whole groups.

    Args:
        groups: values that belong together, such as a pair's samples; empty groups are ignored.
        figure: computes the figure from a list of members; returns None if undetermined, and that resample is left out.
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
    low, high = percentiles(found) if found else (value, value)
    return Estimate(value, low, high, len(filled))


# -- figures ---------------------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float | None:
    """The mean. Returns None for no values."""
    return math.fsum(values) / len(values) if values else None


def agreement(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """The share of pairs whose two members are equal."""
    return mean([float(one == other) for one, other in pairs])


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa (1960) of two raters over nominal classes, unweighted.

    (agreement - expected) / (1 - expected), where `expected` is the agreement of two raters who choose at random with
    the same shares of classes. Returns None if both raters always gave the same single class.
    """
    observed = agreement(pairs)
    if observed is None:
        return None
    classes = {rating for pair in pairs for rating in pair}
    shares = [[sum(pair[who] == one for pair in pairs) / len(pairs) for who in (0, 1)] for one in classes]
    expected = math.fsum(first * second for first, second in shares)
    return None if math.isclose(expected, 1.0) else (observed - expected) / (1 - expected)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank. Returns None for fewer than 3 values or no variation."""
    from scipy import stats

    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.spearmanr(first, second).statistic)


def pooled_sd(groups: Sequence[Sequence[float]]) -> float | None:
    """The pooled standard deviation within groups, weighted by degrees of freedom. Returns None if no group has two."""
    squares = freedom = 0.0
    for group in groups:
        if len(group) > 1:
            centre = math.fsum(group) / len(group)
            squares += math.fsum((value - centre) ** 2 for value in group)
            freedom += len(group) - 1
    return math.sqrt(squares / freedom) if freedom else None


# -- tests -----------------------------------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float | None:
    """The p-value of the two-sided sign test. Returns None without wins and losses."""
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None


def mcnemar(*, lost: int, won: int) -> float:
    """The p-value of McNemar's exact one-sided test: the chance of `lost` or more losses among the changed verdicts."""
    from scipy import stats

    return float(stats.binomtest(lost, lost + won, alternative="greater").pvalue) if lost + won else 1.0
