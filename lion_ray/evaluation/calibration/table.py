"""A calibration's report as tables for the terminal.

Invariant: a value that was not measured is shown as a dash, never as 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from lion_ray.core.statistics import Estimate
from lion_ray.discrimination.orders import Replayed
from lion_ray.evaluation.calibration.measures import Measures
from lion_ray.evaluation.calibration.run import Report
from lion_ray.evaluation.calibration.threshold import TauAdvice


def report_tables(report: Report) -> Group:
    """The report's tables and notes."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    columns = [
        (title, found)
        for title, found in (("labelled pairs", report.labelled), ("the run's rows", report.rows))
        if found is not None
    ]
    if columns:
        table = Table("", title=f"The judge {report.judge['endpoint']}: {report.judge['prompt']}")
        for title, _ in columns:
            table.add_column(title, justify="right")
        for cells in zip(*(_lines(found) for _, found in columns), strict=True):
            table.add_row(cells[0][0], *(value for _, value in cells))
        yield table
        yield "in brackets: 95 % bootstrap intervals over pairs"
    # A run's own rows take precedence, because its threshold is applied to them.
    advice = next((found.tau for found in (report.rows, report.labelled) if found and found.tau), None)
    if advice is not None:
        yield _tau_table(advice)
        yield advice.reasoning
    if report.second_order:
        yield _second_table(report.second_order)


def _lines(found: Measures) -> list[tuple[str, str]]:
    unread = "; ".join(f"{count} × {reason}" for reason, count in found.unread.items())
    histogram = " ".join(f"{score}:{count}" for score, count in found.histogram.items())
    return [
        ("pairs × samples", f"{found.pairs} × {found.samples}"),
        (
            "replies, unread",
            f"{found.replies}, {_share(found.unread_rate)}" + (f" ({unread})" if unread else ""),
        ),
        ("verdicts (both orders)", str(found.verdicts)),
        ("replies with weighted scores", str(found.weighted)),
        ("agreement with the labels", _shares(found.agreement)),
        ("… without ties", _shares(found.agreement_decided)),
        ("Cohen's kappa, 3 classes", _plain(found.kappa)),
        ("winner flips with the order", _shares(found.flip_rate)),
        ("position bias", _plain(found.position_bias)),
        ("ties", _shares(found.tie_rate)),
        ("noise (SD) in one order", _number(found.sd_one_order)),
        ("noise (SD), mean of both", _number(found.sd_both_orders)),
        ("correlation with length", _number(found.length_correlation)),
        ("scores", histogram or "–"),
        (
            "tokens per pair, in and out",
            f"{_whole(found.prompt_tokens_per_pair)}, {_whole(found.completion_tokens_per_pair)}",
        ),
        ("USD per pair", "–" if found.usd_per_pair is None else f"{found.usd_per_pair:.5f}"),
        ("new calls", str(found.calls_now) + ("" if found.usd_now is None else f", ${found.usd_now:.4f}")),
    ]


def _tau_table(advice: TauAdvice) -> Table:
    table = Table("tau", title="The judge's noise and the threshold tau")
    for title in ("reached by noise, if normal", "… as observed", "rows that change sides", "hard"):
        table.add_column(title, justify="right")
    for line in advice.lines:
        marks = [
            mark
            for mark, tau in (("recommended", advice.recommended), ("configured", advice.configured))
            if tau == line.tau
        ]
        name = f"{line.tau:g}" + (f" ({', '.join(marks)})" if marks else "")
        table.add_row(name, *(_share(value) for value in (line.normal, line.measured, line.changed, line.hard)))
    return table


def _second_table(lines: tuple[Replayed, ...]) -> Table:
    always = lines[0]
    caption = f"{always.rows} rows that were judged in both orders, {always.hard_always} of them hard"
    table = Table("margin", title="second_order: near_threshold instead of always", caption=caption)
    for title in ("both orders", "calls saved", "USD saved", "became hard", "became easy", "decisions changed"):
        table.add_column(title, justify="right")
    for line in lines:
        table.add_row(
            f"{line.margin:g}",
            str(line.asked_second),
            f"{line.calls_saved} ({line.calls_share:.1%})",
            "–" if line.usd_saved is None else f"{line.usd_saved:.4f}",
            str(line.became_hard),
            str(line.became_easy),
            f"{line.changed} ({line.changed / line.rows:.1%})",
        )
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _shares(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _plain(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
