"""Summarises the results: exact match by arm and checkpoint with intervals, differences, tables, learning curves.

Invariants:
- Held-out tasks are the same for every arm and seed, so arms are compared task by task: the bootstrap resamples tasks.
  The spread over seeds is shown separately.
- Two arms are compared on the seeds that both have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.learning.arms import Cell
from bench.learning.families import FAMILIES
from lion_ray.core.statistics import Estimate, percentiles, resampled_sums

BASELINE = "random_rows"
BOOTSTRAP_SEED = 0

Settings = tuple[float, float]
"""The teacher's error and the judge's noise."""


@dataclass
class Checkpoint:
    """A student, and the tasks that it got right."""

    answers: int
    """Teacher answers that it was trained on so far."""
    right: dict[str, bool] = field(default_factory=dict)
    """By held-out instruction."""
    family: dict[str, str] = field(default_factory=dict)

    @property
    def exact(self) -> float:
        return sum(self.right.values()) / len(self.right)


@dataclass
class Outcome:
    """One cell's result."""

    cell: Cell
    seconds: float
    attempt: int
    checkpoints: list[Checkpoint]
    taught: list[Mapping[str, Any]]
    """The training rows of each imitation."""
    split: list[tuple[int | None, int | None]]
    """Numbers of hard and easy rows after each checkpoint."""

    @property
    def last(self) -> Checkpoint:
        return self.checkpoints[-1]


def outcome(rows: Iterable[Mapping[str, Any]]) -> Outcome:
    """Parse the lines of a result."""
    about, *rest = rows
    cell = Cell.of({name: about[name] for name in ("arm", "seed", "error", "noise", "size")})
    found = Outcome(cell, about["seconds"], about["attempt"], [], [], [])
    for row in rest:
        if row["kind"] == "checkpoint":
            found.checkpoints.append(Checkpoint(row["answers"]))
            found.split.append((row["hard"], row["easy"]))
            found.taught += [row["taught"]] if row["taught"] else []
        else:
            found.last.right[row["instruction"]] = row["right"]
            found.last.family[row["instruction"]] = row["family"]
    return found


def in_words(figure: Estimate, sign: str = "") -> str:
    """A share or a difference of shares, with its interval."""
    return f"{figure.value:{sign}.1%} [{figure.low:{sign}.1%}, {figure.high:{sign}.1%}]"


def mean_right(checkpoints: Sequence[Checkpoint], family: str | None = None) -> Estimate:
    """The share of held-out tasks that students get right, on average."""
    return _figure(_by_task(checkpoints, family))


def difference(ours: Sequence[Checkpoint], theirs: Sequence[Checkpoint]) -> Estimate:
    """The mean difference of the two shares, paired by task."""
    return _figure(_by_task(ours) - _by_task(theirs))


def _by_task(checkpoints: Sequence[Checkpoint], family: str | None = None) -> Any:
    known = [task for task in checkpoints[0].right if family in (None, checkpoints[0].family[task])]
    return np.mean([[one.right[task] for task in known] for one in checkpoints], axis=0)


def _figure(values: Any) -> Estimate:
    low, high = percentiles(resampled_sums([values], BOOTSTRAP_SEED)[0] / len(values))
    return Estimate(float(np.mean(values)), low, high, len(values))


# --- tables


def by_settings(outcomes: Iterable[Outcome]) -> dict[Settings, dict[str, list[Outcome]]]:
    """Outcomes by settings, and then by arm."""
    found: dict[Settings, dict[str, list[Outcome]]] = {}
    for one in outcomes:
        found.setdefault((one.cell.error, one.cell.noise), {}).setdefault(one.cell.arm, []).append(one)
    return found


def arms_table(outcomes: Iterable[Outcome]) -> list[str]:
    """A Markdown table with a row for each arm and settings."""
    lines = [
        "| teacher's error | judge's noise | arm | seeds | teacher's answers | by checkpoint "
        f"| last, exact match | sd of seeds | against {BASELINE} | minutes, last attempt |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (error, noise), arms in sorted(by_settings(outcomes).items()):
        baseline = {one.cell.seed: one for one in arms.get(BASELINE, [])}
        for name, runs in arms.items():
            lasts = [one.last for one in runs]
            path = " → ".join(f"{figure.value:.1%}" for _, figure in curve(runs))
            pairs = [(one.last, baseline[one.cell.seed].last) for one in runs if one.cell.seed in baseline]
            against = "–"
            if pairs and name != BASELINE:
                ours, theirs = zip(*pairs, strict=True)
                against = in_words(difference(ours, theirs), "+")
            spread = f"{statistics.stdev(one.exact for one in lasts):.1%}" if len(lasts) > 1 else "–"
            minutes = statistics.median(one.seconds for one in runs) / 60
            lines.append(
                f"| {error:g} | {noise:g} | {name} | {len(runs)} | {_range(one.answers for one in lasts)} "
                f"| {path} | {in_words(mean_right(lasts))} "
                f"| {spread} | {against} | {minutes:.1f} |"
            )
    return lines


def families_table(outcomes: Iterable[Outcome], settings: Settings) -> list[str]:
    """A Markdown table of the last students' exact match by family, with each arm's new rows of the family."""
    arms = by_settings(outcomes).get(settings, {})
    lines = ["| family | base | " + " | ".join(arms) + " |", "| --- |" + " --- |" * (len(arms) + 1)]
    every = [one.checkpoints[0] for runs in arms.values() for one in runs]
    measured = {family for one in every for family in one.family.values()}
    for family in (one for one in FAMILIES if one.name in measured):
        cells = [f"{mean_right(every, family.name).value:.0%}"]
        for runs in arms.values():
            new = statistics.fmean(new_rows(one).get(family.name, 0) for one in runs)
            cells.append(f"{mean_right([one.last for one in runs], family.name).value:.0%} ({new:.0f})")
        lines.append(f"| {family.name} | " + " | ".join(cells) + " |")
    return lines


def new_rows(one: Outcome) -> dict[str, int]:
    """The number of generated training rows by family."""
    found: dict[str, int] = {}
    for taught in one.taught:
        for source, families in taught["families"].items():
            for family, rows in families.items():
                if source != "seed":
                    found[family] = found.get(family, 0) + rows
    return found


def _range(numbers: Iterable[int]) -> str:
    every = sorted(set(numbers))
    return f"{every[0]}" if len(every) == 1 else f"{every[0]} to {every[-1]}"


# --- learning curves


def curve(runs: Sequence[Outcome]) -> list[tuple[float, Estimate]]:
    """An arm's learning curve: the teacher's answers so far, and exact match with its interval."""
    steps = min(len(one.checkpoints) for one in runs)
    return [
        (
            math.fsum(one.checkpoints[step].answers for one in runs) / len(runs),
            mean_right([one.checkpoints[step] for one in runs]),
        )
        for step in range(steps)
    ]
