"""The section on checks: the scores of every checkpoint and of the teacher; and the examples as texts.

This module does not know files or HTML.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lion_ray.analysis.examples import Example, Said
from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.words import DASH, count, decimal, signed

Figures = dict[str, Any] | None
"""``{value, low, high, n}``, as the checks' manifests have it."""


def checks(facts: Facts) -> Section | None:
    """The checks' scores by checkpoint, together and separately. Returns None if no checkpoint was checked."""
    scored = [(one.iteration, one.checks) for one in facts.results if one.checks]
    if not scored:
        return None
    last = max(iteration for iteration, _ in scored)
    together = {iteration: found["mean"] for iteration, found in scored}
    names = list(dict.fromkeys(name for _, found in scored for name in found["by_check"] or {}))
    figures = [_figure("checks", "All checks", together, last, facts.teacher_checks.get("mean"))]
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
        told = f"{count(teacher.get('scored'))} of {count(teacher.get('rows'))}"
        rows.append(("teacher", *_cells(teacher, names), DASH, DASH, DASH, told))
    headings = ("iteration", "all checks", *names, "gain", "gain since 0", "of the teacher's", "rows scored")
    lead = [
        "Every held-out answer was scored by checks, from 0 to 1, without a judge. A row's score is the mean over the "
        "checks; the figures are means over rows with 95 % bootstrap intervals, gains and shares over the rows that "
        "both have. Dashed: the teacher's own score."
    ]
    left_out: Counter[str] = Counter()
    for _, found in scored:
        left_out.update({**(found["unanswered"] or {}), **(found["quarantined"] or {})})
    if left_out:
        reasons = "; ".join(f"{number} × {reason}" for reason, number in left_out.most_common(5))
        lead.append(f"Left out of these scores, over all checkpoints: {reasons}.")
    return Section("checks-section", "Checks", lead, figures, [Table(headings, rows)], columns=2)


def examples_said(one: Example) -> dict[str, Any]:
    """An example as texts."""
    return {"instruction": one.instruction, "answers": [_said(said) for said in one.answers]}


def _said(said: Said) -> tuple[str, str, str]:
    each = ", ".join(f"{name} {decimal(score, 2)}" for name, score in said.by_check.items())
    return said.who, f"no answer: {said.problem}" if said.problem else said.text, f"checks: {each}" if each else ""


def _figure(key: str, title: str, values: dict[int, Figures], last: int, teacher: Figures) -> Figure:
    points = [Point(k, *((one["value"], one["low"], one["high"]) if one else (None,))) for k, one in values.items()]
    reference = ("teacher", teacher["value"]) if teacher else None
    drawn = charts.lines(
        key, f"{title} by iteration", "mean score", [Series("student", "s1", points)], _two, last, reference=reference
    )
    rows = [(str(k), _ranged(one)) for k, one in values.items()] + [("teacher", _ranged(teacher))]
    return Figure(title, drawn, Table(("iteration", "mean score"), rows), "" if drawn else "Nothing could be scored.")


def _cells(found: dict[str, Any], names: list[str]) -> list[str]:
    return [_ranged(found.get("mean")), *(_ranged((found.get("by_check") or {}).get(name)) for name in names)]


def _ranged(value: Figures) -> str:
    return f"{_two(value['value'])} [{_two(value['low'])}, {_two(value['high'])}]" if value else DASH


def _change(value: Figures) -> str:
    return f"{signed(value['value'], 2)} [{signed(value['low'], 2)}, {signed(value['high'], 2)}]" if value else DASH


def _share(value: Figures) -> str:
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]" if value else DASH


def _two(value: float | None) -> str:
    return decimal(value, 2)
