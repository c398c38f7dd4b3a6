"""Sections on the results: loss and quality, score pairs, the flow of rows.

This module does not know files or HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from lion_ray.core.iteration_result import DASH, IterationResult, checks_words, quality_words
from lion_ray.pipeline.results_table import CHECKS_HEADING, measured
from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.pictures import Group, flow
from lion_ray.report.rewards import rewards, win_rates
from lion_ray.report.words import count, decimal, signed, whole_percent

MANY_PAIRS = 400
"""With more distinct score pairs than this, the scatter rounds scores to half points."""
REASONS = 5
"""Number of rejection reasons with their own ribbon."""
ORIGINS = {"seed": "your instructions", "hard": "generated from hard ones", "easy": "generated from easy ones"}


def by_iteration(facts: Facts) -> Table:
    """One row per iteration."""
    rows = []
    for one in facts.results:
        rows.append(
            (
                str(one.iteration) if one.iteration else "0\u00a0(base\u00a0model)",
                count(one.train_rows) + (f" + {one.pairs:,} pairs" if one.pairs else ""),
                count(one.cache_rows),
                DASH if one.hard is None else f"{count(one.hard)} / {count(one.easy)}",
                count(one.accepted) if one.generation else DASH,
                f"{one.accepted / one.requested:.0%} of {one.requested:,}" if one.requested else DASH,
                DASH if one.loss_after is None else f"{decimal(one.loss_before)} → {decimal(one.loss_after)}",
                quality_words(one.quality_heldout),
                quality_words(one.quality_cache),
                checks_words(one.checks, of="") if one.checks else DASH,
            )
        )
    headings = (
        "iteration",
        "trained on",
        "judged",
        "hard / easy",
        "new rows",
        "accepted",
        "loss",
        "quality, held-out",
        "quality, cache",
        CHECKS_HEADING,
    )
    return Table(*measured(headings, rows))


def better(facts: Facts) -> Section:
    """Loss and relative quality by iteration."""
    last = max((one.iteration for one in facts.results), default=0)
    losses = _losses(facts.results)
    heldout = [Point(one.iteration, *_parts(one.quality_heldout)) for one in facts.results]
    cache = [Point(one.iteration, *_parts(one.quality_cache)) for one in facts.results if one.iteration]
    loss = Figure(
        "Held-out loss",
        charts.lines(
            "loss",
            "Held-out loss by iteration",
            "nats per token",
            [Series("held-out teacher answers", "s1", losses)],
            decimal,
            last,
        ),
        Table(("iteration", "loss, nats per token"), [(str(p.x), decimal(p.y)) for p in losses], text_columns=0),
        "Not measured: there is no held-out set, or no fine-tuning is done yet."
        if all(p.y is None for p in losses)
        else "Mean cross-entropy of held-out teacher answers. Lower is better. No interval is measured.",
    )
    quality = Figure(
        "Relative quality",
        charts.lines(
            "quality",
            "Relative quality by iteration",
            "student's scores / teacher's",
            [Series("held-out", "s1", heldout), Series("Cache Pool (grows)", "s2", cache)],
            whole_percent,
            last,
        ),
        Table(
            ("iteration", "held-out", "Cache Pool"),
            [
                (str(one.iteration), quality_words(one.quality_heldout), quality_words(one.quality_cache))
                for one in facts.results
            ],
            text_columns=0,
        ),
        "Sum of the student's scores over the sum of the teacher's, with 95 % bootstrap intervals. Higher is better."
        if any(p.y is not None for p in (*heldout, *cache))
        else "Not measured: nothing is judged yet.",
    )
    lead = [*_gain_text(facts), *price_texts(facts)]
    return Section(
        "better", "Did the student improve?", lead, [loss, quality, *win_rates(facts), *rewards(facts)], columns=2
    )


def scatter(facts: Facts) -> Section:
    """Teacher's score against student's, one figure for each judged iteration."""
    gaps = facts.gaps
    figures = []
    for column, iteration in enumerate(gaps.iterations):
        known = ~np.isnan(gaps.values[:, column])
        pairs = np.column_stack([gaps.teacher[known, column], gaps.student[known, column]])
        rounded = len(pairs) > 0 and len(np.unique(pairs, axis=0)) > MANY_PAIRS
        if rounded:
            pairs = np.round(pairs * 2) / 2
        unique, sizes = np.unique(pairs, axis=0, return_counts=True)
        points = [(float(t), float(s), int(rows)) for (t, s), rows in zip(unique, sizes, strict=True)]
        hard = int(gaps.hard()[:, column].sum())
        largest = sorted(points, key=lambda point: -point[2])[:20]
        figures.append(
            Figure(
                f"Iteration {iteration}: {hard:,} hard, {int(known.sum()) - hard:,} easy",
                charts.scatter(f"scatter-{iteration}", f"Scores in iteration {iteration}", points, gaps.tau),
                Table(
                    ("teacher", "student", "rows"),
                    [(f"{t:g}", f"{s:g}", f"{rows:,}") for t, s, rows in largest],
                    "The most frequent pairs of scores" if len(points) > len(largest) else "",
                    text_columns=0,
                ),
                "Scores are rounded to half points here." if rounded else "",
            )
        )
    lead = (
        [
            "A circle's area is the number of Cache Pool rows with that pair of scores. Below the dashed line the "
            f"student's score is lower by τ = {gaps.tau:g} or more: those rows are hard."
        ]
        if figures
        else ["Not measured: no Cache Pool is judged yet."]
    )
    return Section("scores", "Teacher against student", lead, figures)


def flows(facts: Facts) -> Section:
    """From the instructions' sources to hard and easy, and from those to accepted and rejected candidates."""
    figures: list[Figure] = []
    by_iteration = {one.iteration: one for one in facts.results}
    for column, iteration in enumerate(facts.gaps.iterations):
        figures.append(_judged_flow(facts, column, iteration))
        if (result := by_iteration.get(iteration)) is not None and result.generation:
            figures.append(_generated_flow(result))
    lead = [
        "First, the sources of the Cache Pool's rows and how many were hard and easy. Then, the candidates that were "
        "requested with hard and easy examples, and how many were accepted. Accepted ones are the next Train "
        "Pool and are added to the Cache Pool."
    ]
    return Section(
        "flow", "From seeds to new instructions", lead if figures else ["Nothing is judged yet."], figures, columns=2
    )


def _gain_text(facts: Facts) -> list[str]:
    if facts.gain is None or facts.gain_between is None:
        return []
    first, last = facts.gain_between
    gain = facts.gain
    before = "the base model" if first == 0 else f"iteration {first}"
    if gain.low > 0:
        what = "the gain is statistically significant"
    elif gain.high < 0:
        what = "the loss is statistically significant"
    else:
        what = "the interval contains 0, so neither a gain nor a loss is shown"
    return [
        f"Judged on the same {gain.n:,} held-out instructions, relative quality changed by {signed(100 * gain.value)} "
        f"points from {before} to iteration {last} (95 % interval {signed(100 * gain.low)} to "
        f"{signed(100 * gain.high)}): {what}."
    ]


def price_texts(facts: Facts) -> list[str]:
    """A line for each iteration that was measured in the same way as the previous one."""
    lines = []
    for one in facts.results:
        if (price := one.price_of_gain) is None:
            continue
        what = "the checks' score" if price["measure"] == "checks" else "relative quality on the held-out set"
        before = "the base model" if one.iteration == 1 else f"iteration {one.iteration - 1}"
        usd = "an unknown price" if price["usd"] is None else f"${price['usd']:,.4f}"
        cost = f"{usd} and {price['teacher_tokens']:,} tokens of the teacher's answers"
        line = (
            f"From {before} to iteration {one.iteration} {what} changed by {signed(price['points'])} points for {cost}"
        )
        if price["teacher_tokens_per_point"] is not None:
            each = "" if price["usd_per_point"] is None else f"${price['usd_per_point']:,.4f} and "
            line += f": {each}{price['teacher_tokens_per_point']:,.0f} tokens per point"
        lines.append(f"{line}. Calls that only measure the student are not counted.")
    return lines


def _losses(results: Sequence[IterationResult]) -> list[Point]:
    first = next((one.loss_before for one in results if one.loss_before is not None), None)
    return [Point(0, first), *(Point(one.iteration, one.loss_after) for one in results if one.iteration)]


def _parts(quality: dict[str, float] | None) -> tuple[float | None, float | None, float | None]:
    return (quality["ratio"], quality["low"], quality["high"]) if quality else (None, None, None)


def _judged_flow(facts: Facts, column: int, iteration: int) -> Figure:
    gaps, lineage = facts.gaps, facts.lineage
    pool = slice(0, gaps.rows[column])
    places = pc.fill_null(pc.index_in(gaps.ids[pool], value_set=lineage.ids), 0).to_numpy()
    sources = np.asarray(lineage.rows["source"].to_pylist(), dtype=object)[places]
    hard, known = gaps.hard()[pool, column], ~np.isnan(gaps.values[pool, column])
    left = [Group(label, f"s{place + 1}") for place, label in enumerate(ORIGINS.values())]
    right = [Group("hard", "hard"), Group("easy", "easy"), Group("without a verdict", "s5")]
    rows = {
        (source, side): int(((sources == name) & mask).sum())
        for source, name in enumerate(ORIGINS)
        for side, mask in enumerate((hard & known, ~hard & known, ~known))
    }
    title = f"Iteration {iteration}: the Cache Pool, judged"
    return Figure(title, flow(f"judged-{iteration}", title, left, right, rows), _flow_table(left, right, rows))


def _generated_flow(result: IterationResult) -> Figure:
    rejected: Counter[str] = Counter()
    for kind in result.generation.values():
        for reason, number in kind["rejected"].items():
            rejected[reason.split(" (")[0]] += number
    named = [reason for reason, _ in rejected.most_common(REASONS)]
    left = [Group(f"requested, from {kind} ones", kind) for kind in result.generation]
    right = [Group("accepted", "s4"), *(Group(reason, "s5") for reason in named), Group("other reasons", "s5")]
    rows: Counter[tuple[int, int]] = Counter()
    for source, kind in enumerate(result.generation.values()):
        rows[source, 0] += kind["accepted"]
        for reason, number in kind["rejected"].items():
            plain = reason.split(" (")[0]
            rows[source, 1 + (named.index(plain) if plain in named else len(named))] += number
    title = f"Iteration {result.iteration}: candidates"
    drawn = flow(f"written-{result.iteration}", title, left, right, rows)
    return Figure(title, drawn, _flow_table(left, right, rows), "" if drawn else "Nothing was requested.")


def _flow_table(left: Sequence[Group], right: Sequence[Group], rows: Mapping[tuple[int, int], int]) -> Table:
    cells = [(left[a].label, right[b].label, count(number)) for (a, b), number in sorted(rows.items()) if number]
    return Table(("from", "to", "rows"), cells, text_columns=2)
