"""The section on learning: rows that changed sides, and the diversity of new rows.

This module does not know files or HTML.
"""

from __future__ import annotations

from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.words import count, decimal, percent, share, whole_percent


def learning(facts: Facts) -> Section:
    """Rows that changed sides, and the diversity of new rows."""
    rows = [(f"iteration {step.before} → {step.after}", len(step.forgotten), len(step.learned)) for step in facts.steps]
    steps = Table(
        ("step", "hard → easy", "easy → hard", "still hard", "still easy", "not judged twice", "mean gap"),
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
        "Rows that changed sides",
        charts.diverging("sides", "Rows that changed sides", rows),
        steps,
        "Verdicts are noisy, so some rows cross τ both ways by chance alone; the difference is what counts."
        if rows
        else "Not measured: it takes two judged iterations.",
    )
    pools = facts.diversity
    last = max((one.pool for one in pools), default=0)
    distinct = [
        Series(f"distinct {n}-grams", f"s{n}", [Point(one.pool, one.distinct[n]) for one in pools]) for n in (1, 2, 3)
    ]
    near = [
        Series("in earlier pools", "s1", [Point(one.pool, one.nearest_before) for one in pools]),
        Series("among themselves", "s2", [Point(one.pool, one.nearest_own) for one in pools]),
    ]
    table = Table(
        ("pool", "rows", "looked at", "distinct-1", "distinct-2", "distinct-3", "nearest before", "nearest own"),
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
    looked = f"Looked at {pools[0].sample:,} rows of each pool, as the figures depend on how many. " if pools else ""
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
            looked + "0 is your own pool, k what iteration k wrote. Higher is more varied.",
        ),
        Figure(
            "Diversity: nearest neighbour",
            charts.lines(
                "near", "Nearest neighbour of each pool", "mean ROUGE-L F", near, lambda v: decimal(v, 2), last, "pool"
            ),
            table,
            "How close a new row comes to the most similar one, on average. Lower is more varied.",
        ),
    ]
    return Section("learning", "What was learned, what was forgotten", (), figures)
