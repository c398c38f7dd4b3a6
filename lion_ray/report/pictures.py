"""Flow diagrams of rows between groups, and the time line of stages.

Invariants:
- A ribbon's width is proportional to its rows; both sides of a flow have the same scale and include every row.
- Long idle time is cut out and marked, so that a night between two attempts does not compress the rest.
- Items have their numbers next to them; colour is never the only distinction.

This module does not know runs or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lion_ray.report.svg import Scale, line, picture, tag, text, ticks
from lion_ray.report.words import duration

FLOW_WIDTH = 380
WIDE, NARROW = 880, 340
"""A time line's widths, for desktops and for phones."""
_BAR = 12.0
_ROOM = 30.0
"""Minimum height of a group, so that its two lines of text fit."""
_CUT = 0.1
"""Idle time is cut out if it is longer than this share of the total active time."""


@dataclass(frozen=True, slots=True)
class Group:
    """One end of some ribbons."""

    label: str
    class_: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stage on the time line: start (seconds since the epoch) and duration."""

    label: str
    class_: str
    began: float
    seconds: float


def flow(
    key: str, title: str, left: Sequence[Group], right: Sequence[Group], rows: Mapping[tuple[int, int], int]
) -> Markup | None:
    """Ribbons from left to right groups; `rows` are counts by (left index, right index). None if there are no rows."""
    total = sum(rows.values())
    if not total:
        return None
    sides = (_sums(rows, 0, len(left)), _sums(rows, 1, len(right)))
    scale = 170 / total
    slots = [[max(_ROOM, size * scale) if size else 0.0 for size in side] for side in sides]
    height = max(sum(side) + 8 * len(side) for side in slots) + 8
    tops = [_tops(side, height) for side in slots]
    # A group's bar is centred in its slot.
    at = [
        [top + (slot - size * scale) / 2 for top, slot, size in zip(tops[one], slots[one], sides[one], strict=True)]
        for one in (0, 1)
    ]
    x0, x1 = 2 + _BAR, FLOW_WIDTH - 2 - _BAR
    ribbons, labels = [], []
    taken = [list(at[0]), list(at[1])]
    for (source, target), size in sorted(rows.items()):
        if size:
            width = size * scale
            y0, y1 = taken[0][source], taken[1][target]
            taken[0][source] += width
            taken[1][target] += width
            hint = f"{left[source].label} → {right[target].label}: {size:,} ({size / total:.0%})"
            ribbons.append(_ribbon(x0, x1, y0, y1, width, right[target].class_, hint))
    for side, groups, x, anchor in ((0, left, 2.0, "start"), (1, right, x1, "end")):
        for place, group in enumerate(groups):
            size = sides[side][place]
            if not size:
                continue
            bar = tag(
                "rect", x=x, y=at[side][place], width=_BAR, height=max(1.0, size * scale), class_=f"bar {group.class_}"
            )
            middle = tops[side][place] + slots[side][place] / 2
            beside = x0 + 5 if side == 0 else x1 - 5
            count_text = f"{size:,} ({size / total:.0%})"
            labels += [
                bar,
                text(beside, middle - 2, group.label, at=anchor, class_="over label", limit=30),
                text(beside, middle + 12, count_text, at=anchor, class_="over value"),
            ]
    description = "; ".join(
        f"{left[source].label} to {right[target].label}: {size:,}"
        for (source, target), size in sorted(rows.items())
        if size
    )
    return picture(key, title, f"{total:,} in all. {description}.", FLOW_WIDTH, height, *ribbons, *labels)


def timeline(key: str, title: str, spans: Sequence[Span], *, wide: bool) -> Markup | None:
    """Stages as bars over the time since the first start, in order of their starts."""
    if not spans:
        return None
    spans = sorted(spans, key=lambda span: (span.began, span.began + span.seconds))
    clock = Clock(spans)
    left = 250.0 if wide else 8.0
    width = WIDE if wide else NARROW
    pitch = 22 if wide else 34
    x_scale = Scale(0, clock.length, left, width - 66)
    bottom = 12 + pitch * len(spans)
    unit, size = _unit(clock.length)
    marks = [mark for mark in ticks(0, clock.length / size, 6 if wide else 4) if mark * size <= clock.length * 1.001]
    parts: list[Markup] = [line(x_scale(mark * size), 6, x_scale(mark * size), bottom, "grid") for mark in marks]
    for at, idle in clock.cuts:
        x = x_scale(at)
        parts += [line(x, 6, x, bottom, "cut"), text(x + 3, 14, f"{duration(idle)} idle", class_="tick")]
    for place, span in enumerate(spans):
        y = 10 + pitch * place
        start, end = x_scale(clock(span.began)), x_scale(clock(span.began + span.seconds))
        took = duration(span.seconds)
        hint = tag("title", f"{span.label}: {took}")
        top = y + 2 if wide else y + 14
        parts.append(
            tag("rect", hint, x=start, y=top, width=max(1.5, end - start), height=14, rx=2, class_=f"bar {span.class_}")
        )
        parts.append(text(end + 5, top + 11, took, class_="value"))
        parts.append(
            text(left - 8, y + 13, span.label, at="end", class_="label") if wide else text(8, y + 9, span.label)
        )
    for mark in marks:
        parts.append(text(x_scale(mark * size), bottom + 15, f"{mark:g}", at="middle", class_="tick"))
    parts.append(line(left, bottom, width - 66, bottom, "axis"))
    parts.append(
        text((left + width - 66) / 2, bottom + 31, f"{unit} since the run started", at="middle", class_="name")
    )
    description = "; ".join(f"{span.label}: {duration(span.seconds)}" for span in spans)
    idle_note = f" {len(clock.cuts)} idle periods are cut out." if clock.cuts else ""
    return picture(key, title, f"{description}.{idle_note}", width, bottom + 38, *parts)


class Clock:
    """Seconds since the first stage started, without long idle periods."""

    def __init__(self, spans: Sequence[Span]) -> None:
        busy: list[list[float]] = []
        for began, ended in sorted((span.began, span.began + span.seconds) for span in spans):
            if busy and began <= busy[-1][1]:
                busy[-1][1] = max(busy[-1][1], ended)
            else:
                busy.append([began, ended])
        self.busy = sum(ended - began for began, ended in busy)
        """Seconds with at least one stage running."""
        self.cuts: list[tuple[float, float]] = []
        """(position on the line, seconds cut out)."""
        self._pieces: list[tuple[float, float]] = []
        at = 0.0
        for place, (began, ended) in enumerate(busy):
            if place:
                idle = began - busy[place - 1][1]
                if idle > _CUT * self.busy:
                    self.cuts.append((at + _CUT * self.busy / 4, idle))
                    idle = _CUT * self.busy / 2
                at += idle
            self._pieces.append((began, at))
            at += ended - began
        self.length = at or 1.0

    def __call__(self, moment: float) -> float:
        """The position on the line of a stage's start or end."""
        began, at = max((piece for piece in self._pieces if piece[0] <= moment), default=self._pieces[0])
        return at + moment - began


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _sums(rows: Mapping[tuple[int, int], int], side: int, groups: int) -> list[int]:
    sums = [0] * groups
    for places, size in rows.items():
        sums[places[side]] += size
    return sums


def _tops(slots: Sequence[float], height: float) -> list[float]:
    """The top of each group; the groups are spread evenly over the height."""
    used = [slot for slot in slots if slot]
    gap = (height - sum(used)) / (len(used) + 1)
    tops, at = [], gap
    for slot in slots:
        tops.append(at)
        at += slot + gap if slot else 0
    return tops


def _ribbon(x0: float, x1: float, y0: float, y1: float, width: float, class_: str, hint: str) -> Markup:
    half = (x0 + x1) / 2
    d = (
        f"M{x0:.1f} {y0:.2f}C{half:.1f} {y0:.2f} {half:.1f} {y1:.2f} {x1:.1f} {y1:.2f}"
        f"V{y1 + width:.2f}C{half:.1f} {y1 + width:.2f} {half:.1f} {y0 + width:.2f} {x0:.1f} {y0 + width:.2f}Z"
    )
    return tag("path", tag("title", hint), d=d, class_=f"ribbon {class_}")
