"""Statistics of a checkpoint's check scores: means, gains and the share of the teacher's score, with intervals.

Invariants:
- Only rows that every check could score count; a comparison uses the rows scored on both sides.
- Intervals are percentile bootstraps over rows, paired for comparisons (`core.statistics`).
- A value without rows is None.

This module does not know files or Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from lion_ray.core.records import CHECKED, OK, QUARANTINED, references, table
from lion_ray.core.statistics import Estimate, percentiles, resampled_sums
from lion_ray.discrimination.checks import Check, apply_checks, mean_score

UNANSWERED = "no answer"
"""The beginning of the reason for a row whose answer is quarantined, so that no check was applied."""

Scores = Mapping[str, float]
"""By row's id."""


def checked_rows(checks: Sequence[Check], instructions: pa.Table, answers: pa.Table) -> pa.Table:
    """The checks' scores of ANSWER rows to INSTRUCTION rows, as CHECKED rows in the same order."""
    rows = zip(instructions["id"].to_pylist(), instructions["text"].to_pylist(), references(instructions), strict=True)
    answered = answers.select(["id", "text", "status", "reason"]).to_pylist()
    return table((_checked(checks, *row, answer) for row, answer in zip(rows, answered, strict=True)), CHECKED)


def _checked(
    checks: Sequence[Check], row: str, instruction: str, reference: str | None, answer: Mapping[str, Any]
) -> dict[str, Any]:
    if answer["id"] != row:
        raise ValueError(f"row {row} has the answer to {answer['id']}")
    if answer["status"] != OK:
        return {"id": row, "status": QUARANTINED, "reason": f"{UNANSWERED}: {answer['reason']}", "scores": []}
    scores = apply_checks(checks, instruction, answer["text"], reference)
    problem = next((score.problem for score in scores if score.problem), None)
    return {
        "id": row,
        "status": QUARANTINED if problem else OK,
        "reason": problem,
        "score": mean_score(scores),
        "scores": [{"check": score.check, "value": score.value} for score in scores],
    }


def row_scores(rows: pa.Table) -> dict[str, float]:
    """Each scored row's mean over the checks, by id."""
    return {
        row: score
        for row, status, score in zip(*(rows[name].to_pylist() for name in ("id", "status", "score")), strict=True)
        if status == OK
    }


def describe(
    rows: pa.Table,
    names: Iterable[str],
    *,
    seed: int,
    teacher: pa.Table | None = None,
    before: pa.Table | None = None,
    base: pa.Table | None = None,
) -> dict[str, Any]:
    """The statistics of a checkpoint, or of the teacher, as JSON.

    Args:
        rows: CHECKED rows; so are `teacher`, `before` (the previous checkpoint) and `base` (the base model).
        names: the checks' names, in order.

    Returns:
        ``mean`` and ``by_check`` (one value each), ``gain`` and ``gain_over_base`` (differences of means), ``teacher``
        (the teacher's own mean) and ``share_of_teacher`` (the ratio of the means). Each value is
        ``{value, low, high, n}``, or None if it was not measured.
    """
    scores = row_scores(rows)
    reference = None if teacher is None else row_scores(teacher)
    return {
        "mean": _json(mean_of(list(scores.values()), seed)),
        "by_check": {name: _json(mean_of(values, seed)) for name, values in _by_check(rows, names).items()},
        "gain": None if before is None else _json(gain_of(row_scores(before), scores, seed)),
        "gain_over_base": None if base is None else _json(gain_of(row_scores(base), scores, seed)),
        "teacher": None if reference is None else _json(mean_of(list(reference.values()), seed)),
        "share_of_teacher": None if reference is None else _json(share_of(reference, scores, seed)),
    }


def counts(rows: pa.Table) -> dict[str, Any]:
    """The number of scored rows, and the reasons for the others, without the details in parentheses."""
    reasons = Counter(reason.split(" (")[0] for reason in rows["reason"].to_pylist() if reason)
    unanswered = {reason: n for reason, n in reasons.items() if reason.startswith(UNANSWERED)}
    return {
        "rows": rows.num_rows,
        "scored": rows.num_rows - reasons.total(),
        "unanswered": unanswered,
        "quarantined": {reason: n for reason, n in reasons.most_common() if reason not in unanswered},
    }


def nothing_scored(rows: pa.Table) -> str | None:
    """Why no answer could be scored, in one line. Returns None if one was, or if there were no answers."""
    reasons = [reason for reason in rows["reason"].to_pylist() if reason and not reason.startswith(UNANSWERED)]
    if not reasons or OK in rows["status"].to_pylist():
        return None
    return "; ".join(f"{count} × {reason}" for reason, count in Counter(reasons).most_common(3))


def mean_of(values: Sequence[float], seed: int) -> Estimate | None:
    """The mean of rows' scores."""
    if not values:
        return None
    low, high = percentiles(resampled_sums([values], seed)[0] / len(values))
    return Estimate(float(np.mean(values)), low, high, len(values))


def gain_of(before: Scores, after: Scores, seed: int) -> Estimate | None:
    """The mean change over the rows in both."""
    return mean_of([after[row] - before[row] for row in after if row in before], seed)


def share_of(teacher: Scores, student: Scores, seed: int) -> Estimate | None:
    """The student's mean divided by the teacher's, over the rows in both. Returns None if the teacher's sum is 0."""
    both = [row for row in student if row in teacher]
    reference, candidate = ([scores[row] for row in both] for scores in (teacher, student))
    if not both or not sum(reference) > 0:
        return None
    sums = resampled_sums([reference, candidate], seed)
    # A resample in which the teacher's sum is 0 has no share.
    shares = np.divide(sums[1], sums[0], out=np.full(sums.shape[1], np.nan), where=sums[0] > 0)
    return Estimate(sum(candidate) / sum(reference), *percentiles(shares), len(both))


def _by_check(rows: pa.Table, names: Iterable[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for status, scores in zip(rows["status"].to_pylist(), rows["scores"].to_pylist(), strict=True):
        for score in scores if status == OK else ():
            found[score["check"]].append(score["value"])
    return found


def _json(figure: Estimate | None) -> dict[str, Any] | None:
    return None if figure is None else asdict(figure)
