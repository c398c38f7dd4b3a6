"""The report's section on evaluations: files of `evaluations/`, next to the paper's results.

Invariants:
- A file may contain anything: the formats of `lion_ray.evaluation` are drawn, others are shown as a table.
- The paper's numbers are for other models and judges, and the page says so.

This module does not know files or HTML.
"""

from __future__ import annotations

import json
import math
from typing import Any

from lion_ray.core.iteration_result import quality_words
from lion_ray.discrimination.quality import PAPER as PAPER_VICUNA
from lion_ray.evaluation.benchmarks.protocol import PAPER
from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Section, Table
from lion_ray.report.charts import Bar
from lion_ray.report.facts import Facts
from lion_ray.report.words import count, percent, short, without_secrets

KNOWN = ("suite", "target", "made_at")


def benchmarks(facts: Facts) -> Section | None:
    """All evaluations. Returns None if there are none."""
    if not facts.evaluations:
        return None
    figures: list[Figure] = []
    tables: list[Table] = []
    for number, (name, found) in enumerate(facts.evaluations):
        suite, target = (str(found.get(key) or "unknown") for key in ("suite", "target"))
        title = f"{suite}: {short(target, 60)}"
        scored = _suite_score(found)
        if scored is not None:
            figures.append(_accuracy_figure(f"eval-{number}", title, suite, target, scored))
        elif _is_estimate(found.get("relative")):
            figures += _quality_figures(f"eval-{number}", title, suite, target, found)
        else:
            rows = [(str(key), _as_text(value)) for key, value in found.items()]
            tables.append(Table(("key", "value"), rows, f"{name} (unknown format)", text_columns=2))
    lead = [
        "The paper's numbers are for other students, with ChatGPT as the teacher, and for all of a suite's questions. "
        "They show the scale and are not a direct comparison."
    ]
    return Section("benchmarks", "Benchmarks", lead, figures, tables)


def _accuracy_figure(key: str, title: str, suite: str, target: str, scored: dict[str, Any]) -> Figure:
    whole = scored.get("whole") is True
    tasks = [task for task in scored["tasks"] if isinstance(task, dict)]
    bars = [Bar(f"{short(target, 30)}{'' if whole else ' (partial)'}", number(scored.get("mean")))]
    bars += [Bar(f"{name} (paper)", value / 100, "s5") for name, value in PAPER.get(suite, {}).items()]
    rows = [
        (
            str(task.get("task")),
            count(number(task.get("questions"))),
            count(number(task.get("answered"))),
            count(number(task.get("unparsed"))),
            percent(number(task.get("accuracy"))),
        )
        for task in tasks
    ]
    note = "" if whole else "Not every question was answered; the paper's numbers are for all questions."
    missing = scored.get("missing")
    if isinstance(missing, list | tuple) and missing:
        note += f" Missing: {short(', '.join(map(str, missing)), 400)}."
    return Figure(
        title,
        charts.bars(key, title, "accuracy, mean over tasks", bars, percent),
        Table(("task", "questions", "answered", "no letter found", "accuracy"), rows),
        note or "Unweighted mean over the tasks, zero-shot.",
    )


def _quality_figures(key: str, title: str, suite: str, target: str, found: dict[str, Any]) -> list[Figure]:
    relative = found["relative"]
    bars = [_bar(short(target, 30), relative, "s1")]
    if suite.lower().replace("-", "") == "vicuna80":
        bars += [Bar(f"{name} (paper)", value / 100, "s5") for name, value in PAPER_VICUNA.items()]
    details = [
        (name, _as_text(found[name]))
        for name in ("wins", "ties", "losses", "unparsed", "judge", "settings")
        if name in found
    ]
    figures = [
        Figure(
            title,
            charts.bars(f"{key}-all", title, "relative quality", bars, percent, reference=1.0),
            Table(
                ("measure", "value"),
                [("relative quality", f"{quality_words(relative)}, n = {count(number(relative.get('n')))}"), *details],
                text_columns=2,
            ),
            "The candidate's summed scores over the reference's, with a 95 % interval. Dashed: the reference.",
        )
    ]
    categories = found.get("by_category")
    if isinstance(categories, dict) and (known := {str(k): v for k, v in categories.items() if _is_estimate(v)}):
        figures.append(
            Figure(
                f"{title}, by category",
                charts.bars(
                    f"{key}-categories",
                    f"{title}, by category",
                    "relative quality",
                    [_bar(name, value, "s2") for name, value in known.items()],
                    percent,
                    reference=1.0,
                ),
                Table(
                    ("category", "relative quality", "rows"),
                    [(name, quality_words(value), count(number(value.get("n")))) for name, value in known.items()],
                ),
            )
        )
    return figures


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _bar(label: str, value: dict[str, Any], class_: str) -> Bar:
    return Bar(label, value["ratio"], class_, value["low"], value["high"])


def _is_estimate(value: object) -> bool:
    return isinstance(value, dict) and all(number(value.get(key)) is not None for key in ("ratio", "low", "high"))


def _suite_score(found: dict[str, Any]) -> dict[str, Any] | None:
    """The output of SuiteScore.to_json: the file itself, or the value of one of its keys."""
    for one in (found, *found.values()):
        if isinstance(one, dict) and isinstance(one.get("tasks"), list | tuple) and "mean" in one:
            return one
    return None


def _as_text(value: object) -> str:
    value = without_secrets(value)
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2000)
