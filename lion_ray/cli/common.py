"""Shared by all commands: how results are printed. Imported at every start, so it imports very little."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lion_ray.core.terminal import Terminal

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def results_console() -> Terminal:
    """The console for a command's results: standard output, wide enough for tables in a log."""
    return Terminal(width=None if sys.stdout.isatty() else 180)
