"""Drawing: SVG elements, scales and axes.

Invariants:
- Every text and attribute is escaped once, here; the result is Markup and can be inserted into a page.
- Colours are CSS variables of the page, by class, so that a drawing follows dark mode and print.
- A picture has a title and a description for screen readers.

This module does not know runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lion_ray.core.terminal import harmless
from lion_ray.report.words import short

WIDTH = 340
"""Width of a chart in its own units: about one CSS pixel each on a phone, so that text has its normal size."""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``, numbers are rounded."""
    attribute_text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(harmless(one) if type(one) is str else one) for one in children)
    return Markup("<{}{}>{}</{}>").format(Markup(name), attribute_text, inner, Markup(name))


def picture(key: str, title: str, description: str, width: float, height: float, *parts: Markup) -> Markup:
    """An SVG document. `key` must be unique in the page."""
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *parts,
        class_="chart",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        xmlns="http://www.w3.org/2000/svg",
    )


def text(x: float, y: float, content: str, *, at: str = "start", class_: str = "", limit: int = 60) -> Markup:
    """A text, anchored `at` start, middle or end. A shortened text has the full one as its title."""
    shown = short(harmless(content), limit)
    whole = [tag("title", content)] if shown != content else []
    return tag("text", shown, *whole, x=x, y=y, text_anchor=at, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Straight lines through `points`."""
    steps = " ".join(f"{'M' if place == 0 else 'L'}{_value(x)} {_value(y)}" for place, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=class_)


def marker(shape: int, x: float, y: float, class_: str, hint: str) -> Markup:
    """A data point with a tooltip; series differ by shape (circle, square, diamond), not by colour alone."""
    if shape % 3 == 0:
        return tag("circle", tag("title", hint), cx=x, cy=y, r=4, class_=class_)
    turn = f"rotate(45 {_value(x)} {_value(y)})" if shape % 3 == 2 else None
    return tag("rect", tag("title", hint), x=x - 3.5, y=y - 3.5, width=7, height=7, transform=turn, class_=class_)


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to coordinates: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def left_axis(
    scale: Scale, values: Sequence[float], x0: float, x1: float, format_value: Callable[[float], str]
) -> Markup:
    """Grid lines from `x0` to `x1` with their values at the left."""
    return Markup("").join(
        line(x0, scale(value), x1, scale(value), "grid")
        + text(x0 - 6, scale(value) + 4, format_value(value), at="end", class_="tick")
        for value in values
    )


def bottom_axis(
    scale: Scale, values: Sequence[float], y: float, format_value: Callable[[float], str], name: str
) -> Markup:
    """The bottom axis with its values and its name."""
    marks = Markup("").join(
        line(scale(value), y, scale(value), y + 4, "axis")
        + text(scale(value), y + 17, format_value(value), at="middle", class_="tick")
        for value in values
    )
    middle = (scale.start + scale.end) / 2
    return line(scale.start, y, scale.end, y, "axis") + marks + text(middle, y + 33, name, at="middle", class_="name")


def legend(entries: Sequence[tuple[str, str]], x: float, y: float) -> Markup:
    """Entries (class, text) one below the other, each with its marker."""
    return Markup("").join(
        marker(place, x, y + 16 * place - 4, f"mark {class_}", content)
        + text(x + 10, y + 16 * place, content, class_="legend", limit=50)
        for place, (class_, content) in enumerate(entries)
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
    return harmless(str(value))
