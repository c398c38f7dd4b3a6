"""What goes to a terminal: text that is shown and never obeyed. One function, `harmless`, sees to it.

Invariants:
- Nothing from outside (a model's name, an error, a category, a path, an answer) reaches rich as markup, nor a terminal
  or a log as a control character: no escape sequence, no carriage return, no text that runs backwards.
- What cannot be shown is shown as a symbol for it. Newlines and tabs stay.

Text goes out through `Terminal` (tables, lines, bars) or `tell` (plain lines), and through nothing else but ``--json``,
which escapes by itself. This module knows nothing of what is said.
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
"""Characters that reorder or break what stands around them (Unicode, annex 9), by their short names."""
_SHOWN = str.maketrans(
    {chr(code): chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {"\x7f": "\u2421"}
    | {chr(code): "\ufffd" for code in (*range(0x80, 0xA0), 0xFFFE, 0xFFFF)}
    | {character: f"⟨{name}⟩" for character, name in _DIRECTION.items()}
)


def harmless(text: object) -> str:
    """The text with nothing in it that acts (see the invariants); other values as they are written."""
    whole = str(text).encode("utf-8", "replace").decode()
    return whole.replace("\r\n", "\n").translate(_SHOWN)


def one_line(text: object) -> str:
    """The same in one line: a log's next line is the program's own."""
    return harmless(text).replace("\n", " ⏎ ")


class Terminal(Console):
    """A rich console to which every str is text: in tables, titles, headings, captions and lines alike."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | settings))

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich's own, which every str passes through before it is shown; without markup and emoji names."""
        return super().render_str(harmless(text), **(settings | {"markup": False, "emoji": False}))


def tell(text: object, *, file: IO[str] | None = None, end: str = "\n") -> None:
    """Print text, at once."""
    print(harmless(text), file=file or sys.stdout, end=end, flush=True)
