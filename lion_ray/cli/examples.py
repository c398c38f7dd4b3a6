"""Print a run's examples on the terminal; models' texts are shown as plain text only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lion_ray.core.terminal import harmless

if TYPE_CHECKING:
    from lion_ray.analysis.examples import Example, ExampleAnswer


def print_examples(console: Console, found: list[Example]) -> None:
    """Print each example: the instruction, and the three answers side by side."""
    from lion_ray.analysis.examples import HOW

    if not found:
        return
    console.print(Text(f"{len(found)} held-out instructions, {HOW}"))
    for number, example in enumerate(found, start=1):
        table = Table(title=Text(harmless(f"{number}. {example.instruction}")), title_justify="left", title_style="")
        for answer in example.answers:
            table.add_column(Text(harmless(answer.who)), ratio=1, overflow="fold")
        table.add_row(*map(_answer, example.answers))
        console.print(table)


def _answer(answer: ExampleAnswer) -> Text:
    shown = Text(harmless(answer.text if answer.problem is None else f"no answer: {answer.problem}"))
    if answer.by_check:
        scores = answer.by_check.items()
        each = ", ".join(f"{name} {'–' if score is None else f'{score:.2f}'}" for name, score in scores)
        shown.append(harmless(f"\n[checks: {each}]"), style="dim")
    return shown
