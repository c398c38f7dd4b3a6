"""The table of a run's results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lion_ray.core.iteration_result import DASH, IterationResult, checks_words, number_words, quality_words

CAPTION = "loss: nats per token on held-out teacher answers; quality: student's scores / teacher's, 95 % interval"
CHECKS_CAPTION = "checks: mean score from 0 to 1 with its 95 % interval, and the share of the teacher's mean score"
CHECKS_HEADING = "checks, held-out"
HEADINGS = (
    "iteration",
    "train",
    "cache",
    "hard / easy",
    "new",
    "accepted",
    "quarantined",
    "loss before → after",
    "quality, held-out",
    "quality, cache",
    CHECKS_HEADING,
    "minutes",
)


def results_table(found: list[IterationResult]) -> Table:
    """The table printed at the end of a run."""
    warnings = [f"iteration {one.iteration}: {warning}" for one in found for warning in one.warnings]
    rows = []
    for one in found:
        rows.append(
            (
                str(one.iteration) if one.iteration else "0 (base model)",
                number_words(one.train_rows) + (f" + {one.pairs} pairs" if one.pairs else ""),
                number_words(one.cache_rows),
                DASH if one.hard is None else f"{one.hard} / {one.easy}",
                str(one.accepted) if one.generation else DASH,
                f"{one.accepted / one.requested:.0%} of {one.requested}" if one.requested else DASH,
                str(sum(one.quarantined.values())),
                DASH if one.loss_after is None else f"{number_words(one.loss_before)} → {number_words(one.loss_after)}",
                quality_words(one.quality_heldout),
                quality_words(one.quality_cache),
                checks_words(one.checks, of="") if one.checks else DASH,
                f"{sum(stage.get('seconds', 0) for stage in one.stages.values()) / 60:.1f}",
            )
        )
    headings, cells = measured(HEADINGS, rows)
    captions = [CAPTION, *([CHECKS_CAPTION] if CHECKS_HEADING in headings else [])]
    table = Table(title="Results", caption="\n".join([*captions, *warnings]))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in cells:
        table.add_row(*row)
    return table


def measured(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which at least one row has a value. Without rows, all of them."""
    kept = [k for k in range(len(headings)) if not rows or any(row[k] != DASH for row in rows)]
    return [headings[k] for k in kept], [[row[k] for k in kept] for row in rows]
