"""The parts of a section: paragraphs, figures, tables.

Invariants:
- Every figure has a table with its numbers.
- Where nothing could be measured, a note replaces the figure.
- Nothing is escaped here: `page` and `svg` escape texts when they insert them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: int = 1
    """Number of text columns at the left; the others are numbers."""


@dataclass(frozen=True, slots=True)
class Figure:
    caption: str
    drawn: Markup | None
    """None if there was nothing to draw; `note` gives the reason."""
    table: Table | None = None
    note: str = ""
    narrow: Markup | None = None
    """The drawing for phones, if `drawn` is too wide for them."""


@dataclass(frozen=True, slots=True)
class Section:
    key: str
    title: str
    lead: Sequence[str] = ()
    """Paragraphs."""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    columns: int = 3
    """Figures side by side on a wide screen."""
