"""One iteration's result, and how its values are written as text.

Invariants:
- A value that was not measured is None and shown as a dash, never as 0.

This module does not know run folders: `pipeline.results` reads results from one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

DASH = "–"
"""A value that was not measured."""


@dataclass(frozen=True, slots=True)
class IterationResult:
    """One iteration; number 0 is the base model."""

    iteration: int
    train_rows: int | None = None
    pairs: int | None = None
    """Pairs of a better and a worse answer, trained on in addition to these rows (`preference`)."""
    cache_rows: int | None = None
    hard: int | None = None
    easy: int | None = None
    quarantined: dict[str, int] = field(default_factory=dict)
    """By stage and reason: rows that failed, and were neither trained on nor scored."""
    filtered: dict[str, int] = field(default_factory=dict)
    """By stage and reason: rows that a filter dropped; none of them failed."""
    generation: dict[str, Any] = field(default_factory=dict)
    """By kind: requests, accepted, rejected by reason."""
    loss_before: float | None = None
    """Mean cross-entropy of held-out teacher answers, nats per token, float32."""
    loss_after: float | None = None
    loss_served: float | None = None
    """The same with the weights as the engines hold them (student.dtype)."""
    loss_after_rounds: float | None = None
    """The same as loss_after, at the end of the on-policy rounds."""
    rewards: list[dict[str, Any]] | None = None
    """Of each on-policy round: `reward` (the mean of the student's answers), `criteria` and `criteria_untelling`,
    `answers` and `answers_learned`, and `engine_gap_mean` (nats per token)."""
    quality_cache: dict[str, float] | None = None
    """Sum of student scores / sum of teacher scores on the Cache Pool, with a 95 % bootstrap interval."""
    quality_heldout: dict[str, float] | None = None
    win_rate: dict[str, Any] | None = None
    """On the held-out set: `wins`, `ties`, `losses` of the student against the teacher, `rate` (ties count half) and
    `length_controlled`, each with its interval; if the judge was calibrated, `wins_corrected`, `losses_corrected`."""
    gain_heldout: dict[str, float] | None = None
    """The mean rise of the student's score over the iteration before, in the judge's points, with its interval."""
    checks: dict[str, Any] | None = None
    """The checks' scores of the held-out answers, each value as {value, low, high, n} or null: `mean` (over checks,
    then over rows), `by_check`, `gain` (over the previous checkpoint), `gain_over_base`, `teacher` (its own mean),
    `share_of_teacher` (a ratio); `rows`, `scored`, `unanswered` and `quarantined` (by reason)."""
    price_of_gain: dict[str, Any] | None = None
    """The student's gain over the previous one, and its price (see `price_of_gain`)."""
    judges: dict[str, int] = field(default_factory=dict)
    """The models that the referee's endpoint reported, and the number of rows that each judged."""
    canaries: dict[str, Any] | None = None
    """On the canary pairs: `verdicts`, `right`, `mean_gap`, and the `drift` (see `discrimination.drift`)
    since `against`."""
    warnings: list[str] = field(default_factory=list)
    """Why this iteration's verdicts may not be comparable with others."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage: seconds, calls, prompt and completion tokens."""
    model: str | None = None
    """The checkpoint's folder."""

    @property
    def requested(self) -> int:
        """Candidates for new instructions, of all kinds."""
        return sum(kind["requests"] for kind in self.generation.values())

    @property
    def accepted(self) -> int:
        """New instructions, of all kinds."""
        return sum(kind["accepted"] for kind in self.generation.values())

    def sentence(self) -> str:
        """One line for a log."""
        parts = [f"iteration {self.iteration}" if self.iteration else "the base model"]
        if self.loss_after is not None:
            parts.append(f"held-out loss {number_words(self.loss_before)} → {number_words(self.loss_after)}")
        if self.quality_heldout:
            parts.append(f"relative quality {quality_words(self.quality_heldout)} on held-out")
        if self.checks is not None and self.checks["mean"]:
            parts.append(f"checks {checks_words(self.checks)}")
        if self.hard is not None:
            parts.append(f"{self.hard} hard, {self.easy} easy")
        if self.generation:
            parts.append(f"{self.accepted} new instructions")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def checks_words(checks: dict[str, Any], of: str = " of the teacher's") -> str:
    """The checks' mean with its interval, and the share of the teacher's: 0.71 [0.62, 0.79], 88% of the teacher's."""
    mean, share = checks["mean"], checks["share_of_teacher"]
    if not mean:
        return DASH
    words = f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"
    return words + (f", {share['value']:.0%}{of}" if share else "")


def number_words(value: float | None) -> str:
    """A whole number, or three decimal places."""
    if value is None:
        return DASH
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


def quality_words(value: dict[str, float] | None) -> str:
    """A relative quality with its interval, in per cent."""
    return DASH if not value else f"{value['ratio']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
