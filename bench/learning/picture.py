"""Learning curves as one self-contained SVG file: exact match over the number of teacher answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bench.learning.summary import in_words
from lion_ray.core.statistics import Estimate
from lion_ray.report.svg import Scale, bottom_axis, left_axis, legend, line, marker, path, picture, tag, text, ticks

WIDTH, PLOT = 720, 300
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
"""Distinguishable with colour blindness (Okabe and Ito)."""
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.grid{stroke:#e4e4e4}.axis{stroke:#888}.name{fill:#666}"
    ".line{fill:none;stroke-width:2}.whisker{stroke-width:1}.back{fill:#fff}"
)


def curves(arms: Mapping[str, Sequence[tuple[float, Estimate]]], title: str) -> str:
    """The picture of each arm's (answers, exact match)."""
    points = [point for curve in arms.values() for point in curve]
    top = 30 + 16 * len(arms)
    across = Scale(0, max(answers for answers, _ in points) or 1, 56, WIDTH - 20)
    marks = ticks(0, max(figure.high for _, figure in points))
    counts = [one for one in ticks(0, across.high, 8) if one <= across.high]
    up = Scale(marks[0], marks[-1], top + PLOT, top)
    colours = {f"c{number}": colour for number, colour in enumerate(COLOURS)}
    classes = {name: f"c{number % len(COLOURS)}" for number, name in enumerate(arms)}
    style = _STYLE + "".join(
        f".line.{name},.whisker.{name}{{stroke:{colour}}}.mark.{name}{{fill:{colour}}}"
        for name, colour in colours.items()
    )
    parts = [
        tag("style", Markup(style)),
        tag("rect", x=0, y=0, width=WIDTH, height=top + PLOT + 42, class_="back"),
        text(4, 14, title, class_="name", limit=110),
        legend([(classes[name], name) for name in arms], 64, 34),
        left_axis(up, marks, 50, WIDTH - 8, lambda value: f"{value:.0%}"),
        bottom_axis(across, counts, top + PLOT, lambda value: f"{value:.0f}", "teacher's answers"),
    ]
    for place, (name, curve) in enumerate(arms.items()):
        aside = (place - (len(arms) - 1) / 2) * 4
        places = [(across(answers) + aside, up(figure.value)) for answers, figure in curve]
        parts.append(path(places, f"line {classes[name]}"))
        for (x, y), (answers, figure) in zip(places, curve, strict=True):
            parts.append(line(x, up(figure.low), x, up(figure.high), f"whisker {classes[name]}"))
            parts.append(
                marker(place, x, y, f"mark {classes[name]}", f"{name}, {answers:.0f} answers: {in_words(figure)}")
            )
    description = "; ".join(
        f"{name}: " + ", ".join(f"{figure.value:.1%}" for _, figure in curve) for name, curve in arms.items()
    )
    return str(picture("learning", title, description, WIDTH, top + PLOT + 42, *parts)) + "\n"
