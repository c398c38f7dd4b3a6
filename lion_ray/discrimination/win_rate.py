"""How often the student's answer beats the teacher's on held-out rows: plain, at equal length, and corrected for the
judge's own errors.

Sources: length-controlled win rates as in AlpacaEval 2 (arXiv 2404.04475), without its term for each instruction; the
correction is Rogan and Gladen's (American Journal of Epidemiology 107, 1978), its interval counts the errors of both
samples and is the adjusted one of arXiv 2511.21140.

Invariant: a figure that the rows do not determine is None. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core.records import OK
from lion_ray.core.statistics import RESAMPLES, Estimate, percentiles, resampled_sums
from lion_ray.discrimination.split import gaps

Floats = npt.NDArray[np.float64]

RIDGE = 0.1
"""Penalty on both coefficients: without it, a student that wins every row would have an infinite one."""
NEWTON_STEPS = 30
AT_ONCE = 4_000_000
"""The most resampled probabilities held in memory at once."""
Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


def outcomes(gap: Floats) -> Floats:
    """The student's outcome by row: 1 won, 0.5 tied, 0 lost; `gap` is the teacher's lead, without NaN."""
    return np.where(np.isclose(gap, 0), 0.5, gap < 0).astype(np.float64)


def win_rate(gap: Floats, teacher: Floats, student: Floats, *, seed: int) -> dict[str, Any] | None:
    """Wins, ties and losses, the win rate (ties count half) and the length-controlled one.

    Args:
        gap: the teacher's lead in each row, in points of the judge; NaN if it is unknown.
        teacher, student: the answers' lengths in characters.
    """
    known = ~np.isnan(gap)
    if not known.any():
        return None
    worth = outcomes(gap[known])
    low, high = percentiles(resampled_sums([worth], seed)[0] / len(worth))
    return {
        **{name: int((worth == value).sum()) for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))},
        "rate": asdict(Estimate(float(worth.mean()), low, high, len(worth))),
        "length_controlled": asdict(length_controlled(worth, (student - teacher)[known], seed=seed)),
    }


def length_controlled(worth: Floats, longer: Floats, *, seed: int) -> Estimate:
    """The win rate that a logistic regression predicts for answers of equal length.

    log-odds(win) = a + b tanh(longer / its standard deviation). The interval is a bootstrap over rows.

    Args:
        worth: 1, 0.5 or 0 for each row.
        longer: by how many characters the student's answer is longer.
    """
    spread = float(longer.std())
    x = np.tanh(longer / spread) if spread else np.zeros_like(longer)
    value = float(_at_equal_length(worth, x, np.ones((1, len(worth))))[0])
    rng, found = np.random.default_rng(seed), []
    step = max(1, AT_ONCE // len(worth))
    for start in range(0, RESAMPLES, step):
        counts = rng.multinomial(len(worth), np.full(len(worth), 1 / len(worth)), size=min(step, RESAMPLES - start))
        found.append(_at_equal_length(worth, x, counts.astype(np.float64)))
    return Estimate(value, *percentiles(np.concatenate(found)), len(worth))


def _at_equal_length(worth: Floats, x: Floats, counts: Floats) -> Floats:
    """The predicted win rate at x = 0 for each row of weights [R, rows], by Newton's method."""
    a = b = np.zeros(len(counts))
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * x, -30, 30)))
        gap, curve = counts * (worth - p), counts * p * (1 - p)
        g0, g1 = gap.sum(1) - RIDGE * a, gap @ x - RIDGE * b
        h00, h01, h11 = curve.sum(1) + RIDGE, curve @ x, curve @ (x * x) + RIDGE
        determinant = h00 * h11 - h01**2
        a = a + (h11 * g0 - h01 * g1) / determinant
        b = b + (h00 * g1 - h01 * g0) / determinant
    return np.asarray(1 / (1 + np.exp(-a)), np.float64)


@dataclass(frozen=True, slots=True)
class JudgeErrors:
    """How reliably a judge recognises the better answer, from labelled pairs."""

    sensitivity: float
    """The share of answers labelled better that it calls better."""
    better: int
    """Labelled better."""
    specificity: float
    """The share of answers not labelled better that it does not call better."""
    others: int

    @classmethod
    def of(cls, confusion: Mapping[str, Mapping[str, int]]) -> JudgeErrors | None:
        """From a calibration's confusion of labels and winners (1, 2 or tie); each pair counts for both its answers.

        Returns None without pairs of both kinds.
        """
        called = {True: 0, False: 0}
        whole = {True: 0, False: 0}
        for label, row in confusion.items():
            for answer in ("1", "2"):
                whole[label == answer] += sum(row.values())
                called[label == answer] += row.get(answer, 0)
        if not all(whole.values()):
            return None
        return cls(called[True] / whole[True], whole[True], 1 - called[False] / whole[False], whole[False])


def corrected(share: float, rows: int, judge: JudgeErrors) -> Estimate | None:
    """The true share behind a share that a judge saw in `rows` rows, with its 95 % interval, within 0 to 1.

    (share + specificity - 1) / (sensitivity + specificity - 1). Returns None if the judge is no better than chance.
    """
    if judge.sensitivity + judge.specificity <= 1 or not rows:
        return None
    value = (share + judge.specificity - 1) / (judge.sensitivity + judge.specificity - 1)
    # The interval is about adjusted shares, each towards the middle of its range.
    n, m0, m1 = rows + Z**2, judge.others + 2, judge.better + 2
    p = (rows * share + Z**2 / 2) / n
    q0, q1 = (judge.others * judge.specificity + 1) / m0, (judge.better * judge.sensitivity + 1) / m1
    power = q0 + q1 - 1
    if power <= 0:
        return None
    middle = (p + q0 - 1) / power
    errors = (1 - middle) ** 2 * q0 * (1 - q0) / m0, middle**2 * q1 * (1 - q1) / m1
    shift = 2 * Z**2 * (-(1 - middle) * q0 * (1 - q0) / m0 + middle * q1 * (1 - q1) / m1) / power**2
    width = Z * math.sqrt(p * (1 - p) / n + sum(errors)) / power
    low, high = (min(1.0, max(0.0, middle + shift + side)) for side in (-width, width))
    return Estimate(min(1.0, max(0.0, value)), low, high, rows)


def paired_gain(before: Mapping[str, float], after: Mapping[str, float], *, seed: int) -> Estimate | None:
    """The mean rise of a score from one student to the next over the rows that both have, with its interval."""
    rises = np.array([after[row] - before[row] for row in sorted(before.keys() & after.keys())], np.float64)
    if not len(rises):
        return None
    return Estimate(float(rises.mean()), *percentiles(resampled_sums([rises], seed)[0] / len(rises)), len(rises))


def heldout_figures(
    verdicts: pa.Table, teacher: pa.Table, student: pa.Table, before: pa.Table | None, *, seed: int
) -> dict[str, Any]:
    """The win rate, and the gain in the judge's points over the student of the iteration before, for a manifest.

    Args:
        verdicts, teacher, student: VERDICT and ANSWER rows of the held-out set.
        before: the VERDICT rows of the iteration before, if it was judged.
    """
    judged = verdicts.filter(pc.equal(verdicts["status"], OK))
    lengths = []
    for answers in (teacher, student):
        known = dict(zip(answers["id"].to_pylist(), pc.utf8_length(answers["text"]).to_pylist(), strict=True))
        lengths.append(np.array([known[row] for row in judged["id"].to_pylist()], np.float64))
    gain = None if before is None else paired_gain(_scores(before), _scores(judged), seed=seed)
    return {
        "win_rate": win_rate(gaps(judged), *lengths, seed=seed),
        "gain": None if gain is None else asdict(gain),
    }


def _scores(verdicts: pa.Table) -> dict[str, float]:
    rows = zip(verdicts["id"].to_pylist(), verdicts["student_score"].to_pylist(), strict=True)
    return {row: score for row, score in rows if score is not None}
