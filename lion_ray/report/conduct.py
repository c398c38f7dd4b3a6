"""Sections on the course of the run: the judge, the time, the cost, the unused rows.

This module does not know files or HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lion_ray.pipeline.results import IterationResult
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.facts import Facts
from lion_ray.report.pictures import timeline
from lion_ray.report.words import DASH, count, dollars, duration, share, signed


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
            signed(one.first, 2),
        )
        for one in facts.judged
    ]
    table = Table(
        ("iteration", "rows of", "rows", "without a score", "order flips", "ties", "shown first"), rows, words=2
    )
    reasons: Counter[str] = Counter()
    for one in facts.judged:
        reasons.update(one.unscored)
    tables = [table] if rows else []
    if watched := [one for one in facts.results if one.canaries]:
        tables.append(_canaries(watched))
    if facts.calibration is not None:
        tables.append(_calibration(facts.calibration))
    if reasons:
        told = [(reason, count(number)) for reason, number in reasons.most_common()]
        tables.append(Table(("why there was no score", "rows"), told))
    lead = [
        "A flip: the two orders name different winners. A tie: teacher and student have the same mean. Shown first: "
        "what an answer's score gains from its place, in points, on average. A row that lacks scores in an order that "
        "was asked counts as neither hard nor easy."
        if rows
        else "Nothing is judged yet."
    ]
    lead += [f"Warning, iteration {one.iteration}: {said}." for one in facts.results for said in one.warnings]
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
    headings = ("iteration", "against the first", "right, of verdicts", "mean gap, good over poor")
    return Table(headings, rows, "Pairs that anyone can decide, judged anew in each iteration", words=2)


def _calibration(found: dict[str, Any]) -> Table:
    """The result of `lion-ray judge calibrate`; the file may contain anything."""
    names = {
        "pairs": "pairs",
        "agreement": "agreement with the labels",
        "kappa": "Cohen's kappa",
        "flip_rate": "winner flips with the order",
        "tie_rate": "ties",
        "position_bias": "score for standing first, points",
        "sd_both_orders": "noise of a verdict (SD), points",
        "length_correlation": "correlation with length",
    }
    sources = [(title, found.get(key)) for key, title in (("labelled", "labelled pairs"), ("rows", "this run's rows"))]
    measured = [(title, one) for title, one in sources if isinstance(one, dict)]
    rows = [(words, *(_estimate(one.get(key)) for _, one in measured)) for key, words in names.items()]
    taus = [one.get("tau") for _, one in measured]
    rows.append(
        ("τ that the noise supports", *(_estimate(t.get("recommended") if isinstance(t, dict) else None) for t in taus))
    )
    caption = f"Calibrated on {str(found.get('made_at', ''))[:10]}, with 95 % intervals"
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
    """The stages in time."""
    table = Table(
        ("stage", "took"), [(one.label, duration(one.seconds)) for one in sorted(facts.spans, key=lambda s: s.began)]
    )
    figures = [
        Figure(
            "Stages",
            timeline("time", "The stages in time", facts.spans, wide=True),
            table,
            narrow=timeline("time-narrow", "The stages in time", facts.spans, wide=False),
        )
    ]
    lead = ["Stages that do not wait for one another go on side by side. The number is the iteration's."]
    if facts.untimed:
        lead.append(
            "When these stages began was not written down: "
            + ", ".join(f"{n} ({duration(s)})" for n, s in facts.untimed)
            + "."
        )
    return Section(
        "time",
        "Where the time went",
        lead if facts.spans or facts.untimed else ["No stage is done yet."],
        figures if facts.spans else (),
        columns=1,
    )


def spending(facts: Facts) -> Section:
    """Paid calls by role and by stage."""
    bought = facts.status.spending
    doubts = _doubts(facts.status.uncertain)
    if not bought:
        lead = ["Not known: the journal names no call of this run."]
        return Section("spending", "What was bought", lead, tables=doubts)
    priced = priced_roles(facts)

    def cells(rows: Sequence[dict[str, Any]], priced: bool) -> list[str]:
        sums = [sum(row[name] for row in rows) for name in ("calls", "prompt_tokens", "completion_tokens", "usd")]
        return [*(count(number) for number in sums[:3]), dollars(sums[3]) if priced or sums[3] else "not priced"]

    by_role = [
        (role, *cells([one for one in bought if one["role"] == role], priced.get(role, False)))
        for role in sorted({one["role"] for one in bought})
    ]
    by_role.append(("together", *cells(bought, all(priced.values()))))
    headings = ("calls", "prompt tokens", "completion tokens", "US $")
    stages = [
        (str(one["iteration"]), one["role"], one["stage"], *cells([one], priced.get(one["role"], False)))
        for one in bought
    ]
    lead = ["From the journal: calls that were paid for. A call that the journal knew already was not bought again."]
    if unpriced := [role for role, known in priced.items() if not known]:
        lead.append(f"No prices are configured for the endpoints of: {', '.join(unpriced)}.")
    return Section(
        "spending",
        "What was bought",
        lead,
        tables=[
            Table(("role", *headings), by_role, "By role"),
            Table(("iteration", "role", "stage", *headings), stages, "By stage", words=3),
            *doubts,
        ],
    )


def _doubts(uncertain: Sequence[dict[str, Any]]) -> list[Table]:
    """Calls that may have been billed without an answer; no table if there are none."""
    if not uncertain:
        return []
    rows = [
        (str(one["iteration"]), one["role"], one["stage"], one["endpoint"], count(one["calls"]), dollars(one["usd"]))
        for one in uncertain
    ]
    sums = [count(sum(one["calls"] for one in uncertain)), dollars(sum(one["usd"] for one in uncertain))]
    caption = (
        "Uncertain: attempts that timed out or were cut off after they were sent. They may have been billed, count "
        "against the budget, and are not in the tables above"
    )
    headings = ("iteration", "role", "stage", "endpoint", "attempts", "US $ at most")
    return [Table(headings, [*rows, ("", "", "together", "", *sums)], caption, words=4)]


def unused(facts: Facts) -> Section | None:
    """Rows that were neither trained on nor scored."""
    rows = [
        (str(one.iteration), stage, count(number)) for one in facts.results for stage, number in one.quarantined.items()
    ]
    names = {
        "duplicates": "your pool: the same text twice",
        "bad_rows": "your pool: malformed",
        "contaminated": "your pool: too near an evaluation question",
        "in_heldout": "your pool: also in the held-out set",
    }
    for key, words in reversed(names.items()):
        left_out = facts.intake.get(key) or 0
        # What was contaminated is counted by reason.
        number = sum(left_out.values()) if isinstance(left_out, dict) else left_out
        rows = [("0", words, count(number)), *rows] if number else rows
    if not rows:
        return None
    table = Table(("iteration", "stage and reason", "rows"), rows, words=2)
    return Section(
        "unused", "Rows that were not used", ["Kept aside with a reason: not trained on, not scored."], tables=[table]
    )


def priced_roles(facts: Facts) -> dict[str, bool]:
    """By role, whether every endpoint that it may call has prices."""
    endpoints = facts.config.get("endpoints", {})
    found = {}
    for role in ("teacher", "referee", "generator"):
        section = facts.config.get(role, {})
        names = [section.get("endpoint", "default"), *section.get("fallbacks", ())]
        found[role] = all((endpoints.get(name) or {}).get("prices") is not None for name in names)
    return found
