"""Charts of numbers: by iteration, by category, score against score. Pure: numbers in, a string of SVG out.

Invariants:
- What was not measured (None) is left out, never drawn at 0.
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
"""Radius of the circle for the most rows."""


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
    said: Callable[[float | None], str],
    last: int,
    across_is: str = "iteration",
    reference: tuple[str, float] | None = None,
) -> Markup | None:
    """Values by iteration or by pool, from 0 to `last`, with intervals where there are any.

    `unit`: what the values are, for the axis. `said` writes a value. `reference`: a name and a value to mark with a
    line, such as the teacher's own. None where no point has a value.
    """
    series = [one for one in series if any(point.y is not None for point in one.points)]
    reach = [
        value
        for one in series
        for point in one.points
        for value in (point.y, point.low, point.high)
        if value is not None
    ]
    if not reach:
        return None
    if reference is not None:
        reach.append(reference[1])
    alone = len(series) == 1
    # Alone it needs no legend, and has room for its values above the points.
    marks = ticks(min(reach), max(reach) + (0.12 * (max(reach) - min(reach)) if alone else 0))
    top = 26 if alone else 26 + 16 * len(series)
    height = top + 160 + 42
    across, up = Scale(0, max(last, 1), 64, WIDTH - 22), Scale(marks[0], marks[-1], top + 160, top)
    parts = [text(4, 14, unit, class_="name")]
    if not alone:
        parts.append(legend([(one.class_, one.name) for one in series], 58, 32))
    parts.append(left_axis(up, marks, 50, WIDTH - 8, said))
    parts.append(bottom_axis(across, range(max(last, 1) + 1), top + 160, lambda value: f"{value:.0f}", across_is))
    if reference is not None:
        at = up(reference[1])
        parts.append(line(50, at, WIDTH - 8, at, "tau"))
        parts.append(text(WIDTH - 8, at - 4, f"{reference[0]} {said(reference[1])}", at="end", class_="over legend"))
    ranged = any(point.low is not None for one in series for point in one.points)
    for place, one in enumerate(series):
        aside = (place - (len(series) - 1) / 2) * 9 * ranged
        known = [(point, across(point.x) + aside, up(point.y)) for point in one.points if point.y is not None]
        parts.append(path([(x, y) for _, x, y in known], f"line {one.class_}"))
        for point, x, y in known:
            hint = f"{one.name}, {across_is} {point.x}: {said(point.y)}"
            if point.low is not None and point.high is not None:
                hint += f" [{said(point.low)}, {said(point.high)}]"
                parts.append(_whisker(x, up(point.low), up(point.high), one.class_))
            parts.append(marker(place, x, y, f"mark {one.class_}", hint))
            if alone and len(known) <= 6:
                parts.append(text(x + 3, y - 9, said(point.y), at="middle", class_="over value"))
    told = "; ".join(
        f"{one.name}: " + ", ".join(f"{point.x}: {said(point.y)}" for point in one.points if point.y is not None)
        for one in series
    )
    if reference is not None:
        told += f"; dashed line, {reference[0]}: {said(reference[1])}"
    return picture(key, title, f"{unit}, by {across_is}. {told}.", WIDTH, height, *parts)


def scatter(key: str, title: str, points: Sequence[tuple[float, float, int]], tau: float) -> Markup | None:
    """Rows by (teacher's score, student's score, how many): circles by area, with the line at a gap of `tau`."""
    if not points:
        return None
    side, left, top = 268.0, 50.0, 24.0
    across, up = Scale(0.5, 10.5, left, left + side), Scale(0.5, 10.5, top + side, top)
    most = max(rows for _, _, rows in points)
    total = sum(rows for _, _, rows in points)
    below = [(across(0.5 + tau), up(0.5)), (across(10.5), up(10.5 - tau)), (left + side, top + side)]
    parts = [
        tag("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in below), class_="hard-half")
        if 0 <= tau < 10
        else Markup(""),
        left_axis(up, (2, 4, 6, 8, 10), left, left + side, lambda value: f"{value:.0f}"),
        line(across(0.5), up(0.5), across(10.5), up(10.5), "equal"),
        text(4, 12, "student's score", class_="name"),
        _key(left + 96, 12, "easy", "easy"),
        _key(left + 148, 12, "hard", f"hard: gap ≥ {tau:g}"),
        bottom_axis(across, (2, 4, 6, 8, 10), top + side, lambda value: f"{value:.0f}", "teacher's score"),
    ]
    if 0 <= tau < 10:
        parts.append(line(across(0.5 + tau), up(0.5), across(10.5), up(10.5 - tau), "tau"))
    # The large ones first, so that none hides another.
    for teacher, student, rows in sorted(points, key=lambda point: -point[2]):
        kind = "hard" if teacher - student >= tau else "easy"
        hint = f"teacher {teacher:g}, student {student:g}: {rows:,} rows ({kind})"
        radius = max(1.5, LARGEST * math.sqrt(rows / most))
        parts.append(
            tag("circle", tag("title", hint), cx=across(teacher), cy=up(student), r=radius, class_=f"dot {kind}")
        )
    described = (
        f"{total:,} rows, the teacher's score across and the student's up, 1 to 10. The area of a circle is how many "
        f"rows share the two scores; the largest stands for {most:,}. Below the dashed line rows are hard: the gap is "
        f"{tau:g} or more."
    )
    return picture(key, title, described, WIDTH, top + side + 40, *parts)


def diverging(key: str, title: str, rows: Sequence[tuple[str, int, int]]) -> Markup | None:
    """(label, rows that got worse, rows that got better): bars to the left and to the right of a middle line."""
    if not rows:
        return None
    most = max(1, *(max(worse, better) for _, worse, better in rows))
    middle, reach = WIDTH / 2, WIDTH / 2 - 42
    parts = [
        text(middle - 6, 14, "easy → hard (forgotten)", at="end", class_="legend hard-text"),
        text(middle + 6, 14, "hard → easy (learned)", class_="legend easy-text"),
    ]
    for place, (label, worse, better) in enumerate(rows):
        y = 34 + place * 44
        parts.append(text(middle, y, label, at="middle", class_="name"))
        parts.append(line(middle, y + 4, middle, y + 26, "axis"))
        for number, sign, class_ in ((worse, -1, "hard"), (better, 1, "easy")):
            width = reach * number / most
            x = middle if sign > 0 else middle - width
            parts.append(tag("rect", x=x, y=y + 6, width=width, height=18, class_=f"bar {class_}"))
            outside = middle + sign * (width + 5)
            parts.append(text(outside, y + 20, f"{number:,}", at="start" if sign > 0 else "end", class_="value"))
    height = 34 + len(rows) * 44
    told = "; ".join(f"{label}: {worse:,} forgotten, {better:,} learned" for label, worse, better in rows)
    return picture(key, title, f"Rows that changed sides. {told}.", WIDTH, height, *parts)


def bars(
    key: str,
    title: str,
    unit: str,
    rows: Sequence[Bar],
    said: Callable[[float | None], str],
    reference: float | None = None,
) -> Markup | None:
    """Bars from 0 (without intervals), or points with their intervals, each under its label.

    `reference`: a value to mark with a line, such as the teacher's own.
    """
    rows = [row for row in rows if row.value is not None]
    if not rows:
        return None
    reach = [0.0 if reference is None else reference]
    reach += [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    ranged = any(row.low is not None for row in rows)
    marks = ticks(min(reach), max(reach), 4) if ranged else ticks(0, max(reach), 4)
    across = Scale(marks[0], marks[-1], 10, WIDTH - 62)
    bottom = 8 + len(rows) * 36
    parts = [line(across(value), 6, across(value), bottom, "grid") for value in marks]
    for place, row in enumerate(rows):
        y = 20 + place * 36
        assert row.value is not None
        hint = f"{row.label}: {said(row.value)}{row.note}"
        parts.append(text(10, y, row.label, class_="label", limit=44))
        if ranged:
            if row.low is not None and row.high is not None:
                parts.append(line(across(row.low), y + 11, across(row.high), y + 11, f"whisker {row.class_}"))
            parts.append(marker(0, across(row.value), y + 11, f"mark {row.class_}", hint))
        else:
            width = across(row.value) - across(0)
            parts.append(
                tag(
                    "rect", tag("title", hint), x=across(0), y=y + 4, width=width, height=14, class_=f"bar {row.class_}"
                )
            )
        parts.append(text(WIDTH - 4, y + 15, said(row.value), at="end", class_="value"))
    if reference is not None:
        parts.append(line(across(reference), 6, across(reference), bottom, "tau"))
    parts.append(bottom_axis(across, marks, bottom, said, unit))
    told = "; ".join(f"{row.label}: {said(row.value)}" for row in rows)
    return picture(key, title, f"{unit}. {told}.", WIDTH, bottom + 40, *parts)


def _key(x: float, y: float, class_: str, words: str) -> Markup:
    return tag("circle", cx=x, cy=y - 4, r=5, class_=f"dot {class_}") + text(x + 9, y, words, class_="legend")


def _whisker(x: float, low: float, high: float, class_: str) -> Markup:
    ends = Markup("").join(line(x - 4, y, x + 4, y, f"whisker {class_}") for y in (low, high))
    return line(x, low, x, high, f"whisker {class_}") + ends
