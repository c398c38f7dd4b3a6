"""Score recorded outputs, from any source, against a suite's answers, without a model.

Invariants:
- Outputs are matched to questions by id; an unknown or duplicate id is an error.
- An output without a readable letter counts as wrong; a question without an output is not counted.
- A suite's score is the unweighted mean over its tasks (the paper), whatever their sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.table import Table

from lion_ray.core.errors import DataError, one_line
from lion_ray.core.statistics import RESAMPLES, percentiles
from lion_ray.evaluation.benchmarks.protocol import (
    PAPER,
    SUITES,
    Question,
    missing_tasks,
    published_letter,
    standing_letter,
)

EXTRACTIONS: dict[str, Callable[[str, Question], str | None]] = {
    "published": lambda output, _: published_letter(output),
    "standing": lambda output, question: standing_letter(output, question.letters),
    # The recorded output is the letter itself: see `run.written`.
    "logprobs": lambda output, question: standing_letter(output, question.letters),
}
"""How a letter is extracted from an output (see `protocol`); for `logprobs`, it was chosen by the call."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The result of one task."""

    task: str
    questions: int
    answered: int
    """Questions with an output."""
    right: int
    unparsed: int
    """Outputs without a readable letter; they are wrong."""

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those answered, 0 to 1; None if none was answered."""
        return self.right / self.answered if self.answered else None


@dataclass(frozen=True, slots=True)
class SuiteScore:
    """The result of a suite."""

    suite: str
    extraction: str
    tasks: tuple[TaskScore, ...]
    missing: tuple[str, ...]
    """Tasks whose questions were missing."""

    @property
    def mean(self) -> float | None:
        """The unweighted mean over the tasks that were answered."""
        known = [task.accuracy for task in self.tasks if task.accuracy is not None]
        return sum(known) / len(known) if known else None

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """A 95 % percentile bootstrap of the mean over the questions within each task; None where there is no mean."""
        known = [task for task in self.tasks if task.answered]
        if not known:
            return None
        rng = np.random.default_rng(seed)
        # Resampling a task's questions is drawing the number of right ones from a binomial distribution.
        means = [rng.binomial(task.answered, task.right / task.answered, RESAMPLES) / task.answered for task in known]
        return percentiles(np.mean(means, axis=0))

    @property
    def whole(self) -> bool:
        """Whether every question of every task was answered; only then is the score comparable with the paper's."""
        return not self.missing and all(task.answered == task.questions for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """All fields and the values derived from them."""
        tasks = [asdict(task) | {"accuracy": task.accuracy} for task in self.tasks]
        low, high = self.interval() or (None, None)
        derived = {"tasks": tasks, "mean": self.mean, "low": low, "high": high, "whole": self.whole}
        return asdict(self) | derived | {"paper": PAPER[self.suite]}


def read_outputs(path: Path) -> dict[str, str]:
    """Outputs by question id, from JSON Lines with ``id`` and ``output``.

    Raises:
        DataError: a line is invalid, or an id is a duplicate; with the file and the line.
    """
    outputs: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            one, output = row["id"], row["output"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}:{number}: not {{"id": …, "output": …}}: {one_line(error)}') from None
        if not isinstance(one, str) or not isinstance(output, str):
            raise DataError(f"{path}:{number}: id and output must be texts")
        if one in outputs:
            raise DataError(f"{path}:{number}: duplicate id {one}")
        outputs[one] = output
    return outputs


def score(
    suite: str, questions: Sequence[Question], outputs: Mapping[str, str], extraction: str = "published"
) -> SuiteScore:
    """Score outputs by question id.

    Raises:
        DataError: an id is unknown.
    """
    extract = EXTRACTIONS[extraction]
    known = {question.id for question in questions}
    unknown = [one for one in outputs if one not in known]
    if unknown:
        raise DataError(f"{len(unknown)} ids are not among {suite}'s questions here, such as '{unknown[0]}'")
    by_task: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_task[question.task].append(question)
    tasks = []
    for task in SUITES[suite]:
        answers = [(one, extract(outputs[one.id], one)) for one in by_task[task] if one.id in outputs]
        right = sum(letter == one.answer for one, letter in answers)
        unparsed = sum(letter is None for _, letter in answers)
        if by_task[task]:
            tasks.append(TaskScore(task, len(by_task[task]), len(answers), right, unparsed))
    return SuiteScore(suite, extraction, tuple(tasks), tuple(missing_tasks(suite, questions)))


def score_table(scored: SuiteScore) -> Table:
    """The result as a table, with the paper's numbers below."""
    table = Table(title=f"{scored.suite}, zero-shot, letters: {scored.extraction}")
    table.add_column("task")
    for heading in ("questions", "answered", "no letter", "accuracy"):
        table.add_column(heading, justify="right")
    for task in scored.tasks:
        table.add_row(task.task, str(task.questions), str(task.answered), str(task.unparsed), _percent(task.accuracy))
    table.add_section()
    interval = scored.interval()
    table.add_row("mean over tasks", "", "", "", _percent(scored.mean))
    if interval is not None:
        table.add_row("  95 % interval", "", "", "", f"{_percent(interval[0])}–{_percent(interval[1])}", style="dim")
    for name, value in PAPER[scored.suite].items():
        table.add_row(f"{name} (paper)", "", "", "", f"{value:.1f}%", style="dim")
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
