"""The tables of a relative-quality evaluation."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def relative_tables(found: dict[str, Any]) -> list[Table]:
    """The settings, the categories and the cost of a result (`pairwise.Compared.json`)."""
    return [_settings(found), *([_categories(found)] if found["by_category"] else []), costs_table(found)]


def notes(found: dict[str, Any]) -> list[str]:
    """Notes below the tables, one line each."""
    rate, sign = found["win_rate"], found["sign_p"]
    lines = []
    if rate is not None:
        chance = "" if sign is None else f"; sign test p = {sign:.3g}"
        lines.append(
            f"{found['wins']} won, {found['ties']} tied, {found['losses']} lost: win rate "
            f"{rate['rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]{chance}"
        )
    without = found["unanswered"]
    counts = {
        "questions without the target's answer": without["target"],
        "without the reference's": without["reference"],
        "without a readable score in some setting": found["unparsed"],
    }
    listed = [f"{count} {what}" for what, count in counts.items() if count]
    if listed:
        lines.append(
            f"not scored: {', '.join(listed)} ({'; '.join(f'{n} × {why}' for why, n in found['reasons'].items())})"
        )
    cut = [f"{count} of the {who}'s" for who, count in found["cut_off"].items() if count]
    if cut:
        lines.append(f"answers that were cut off at their length limit: {' and '.join(cut)}")
    if found["questions"] < found["of"]:
        lines.append(f"only {found['questions']} of the suite's {found['of']} questions were used")
    if found["paper"]:
        lines.append("the paper's figures are relative to ChatGPT, judged by GPT-4: not comparable with other settings")
    return lines


def _settings(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['suite']}: {found['target']} against {found['reference']}, judged by {found['judge']}")
    table.add_column("setting")
    for heading in ("questions", "unparsed", "order flips", "target / reference", "95 % interval"):
        table.add_column(heading, justify="right")
    for number, one in found["settings"].items():
        orders = "reference first" if len(one["orders"]) == 1 else "both orders"
        name = f"{number}: {orders}, {one['samples']} sample{'s' * (one['samples'] > 1)} at {one['temperature']:g}"
        flips = one["order_flips"]
        share = "–" if flips is None or not one["n"] else f"{flips} ({flips / one['n']:.0%})"
        table.add_row(name, str(one["n"]), str(one["unparsed"]), share, *_quality(one))
    if len(found["settings"]) > 1 and found["relative"]:
        table.add_section()
        table.add_row("mean of the settings", str(found["relative"]["n"]), "", "", *_quality(found["relative"]))
    for name, value in found["paper"].items():
        table.add_row(f"{name} (paper)", "", "", "", f"{value:.1f}%", "", style="dim")
    return table


def _categories(found: dict[str, Any]) -> Table:
    table = Table(title="by category")
    table.add_column("category")
    for heading in ("questions", "target / reference", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, one in sorted(found["by_category"].items()):
        table.add_row(name, str(one["n"]) if one else "0", *_quality(one))
    return table


def costs_table(found: dict[str, Any]) -> Table:
    """An evaluation's calls, tokens and cost by role."""
    table = Table(title="calls and cost", caption="calls that are not new were answered from the journal")
    table.add_column("role")
    for heading in ("calls", "new", "failed", "prompt tokens", "completion tokens", "USD", "USD of new"):
        table.add_column(heading, justify="right")
    for role, one in found["cost"].items():
        usd = "–" if one["usd"] is None else f"{one['usd']:,.4f}"
        counts = ("calls", "bought", "failed", "prompt_tokens", "completion_tokens")
        table.add_row(role, *(f"{one[name]:,}" for name in counts), usd, f"{one['bought_usd']:,.4f}")
    return table


def _quality(one: dict[str, Any] | None) -> tuple[str, str]:
    if not one or one["ratio"] is None:
        return "–", "–"
    # Resampling a single question gives no interval.
    return f"{one['ratio']:.1%}", f"[{one['low']:.1%}, {one['high']:.1%}]" if one["n"] > 1 else "–"
