"""Terminal output without injected markup or control characters; one function, `harmless`, escapes all of it.

Invariants:
- No outside text (a model's name, an error, a category, a path, an answer) reaches rich as markup, or a terminal or a
  log with control characters: no escape sequence, no carriage return, no reversed text.
- A character that is not printable is replaced by a symbol. Newlines and tabs stay.

All output goes through `Terminal` (tables, lines, bars) or `tell` (plain lines), except ``--json``, which has its own
escaping. This module knows nothing of the text's meaning.
"""

from __future__ import annotations

import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

_DIRECTION = {
    "\u061c": "ALM",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\u2028": "LS",
    "\u2029": "PS",
}
"""Characters that reorder or break the text around them (Unicode, annex 9), with their short names."""
_SHOWN = str.maketrans(
    {chr(code): chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {"\x7f": "\u2421"}
    | {chr(code): "\ufffd" for code in (*range(0x80, 0xA0), 0xFFFE, 0xFFFF)}
    | {character: f"⟨{name}⟩" for character, name in _DIRECTION.items()}
)


def harmless(text: object) -> str:
    """The value as text, without markup or control characters (see the invariants)."""
    whole = str(text).encode("utf-8", "replace").decode()
    return whole.replace("\r\n", "\n").translate(_SHOWN)


def one_line(text: object) -> str:
    """Like `harmless`, but in one line, so that outside text cannot forge a log line."""
    return harmless(text).replace("\n", " ⏎ ")


class Terminal(Console):
    """A rich console that treats every str as plain text: in tables, titles, headings, captions and lines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | settings))

    def render_str(self, text: str, **settings: Any) -> Text:
        """Overrides the method through which rich renders every str; without markup and emoji names."""
        return super().render_str(harmless(text), **(settings | {"markup": False, "emoji": False}))


def tell(text: object, *, file: IO[str] | None = None, end: str = "\n") -> None:
    """Print text and flush."""
    print(harmless(text), file=file or sys.stdout, end=end, flush=True)
