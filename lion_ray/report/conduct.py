"""Sections on how the run went: the judge, time, cost, unused rows.

This module does not know files or HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lion_ray.core.iteration_result import DASH, IterationResult
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.facts import Facts
from lion_ray.report.pictures import timeline
from lion_ray.report.words import count, dollars, duration, share, signed


def judge(facts: Facts) -> Section:
    """The judge's behaviour."""
    rows = [
        (
            str(one.iteration),
            one.what,
            count(one.rows),
            share(one.rows - one.scored, one.rows),
            share(one.flips, one.both),
            share(one.ties, one.scored),
            signed(one.position_bias, 2),
        )
        for one in facts.judged
    ]
    table = Table(
        ("iteration", "rows of", "rows", "without a score", "order flips", "ties", "position bias"),
        rows,
        text_columns=2,
    )
    reasons: Counter[str] = Counter()
    for one in facts.judged:
        reasons.update(one.unscored)
    tables = [table] if rows else []
    if with_canaries := [one for one in facts.results if one.canaries]:
        tables.append(_canaries(with_canaries))
    if facts.calibration is not None:
        tables.append(_calibration(facts.calibration))
    if reasons:
        unscored_rows = [(reason, count(number)) for reason, number in reasons.most_common()]
        tables.append(Table(("reason for no score", "rows"), unscored_rows))
    lead = [
        "Order flip: the two orders have different winners. Tie: teacher and student have the same mean score. "
        "Position bias: the score of the answer shown first minus the other's, mean of both orders. A row without "
        "scores in a requested order is neither hard nor easy."
        if rows
        else "Nothing is judged yet."
    ]
    lead += [f"Warning, iteration {one.iteration}: {warning}." for one in facts.results for warning in one.warnings]
    return Section("judge", "The judge", lead, tables=tables)


def _canaries(results: Sequence[IterationResult]) -> Table:
    """The judge's verdicts on the canary pairs, by iteration."""
    rows = []
    for one in results:
        found = one.canaries or {}
        drift = found.get("drift") or {}
        rows.append(
            (
                str(one.iteration),
                drift.get("says") or DASH,
                share(found.get("right"), found.get("verdicts") or 0),
                signed(found.get("mean_gap"), 2),
            )
        )
    headings = ("iteration", "compared with the first", "right verdicts", "mean gap, good minus poor")
    return Table(headings, rows, "Canary pairs: easy pairs, judged again in each iteration", text_columns=2)


def _calibration(found: dict[str, Any]) -> Table:
    """The result of `lion-ray judge calibrate`; the file may contain anything."""
    names = {
        "pairs": "pairs",
        "agreement": "agreement with the labels",
        "kappa": "Cohen's kappa",
        "flip_rate": "winner flips with the order",
        "tie_rate": "ties",
        "position_bias": "position bias, points",
        "sd_both_orders": "noise of a verdict (SD), points",
        "length_correlation": "correlation with length",
    }
    sources = [(title, found.get(key)) for key, title in (("labelled", "labelled pairs"), ("rows", "this run's rows"))]
    measured = [(title, one) for title, one in sources if isinstance(one, dict)]
    rows = [(label, *(_estimate(one.get(key)) for _, one in measured)) for key, label in names.items()]
    taus = [one.get("tau") for _, one in measured]
    rows.append(
        ("recommended τ, by noise", *(_estimate(t.get("recommended") if isinstance(t, dict) else None) for t in taus))
    )
    caption = f"Calibration of {str(found.get('made_at', ''))[:10]}, with 95 % intervals"
    return Table(("figure", *(title for title, _ in measured)), rows, caption)


def _estimate(value: object) -> str:
    if isinstance(value, dict):
        numbers = [one for key in ("value", "low", "high") if isinstance(one := value.get(key), int | float)]
        if len(numbers) == 3:
            return "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    return DASH


def time_line(facts: Facts) -> Section:
    """The stages on a time line."""
    table = Table(
        ("stage", "duration"),
        [(one.label, duration(one.seconds)) for one in sorted(facts.spans, key=lambda s: s.began)],
    )
    figures = [
        Figure(
            "Stages",
            timeline("time", "Stages over time", facts.spans, wide=True),
            table,
            narrow=timeline("time-narrow", "Stages over time", facts.spans, wide=False),
        )
    ]
    lead = ["Independent stages run in parallel. The number is the iteration."]
    if facts.untimed:
        lead.append(
            "Stages without a recorded start: " + ", ".join(f"{n} ({duration(s)})" for n, s in facts.untimed) + "."
        )
    return Section(
        "time",
        "Where the time went",
        lead if facts.spans or facts.untimed else ["No stage is finished yet."],
        figures if facts.spans else (),
        columns=1,
    )


def spending(facts: Facts) -> Section:
    """Paid calls by role and by stage."""
    spending_rows = facts.status.spending
    uncertain_tables = _uncertain_table(facts.status.uncertain)
    if not spending_rows:
        lead = ["Unknown: the journal has no calls of this run."]
        return Section("spending", "Paid API calls", lead, tables=uncertain_tables)
    priced = priced_roles(facts)

    def cells(rows: Sequence[dict[str, Any]], priced: bool) -> list[str]:
        sums = [sum(row[name] for row in rows) for name in ("calls", "prompt_tokens", "completion_tokens", "usd")]
        return [*(count(number) for number in sums[:3]), dollars(sums[3]) if priced or sums[3] else "not priced"]

    by_role = [
        (role, *cells([one for one in spending_rows if one["role"] == role], priced.get(role, False)))
        for role in sorted({one["role"] for one in spending_rows})
    ]
    by_role.append(("total", *cells(spending_rows, all(priced.values()))))
    headings = ("calls", "prompt tokens", "completion tokens", "US $")
    stages = [
        (str(one["iteration"]), one["role"], one["stage"], *cells([one], priced.get(one["role"], False)))
        for one in spending_rows
    ]
    lead = ["Calls that this run paid for, from the journal. Calls already in the journal were not paid for again."]
    if unpriced := [role for role, known in priced.items() if not known]:
        lead.append(f"No prices are configured for the endpoints of: {', '.join(unpriced)}.")
    return Section(
        "spending",
        "Paid API calls",
        lead,
        tables=[
            Table(("role", *headings), by_role, "By role"),
            Table(("iteration", "role", "stage", *headings), stages, "By stage", text_columns=3),
            *uncertain_tables,
        ],
    )


def _uncertain_table(uncertain: Sequence[dict[str, Any]]) -> list[Table]:
    """Calls that may have been billed without an answer; no table if there are none."""
    if not uncertain:
        return []
    rows = [
        (str(one["iteration"]), one["role"], one["stage"], one["endpoint"], count(one["calls"]), dollars(one["usd"]))
        for one in uncertain
    ]
    sums = [count(sum(one["calls"] for one in uncertain)), dollars(sum(one["usd"] for one in uncertain))]
    caption = (
        "Uncertain: attempts that timed out or were interrupted after they were sent. They may have been billed, count "
        "against the budget, and are not included above"
    )
    headings = ("iteration", "role", "stage", "endpoint", "attempts", "max US $")
    return [Table(headings, [*rows, ("", "", "total", "", *sums)], caption, text_columns=4)]


def unused(facts: Facts) -> Section | None:
    """Rows that were neither trained on nor scored."""
    rows = [
        (str(one.iteration), stage, count(number)) for one in facts.results for stage, number in one.quarantined.items()
    ]
    names = {
        "duplicates": "your pool: duplicate text",
        "bad_rows": "your pool: malformed",
        "contaminated": "your pool: too similar to an evaluation question",
        "in_heldout": "your pool: also in the held-out set",
    }
    for key, label in reversed(names.items()):
        left_out = facts.imported.get(key) or 0
        # Contaminated rows are counted by reason.
        number = sum(left_out.values()) if isinstance(left_out, dict) else left_out
        rows = [("0", label, count(number)), *rows] if number else rows
    if not rows:
        return None
    table = Table(("iteration", "stage and reason", "rows"), rows, text_columns=2)
    return Section(
        "unused", "Unused rows", ["Quarantined with a reason: neither trained on nor scored."], tables=[table]
    )


def priced_roles(facts: Facts) -> dict[str, bool]:
    """Whether all endpoints of a role have prices, by role."""
    endpoints = facts.config.get("endpoints", {})
    found = {}
    for role in ("teacher", "referee", "generator"):
        section = facts.config.get(role, {})
        names = [section.get("endpoint", "default"), *section.get("fallbacks", ())]
        found[role] = all((endpoints.get(name) or {}).get("prices") is not None for name in names)
    return found
