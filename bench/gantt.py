"""A timeline of busy resources (Gantt chart) as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_COLOURS = {"stage": "#4c78a8", "resource": "#f58518"}
_LEFT, _WIDTH, _ROW, _GAP = 270, 760, 22, 34


@dataclass
class Lane:
    """A row of the chart. Intervals are in seconds since the beginning, optionally with a utilisation."""

    name: str
    spans: list[tuple[float, float]] = field(default_factory=list)
    kind: str = "stage"
    shares: list[float] | None = None
    """Utilisation of each span, from 0 to 1; None: all are 1."""


def gantt(parts: Sequence[tuple[str, Sequence[Lane]]]) -> str:
    """One picture of several titled charts on the same scale."""
    longest = max((end for _, lanes in parts for lane in lanes for _, end in lane.spans), default=1.0)
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600) if longest / step <= 16 or step == 3600)
    rows = sum(len(lanes) for _, lanes in parts)
    height = 10 + rows * _ROW + len(parts) * (_GAP + 18)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_LEFT + _WIDTH + 20}" height="{height}" fill="white"/>',
    ]
    y = 10.0
    for title, lanes in parts:
        out.append(f'<text x="10" y="{y + 14}" font-weight="bold">{escape(title)}</text>')
        y += 22
        bottom = y + len(lanes) * _ROW
        for mark in range(0, int(longest) + 1, step):
            x = _LEFT + mark / longest * _WIDTH
            out.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
            out.append(f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle" fill="#666">{mark} s</text>')
        for lane in lanes:
            out.append(f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(lane.name)}</text>')
            shares = lane.shares or [1.0] * len(lane.spans)
            for (start, end), share in zip(lane.spans, shares, strict=True):
                x, width = _LEFT + start / longest * _WIDTH, max(0.6, (end - start) / longest * _WIDTH)
                tall = (_ROW - 6) * share
                out.append(
                    f'<rect x="{x:.1f}" y="{y + _ROW - 3 - tall:.1f}" width="{width:.2f}" height="{tall:.1f}" '
                    f'fill="{_COLOURS[lane.kind]}"/>'
                )
            y += _ROW
        y = bottom + _GAP - 4
    return "\n".join([*out, "</svg>", ""])
