"""The section on checks (scores of every checkpoint and of the teacher), and the texts of the examples.

This module does not know files or HTML.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lion_ray.analysis.examples import Example, ExampleAnswer
from lion_ray.core.iteration_result import DASH
from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.words import count, decimal, signed

Interval = dict[str, Any] | None
"""``{value, low, high, n}``, as in the checks' manifests."""


def checks(facts: Facts) -> Section | None:
    """The checks' scores by checkpoint, overall and separately. Returns None if no checkpoint was checked."""
    scored = [(one.iteration, one.checks) for one in facts.results if one.checks]
    if not scored:
        return None
    last = max(iteration for iteration, _ in scored)
    overall = {iteration: found["mean"] for iteration, found in scored}
    names = list(dict.fromkeys(name for _, found in scored for name in found["by_check"] or {}))
    figures = [_figure("checks", "All checks", overall, last, facts.teacher_checks.get("mean"))]
    for number, name in enumerate(names if len(names) > 1 else ()):
        values = {iteration: (found["by_check"] or {}).get(name) for iteration, found in scored}
        teacher = (facts.teacher_checks.get("by_check") or {}).get(name)
        figures.append(_figure(f"check-{number}", name, values, last, teacher))
    rows = [
        (
            str(iteration) if iteration else "0\u00a0(base\u00a0model)",
            *_cells(found, names),
            _change(found["gain"]),
            _change(found["gain_over_base"]),
            _share(found["share_of_teacher"]),
            f"{count(found['scored'])} of {count(found['rows'])}",
        )
        for iteration, found in scored
    ]
    if facts.teacher_checks:
        teacher = facts.teacher_checks
        scored_rows = f"{count(teacher.get('scored'))} of {count(teacher.get('rows'))}"
        rows.append(("teacher", *_cells(teacher, names), DASH, DASH, DASH, scored_rows))
    headings = ("iteration", "all checks", *names, "gain", "gain over base", "share of teacher's", "rows scored")
    lead = [
        "Every held-out answer was scored by checks, from 0 to 1, without a judge. A row's score is the mean over the "
        "checks. The figures are means over rows with 95 % bootstrap intervals; gains and shares use the rows that "
        "were scored for both. Dashed: the teacher's own score."
    ]
    left_out: Counter[str] = Counter()
    for _, found in scored:
        left_out.update({**(found["unanswered"] or {}), **(found["quarantined"] or {})})
    if left_out:
        reasons = "; ".join(f"{number} × {reason}" for reason, number in left_out.most_common(5))
        lead.append(f"Answers without a score, over all checkpoints: {reasons}.")
    return Section("checks-section", "Checks", lead, figures, [Table(headings, rows)], columns=2)


def example_texts(one: Example) -> dict[str, Any]:
    """An example's texts for the page."""
    return {"instruction": one.instruction, "answers": [_answer_texts(answer) for answer in one.answers]}


def _answer_texts(answer: ExampleAnswer) -> tuple[str, str, str]:
    each = ", ".join(f"{name} {decimal(score, 2)}" for name, score in answer.by_check.items())
    return (
        answer.who,
        f"no answer: {answer.problem}" if answer.problem else answer.text,
        f"checks: {each}" if each else "",
    )


def _figure(key: str, title: str, values: dict[int, Interval], last: int, teacher: Interval) -> Figure:
    points = [Point(k, *((one["value"], one["low"], one["high"]) if one else (None,))) for k, one in values.items()]
    reference = ("teacher", teacher["value"]) if teacher else None
    drawn = charts.lines(
        key,
        f"{title} by iteration",
        "mean score",
        [Series("student", "s1", points)],
        _two_decimals,
        last,
        reference=reference,
    )
    rows = [(str(k), _with_interval(one)) for k, one in values.items()] + [("teacher", _with_interval(teacher))]
    return Figure(title, drawn, Table(("iteration", "mean score"), rows), "" if drawn else "Nothing could be scored.")


def _cells(found: dict[str, Any], names: list[str]) -> list[str]:
    return [
        _with_interval(found.get("mean")),
        *(_with_interval((found.get("by_check") or {}).get(name)) for name in names),
    ]


def _with_interval(value: Interval) -> str:
    return (
        f"{_two_decimals(value['value'])} [{_two_decimals(value['low'])}, {_two_decimals(value['high'])}]"
        if value
        else DASH
    )


def _change(value: Interval) -> str:
    return f"{signed(value['value'], 2)} [{signed(value['low'], 2)}, {signed(value['high'], 2)}]" if value else DASH


def _share(value: Interval) -> str:
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]" if value else DASH


def _two_decimals(value: float | None) -> str:
    return decimal(value, 2)
