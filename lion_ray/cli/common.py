"""What every verb shares: how it prints its result. Imported at every start, so it imports next to nothing."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lion_ray.core.terminal import Terminal

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")]


def results_console() -> Terminal:
    """Where a command's results go: standard output, with room for a table in a log too."""
    return Terminal(width=None if sys.stdout.isatty() else 180)
