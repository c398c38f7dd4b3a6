"""The section on learning: rows that crossed τ, and the diversity of new rows.

This module does not know files or HTML.
"""

from __future__ import annotations

from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.words import count, decimal, percent, share, whole_percent


def learning(facts: Facts) -> Section:
    """Rows that crossed τ, and the diversity of new rows."""
    rows = [(f"iteration {step.before} → {step.after}", len(step.forgotten), len(step.learned)) for step in facts.steps]
    steps = Table(
        ("step", "hard → easy", "easy → hard", "still hard", "still easy", "not judged in both", "mean gap"),
        [
            (
                f"{step.before} → {step.after}",
                share(len(step.learned), step.judged),
                share(len(step.forgotten), step.judged),
                count(step.still_hard),
                count(step.still_easy),
                count(step.unmeasured),
                f"{decimal(step.gap_before, 2)} → {decimal(step.gap_after, 2)}",
            )
            for step in facts.steps
        ],
    )
    sides = Figure(
        "Rows that crossed τ",
        charts.diverging("sides", "Rows that crossed τ", rows),
        steps,
        "Verdicts are noisy, so some rows cross τ both ways by chance; the difference of the two numbers counts."
        if rows
        else "Not measured: this needs two judged iterations.",
    )
    pools = facts.diversity
    last = max((one.pool for one in pools), default=0)
    distinct = [
        Series(f"distinct {n}-grams", f"s{n}", [Point(one.pool, one.distinct[n]) for one in pools]) for n in (1, 2, 3)
    ]
    near = [
        Series("in earlier pools", "s1", [Point(one.pool, one.nearest_before) for one in pools]),
        Series("in the same pool", "s2", [Point(one.pool, one.nearest_own) for one in pools]),
    ]
    table = Table(
        ("pool", "rows", "sample", "distinct-1", "distinct-2", "distinct-3", "nearest in earlier", "nearest in own"),
        [
            (
                "yours" if not one.pool else f"iteration {one.pool}",
                count(one.rows),
                count(one.sample),
                *(percent(one.distinct[n]) for n in (1, 2, 3)),
                decimal(one.nearest_before, 2),
                decimal(one.nearest_own, 2),
            )
            for one in pools
        ],
    )
    note = "Pool 0 is yours, pool k was generated in iteration k. Higher is more diverse."
    if pools:
        note = f"Measured on {pools[0].sample:,} rows of each pool, because the figures depend on their number. {note}"
    figures = [
        sides,
        Figure(
            "Diversity: distinct n-grams",
            charts.lines(
                "distinct",
                "Distinct n-grams of each pool",
                "share of all n-grams",
                distinct,
                whole_percent,
                last,
                "pool",
            ),
            table,
            note,
        ),
        Figure(
            "Diversity: nearest neighbour",
            charts.lines(
                "near", "Nearest neighbour of each pool", "mean ROUGE-L F", near, lambda v: decimal(v, 2), last, "pool"
            ),
            table,
            "Mean similarity of a new row to the most similar other one. Lower is more diverse.",
        ),
    ]
    return Section("learning", "Learned and forgotten", (), figures)
