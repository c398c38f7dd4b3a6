"""Charts by iteration, by category and of score pairs. Pure functions from numbers to SVG.

Invariants:
- Missing values (None) are left out, never drawn at 0.
- A chart without data is None, and the page says so.
- The area of a circle is proportional to its number of rows.

This module does not know runs or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lion_ray.report.svg import (
    WIDTH,
    Scale,
    bottom_axis,
    left_axis,
    legend,
    line,
    marker,
    path,
    picture,
    tag,
    text,
    ticks,
)

LARGEST = 14.0
"""Radius of the largest circle."""


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    class_: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float | None
    class_: str = "s1"
    low: float | None = None
    high: float | None = None
    note: str = ""


def lines(
    key: str,
    title: str,
    unit: str,
    series: Sequence[Series],
    format_value: Callable[[float | None], str],
    last: int,
    x_label: str = "iteration",
    reference: tuple[str, float] | None = None,
) -> Markup | None:
    """Values by iteration or by pool, from 0 to `last`, with intervals if available. None if no point has a value.

    `unit` labels the value axis, `x_label` the other. `format_value` formats a value. `reference`: a name and a value
    to mark with a line, such as the teacher's own.
    """
    series = [one for one in series if any(point.y is not None for point in one.points)]
    bounds = [
        value
        for one in series
        for point in one.points
        for value in (point.y, point.low, point.high)
        if value is not None
    ]
    if not bounds:
        return None
    if reference is not None:
        bounds.append(reference[1])
    single = len(series) == 1
    # A single series needs no legend and has room for values above its points.
    marks = ticks(min(bounds), max(bounds) + (0.12 * (max(bounds) - min(bounds)) if single else 0))
    top = 26 if single else 26 + 16 * len(series)
    height = top + 160 + 42
    x_scale, y_scale = Scale(0, max(last, 1), 64, WIDTH - 22), Scale(marks[0], marks[-1], top + 160, top)
    parts = [text(4, 14, unit, class_="name")]
    if not single:
        parts.append(legend([(one.class_, one.name) for one in series], 58, 32))
    parts.append(left_axis(y_scale, marks, 50, WIDTH - 8, format_value))
    parts.append(bottom_axis(x_scale, range(max(last, 1) + 1), top + 160, lambda value: f"{value:.0f}", x_label))
    if reference is not None:
        at = y_scale(reference[1])
        parts.append(line(50, at, WIDTH - 8, at, "tau"))
        name = f"{reference[0]} {format_value(reference[1])}"
        heights = [point.y for one in series for point in one.points if point.y is not None]
        # Over the end of the line that the curve stays away from.
        if abs(heights[0] - reference[1]) > abs(heights[-1] - reference[1]):
            parts.append(text(56, at - 4, name, class_="over legend"))
        else:
            parts.append(text(WIDTH - 8, at - 4, name, at="end", class_="over legend"))
    has_intervals = any(point.low is not None for one in series for point in one.points)
    for place, one in enumerate(series):
        offset = (place - (len(series) - 1) / 2) * 9 * has_intervals
        known = [(point, x_scale(point.x) + offset, y_scale(point.y)) for point in one.points if point.y is not None]
        parts.append(path([(x, y) for _, x, y in known], f"line {one.class_}"))
        for point, x, y in known:
            hint = f"{one.name}, {x_label} {point.x}: {format_value(point.y)}"
            if point.low is not None and point.high is not None:
                hint += f" [{format_value(point.low)}, {format_value(point.high)}]"
                parts.append(_whisker(x, y_scale(point.low), y_scale(point.high), one.class_))
            parts.append(marker(place, x, y, f"mark {one.class_}", hint))
            if single and len(known) <= 6:
                # Clear of the interval, and below it if the reference's line is where the value would be.
                above = (y if point.high is None else y_scale(point.high)) - 9
                below = (y if point.low is None else y_scale(point.low)) + 16
                near = reference is not None and abs(above - 4 - y_scale(reference[1])) < 10
                parts.append(
                    text(x + 3, below if near else above, format_value(point.y), at="middle", class_="over value")
                )
    values = "; ".join(
        f"{one.name}: "
        + ", ".join(f"{point.x}: {format_value(point.y)}" for point in one.points if point.y is not None)
        for one in series
    )
    if reference is not None:
        values += f"; dashed line, {reference[0]}: {format_value(reference[1])}"
    return picture(key, title, f"{unit}, by {x_label}. {values}.", WIDTH, height, *parts)


def scatter(key: str, title: str, points: Sequence[tuple[float, float, int]], tau: float) -> Markup | None:
    """Points (teacher's score, student's score, number of rows) as circles by area, with a line at a gap of `tau`."""
    if not points:
        return None
    side, left, top = 268.0, 50.0, 24.0
    x_scale, y_scale = Scale(0.5, 10.5, left, left + side), Scale(0.5, 10.5, top + side, top)
    most = max(rows for _, _, rows in points)
    total = sum(rows for _, _, rows in points)
    below = [(x_scale(0.5 + tau), y_scale(0.5)), (x_scale(10.5), y_scale(10.5 - tau)), (left + side, top + side)]
    parts = [
        tag("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in below), class_="hard-half")
        if 0 <= tau < 10
        else Markup(""),
        left_axis(y_scale, (2, 4, 6, 8, 10), left, left + side, lambda value: f"{value:.0f}"),
        line(x_scale(0.5), y_scale(0.5), x_scale(10.5), y_scale(10.5), "equal"),
        text(4, 12, "student's score", class_="name"),
        _legend_entry(left + 96, 12, "easy", "easy"),
        _legend_entry(left + 148, 12, "hard", f"hard: gap ≥ {tau:g}"),
        bottom_axis(x_scale, (2, 4, 6, 8, 10), top + side, lambda value: f"{value:.0f}", "teacher's score"),
    ]
    if 0 <= tau < 10:
        parts.append(line(x_scale(0.5 + tau), y_scale(0.5), x_scale(10.5), y_scale(10.5 - tau), "tau"))
    # Large circles first, so that they do not hide small ones.
    for teacher, student, rows in sorted(points, key=lambda point: -point[2]):
        kind = "hard" if teacher - student >= tau else "easy"
        hint = f"teacher {teacher:g}, student {student:g}: {rows:,} rows ({kind})"
        radius = max(1.5, LARGEST * math.sqrt(rows / most))
        parts.append(
            tag("circle", tag("title", hint), cx=x_scale(teacher), cy=y_scale(student), r=radius, class_=f"dot {kind}")
        )
    described = (
        f"{total:,} rows: teacher's score on the horizontal axis, student's on the vertical, 1 to 10. A circle's area "
        f"is the number of rows with these scores, {most:,} for the largest. Below the dashed line rows are hard: the "
        f"gap is {tau:g} or more."
    )
    return picture(key, title, described, WIDTH, top + side + 40, *parts)


def diverging(key: str, title: str, rows: Sequence[tuple[str, int, int]]) -> Markup | None:
    """Rows (label, number that got worse, number that got better) as bars to the left and right of a middle line."""
    if not rows:
        return None
    most = max(1, *(max(worse, better) for _, worse, better in rows))
    middle, longest = WIDTH / 2, WIDTH / 2 - 42
    parts = [
        text(middle - 6, 14, "easy → hard (forgotten)", at="end", class_="legend hard-text"),
        text(middle + 6, 14, "hard → easy (learned)", class_="legend easy-text"),
    ]
    for place, (label, worse, better) in enumerate(rows):
        y = 34 + place * 44
        parts.append(text(middle, y, label, at="middle", class_="name"))
        parts.append(line(middle, y + 4, middle, y + 26, "axis"))
        for number, sign, class_ in ((worse, -1, "hard"), (better, 1, "easy")):
            width = longest * number / most
            x = middle if sign > 0 else middle - width
            parts.append(tag("rect", x=x, y=y + 6, width=width, height=18, class_=f"bar {class_}"))
            outside = middle + sign * (width + 5)
            parts.append(text(outside, y + 20, f"{number:,}", at="start" if sign > 0 else "end", class_="value"))
    height = 34 + len(rows) * 44
    values = "; ".join(f"{label}: {worse:,} forgotten, {better:,} learned" for label, worse, better in rows)
    return picture(key, title, f"Rows that crossed τ. {values}.", WIDTH, height, *parts)


def bars(
    key: str,
    title: str,
    unit: str,
    rows: Sequence[Bar],
    format_value: Callable[[float | None], str],
    reference: float | None = None,
) -> Markup | None:
    """Bars from 0, or points if there are intervals, each under its label.

    `reference`: a value to mark with a line, such as the teacher's own.
    """
    rows = [row for row in rows if row.value is not None]
    if not rows:
        return None
    bounds = [0.0 if reference is None else reference]
    bounds += [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    has_intervals = any(row.low is not None for row in rows)
    marks = ticks(min(bounds), max(bounds), 4) if has_intervals else ticks(0, max(bounds), 4)
    x_scale = Scale(marks[0], marks[-1], 10, WIDTH - 62)
    bottom = 8 + len(rows) * 36
    parts = [line(x_scale(value), 6, x_scale(value), bottom, "grid") for value in marks]
    for place, row in enumerate(rows):
        y = 20 + place * 36
        assert row.value is not None
        hint = f"{row.label}: {format_value(row.value)}{row.note}"
        parts.append(text(10, y, row.label, class_="label", limit=44))
        if has_intervals:
            if row.low is not None and row.high is not None:
                parts.append(line(x_scale(row.low), y + 11, x_scale(row.high), y + 11, f"whisker {row.class_}"))
            parts.append(marker(0, x_scale(row.value), y + 11, f"mark {row.class_}", hint))
        else:
            width = x_scale(row.value) - x_scale(0)
            parts.append(
                tag(
                    "rect",
                    tag("title", hint),
                    x=x_scale(0),
                    y=y + 4,
                    width=width,
                    height=14,
                    class_=f"bar {row.class_}",
                )
            )
        parts.append(text(WIDTH - 4, y + 15, format_value(row.value), at="end", class_="value"))
    if reference is not None:
        parts.append(line(x_scale(reference), 6, x_scale(reference), bottom, "tau"))
    parts.append(bottom_axis(x_scale, marks, bottom, format_value, unit))
    values = "; ".join(f"{row.label}: {format_value(row.value)}" for row in rows)
    return picture(key, title, f"{unit}. {values}.", WIDTH, bottom + 40, *parts)


def _legend_entry(x: float, y: float, class_: str, label: str) -> Markup:
    return tag("circle", cx=x, cy=y - 4, r=5, class_=f"dot {class_}") + text(x + 9, y, label, class_="legend")


def _whisker(x: float, low: float, high: float, class_: str) -> Markup:
    ends = Markup("").join(line(x - 4, y, x + 4, y, f"whisker {class_}") for y in (low, high))
    return line(x, low, x, high, f"whisker {class_}") + ends
