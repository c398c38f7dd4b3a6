"""Escaping and tables for Markdown pages that are shown on other sites.

Invariants:
- Text from models and users is data: after `escape` it is shown literally, and makes no heading, link, image, table
  cell or HTML; after `fenced` it cannot end its block.

This module does not know runs.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

_MARKS = re.compile(r"([\\`*_{}\[\]#!|<>&~$]|:(?=//))")


def escape(text: object) -> str:
    """One line of literal text: every character with a meaning in Markdown is escaped.

    By CommonMark, a backslash before ASCII punctuation makes it literal. Line ends become spaces.
    """
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def fenced(text: str, language: str = "") -> str:
    """A code block with unchanged `text`: its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], raw: Container[int] = ()) -> str:
    """A table. Numbers get thousands separators, None is a dash, and cells are escaped.

    The columns in `raw` already contain Markdown and are not escaped.
    """
    made = ([str(value) if place in raw else _cell(value) for place, value in enumerate(row)] for row in rows)
    lines = [headings, ["---"] * len(headings), *made]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else escape(value)
