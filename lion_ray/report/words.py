"""Format texts and numbers for the report.

Invariants:
- None is never shown as a number.

This module does not know HTML: texts are escaped when they are inserted into a page.
"""

from __future__ import annotations

import re
from typing import Any

from lion_ray.core.iteration_result import DASH

CLIP = 8000
"""Maximum characters shown of a model's text."""

_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def clip(text: str | None, limit: int = CLIP) -> str:
    """At most `limit` characters, with the total number if truncated; a dash for None."""
    if text is None:
        return DASH
    return text if len(text) <= limit else f"{text[:limit]} … (the first {limit:,} of {len(text):,} characters)"


def short(text: str, limit: int) -> str:
    """At most `limit` characters in one line, with an ellipsis if truncated."""
    line = " ".join(text[: limit * 4].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def without_secrets(value: Any) -> Any:
    """A configuration's value without the user and password of its URLs."""
    if isinstance(value, dict):
        return {key: without_secrets(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return _USERINFO.sub("…", value) if isinstance(value, str) else value


def count(value: float | None) -> str:
    """A whole number with separators."""
    return DASH if value is None else f"{value:,.0f}"


def brief(value: float | None) -> str:
    """A large number in three digits: 950, 12.3k, 4.56M."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share as per cent, one decimal place."""
    return DASH if value is None else f"{value:.1%}"


def whole_percent(value: float | None) -> str:
    """A share as per cent, without decimal places: for axes."""
    return DASH if value is None else f"{value:.0%}"


def share(part: int | None, whole: int) -> str:
    """A part of a whole in numbers and per cent: 12 (3.4%)."""
    if part is None:
        return DASH
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def decimal(value: float | None, places: int = 3) -> str:
    return DASH if value is None else f"{value:.{places}f}"


def signed(value: float | None, places: int = 1) -> str:
    """A change: +1.5, −0.3."""
    return DASH if value is None else f"{value:+.{places}f}".replace("-", "−")


def dollars(value: float | None) -> str:
    """US dollars; small sums with more digits."""
    if value is None:
        return DASH
    return f"${value:,.2f}" if value == 0 or value >= 0.1 else f"${value:.4f}"


def duration(seconds: float | None) -> str:
    """A readable duration: 42 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds is None:
        return DASH
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    for unit, size, small, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            rest = left % size // step
            return f"{left // size} {unit}" + (f" {rest} {small}" if rest else "")
    raise AssertionError
