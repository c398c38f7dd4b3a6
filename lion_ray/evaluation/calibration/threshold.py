"""The threshold that a judge's measured noise supports.

Invariants:
- It is recommended with its reasoning, never applied.
- Noise is estimated in two ways: as a normal distribution with the measured deviation, and as observed, because it is
  often heavy-tailed.

d is score(answer 1) - score(answer 2), the mean of both orders. This module does not know judges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from lion_ray.discrimination.scores import is_hard

TAUS = (0.5, 1.0, 1.5, 2.0)
"""Thresholds always in the table; the recommended and the configured one are added."""
STEP = 0.5
"""The mean of two integer differences is a multiple of one half, and so is a threshold."""
HIGHEST_TAU = 9.0


@dataclass(frozen=True, slots=True)
class TauLine:
    """The effect of noise at one threshold."""

    tau: float
    normal: float
    """The probability that normal noise with the measured standard deviation reaches it."""
    measured: float
    """The share of observed noise that reaches it: differences of two samples' verdicts on one pair, over sqrt(2)."""
    changed: float
    """The share of pairs of samples that put one row into different classes (hard, easy)."""
    hard: float
    """The share of hard verdicts."""


@dataclass(frozen=True, slots=True)
class TauAdvice:
    """The threshold that the measured noise supports."""

    alpha: float
    sd: float
    """The standard deviation within a pair, of the mean of both orders."""
    recommended: float | None
    configured: float | None
    lines: tuple[TauLine, ...]
    reasoning: str


def advise(by_case: Sequence[Sequence[float]], sd: float, *, alpha: float, configured: float | None) -> TauAdvice:
    """The smallest threshold that noise alone reaches in at most `alpha` of the cases.

    Args:
        by_case: the verdicts' d of each pair, one for each sample.
        sd: their `pooled_sd`.
    """
    # A difference of two samples has twice the variance of one; each counts with both signs.
    noise = [(a - b) / math.sqrt(2) for group in by_case for a, b in itertools.permutations(group, 2)]
    verdicts = [d for group in by_case for d in group]

    def line(tau: float) -> TauLine:
        changes = [
            is_hard(a, 0.0, tau) != is_hard(b, 0.0, tau)
            for group in by_case
            for a, b in itertools.combinations(group, 2)
        ]
        return TauLine(
            tau,
            normal=1 - NormalDist(0, sd).cdf(tau) if sd else 0.0,
            measured=sum(one >= tau for one in noise) / len(noise),
            changed=sum(changes) / len(changes),
            hard=sum(is_hard(d, 0.0, tau) for d in verdicts) / len(verdicts),
        )

    steps = [line(STEP * count) for count in range(1, round(HIGHEST_TAU / STEP) + 1)]
    fits = next((one for one in steps if max(one.normal, one.measured) <= alpha), None)
    wanted = {*TAUS, *([fits.tau] if fits else []), *([configured] if configured is not None else [])}
    return TauAdvice(
        alpha=alpha,
        sd=sd,
        recommended=fits.tau if fits else None,
        configured=configured,
        lines=tuple(line(tau) for tau in sorted(wanted)),
        reasoning=_reasoning(sd, fits, alpha, line(configured) if configured is not None else None),
    )


def _reasoning(sd: float, fits: TauLine | None, alpha: float, configured: TauLine | None) -> str:
    text = (
        f"This judge's repeated verdicts on the same pair have a standard deviation of {sd:.2f} points (mean of both "
        "orders). "
    )
    if fits is None:
        return text + f"No threshold up to {HIGHEST_TAU:g} exceeds that noise in {1 - alpha:.0%} of the cases."
    text += (
        f"At tau = {fits.tau:g}, noise alone would make a row without a true gap hard in {fits.normal:.1%} of the "
        f"cases if the noise is normal, and in {fits.measured:.1%} by the observed differences: {fits.tau:g} is the "
        f"smallest threshold, in steps of {STEP:g}, with at most {alpha:.0%} by both estimates."
    )
    if configured is not None:
        worst = max(configured.normal, configured.measured)
        text += f" The configured tau = {configured.tau:g} has {worst:.1%}; it is not changed."
    return text
