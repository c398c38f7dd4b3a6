"""An iteration's result, read from its manifests: for the terminal, for JSON, for `status`.

Invariants:
- Everything is derived from the run folder, so `status` shows the same from anywhere, during and after a run.
- A value that was not measured is None and shown as a dash, never as 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.table import Table

from lion_ray.core import layout
from lion_ray.core.store import Manifest, RunStore
from lion_ray.pipeline.early_stop import read_stop
from lion_ray.pipeline.price_of_gain import price_of_gain
from lion_ray.pipeline.reward_alarm import alarm
from lion_ray.pipeline.stage import NUMBERS
from lion_ray.pipeline.stages import of_iteration

CAPTION = "loss: nats per token on held-out teacher answers; quality: student's scores / teacher's, 95 % interval"
CHECKS_CAPTION = "checks: mean score from 0 to 1 with its 95 % interval, and the share of the teacher's mean score"
CHECKS_HEADING = "checks, held-out"
HEADINGS = (
    "iteration",
    "train",
    "cache",
    "hard / easy",
    "new",
    "accepted",
    "quarantined",
    "loss before → after",
    "quality, held-out",
    "quality, cache",
    CHECKS_HEADING,
    "minutes",
)
DASH = "–"
"""A value that was not measured."""


@dataclass(frozen=True, slots=True)
class IterationResult:
    """One iteration; number 0 is the base model."""

    iteration: int
    train_rows: int | None = None
    pairs: int | None = None
    """Pairs of a better and a worse answer, trained on in addition to these rows (`preference`)."""
    cache_rows: int | None = None
    hard: int | None = None
    easy: int | None = None
    quarantined: dict[str, int] = field(default_factory=dict)
    """By stage and reason: rows that failed, and were neither trained on nor scored."""
    filtered: dict[str, int] = field(default_factory=dict)
    """By stage and reason: rows that a filter dropped; none of them failed."""
    generation: dict[str, Any] = field(default_factory=dict)
    """By kind: requests, accepted, rejected by reason."""
    loss_before: float | None = None
    """Mean cross-entropy of held-out teacher answers, nats per token, float32."""
    loss_after: float | None = None
    loss_served: float | None = None
    """The same with the weights as the engines hold them (student.dtype)."""
    loss_after_rounds: float | None = None
    """The same as loss_after, at the end of the on-policy rounds."""
    rewards: list[dict[str, Any]] | None = None
    """Of each on-policy round: `reward` (the mean of the student's answers), `criteria` and `criteria_untelling`,
    `answers` and `answers_learned`, and `engine_gap_mean` (nats per token)."""
    quality_cache: dict[str, float] | None = None
    """Sum of student scores / sum of teacher scores on the Cache Pool, with a 95 % bootstrap interval."""
    quality_heldout: dict[str, float] | None = None
    win_rate: dict[str, Any] | None = None
    """On the held-out set: `wins`, `ties`, `losses` of the student against the teacher, `rate` (ties count half) and
    `length_controlled`, each with its interval; if the judge was calibrated, `wins_corrected`, `losses_corrected`."""
    gain_heldout: dict[str, float] | None = None
    """The mean rise of the student's score over the iteration before, in the judge's points, with its interval."""
    checks: dict[str, Any] | None = None
    """The checks' scores of the held-out answers, each value as {value, low, high, n} or null: `mean` (over checks,
    then over rows), `by_check`, `gain` (over the previous checkpoint), `gain_over_base`, `teacher` (its own mean),
    `share_of_teacher` (a ratio); `rows`, `scored`, `unanswered` and `quarantined` (by reason)."""
    price_of_gain: dict[str, Any] | None = None
    """The student's gain over the previous one, and its price (see `price_of_gain`)."""
    judges: dict[str, int] = field(default_factory=dict)
    """The models that the referee's endpoint reported, and the number of rows that each judged."""
    canaries: dict[str, Any] | None = None
    """On the canary pairs: `verdicts`, `right`, `mean_gap`, and the `drift` (see `discrimination.drift`)
    since `against`."""
    warnings: list[str] = field(default_factory=list)
    """Why this iteration's verdicts may not be comparable with others."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage: seconds, calls, prompt and completion tokens."""
    model: str | None = None
    """The checkpoint's folder."""

    def sentence(self) -> str:
        """One line for a log."""
        parts = [f"iteration {self.iteration}" if self.iteration else "the base model"]
        if self.loss_after is not None:
            parts.append(f"held-out loss {_number(self.loss_before)} → {_number(self.loss_after)}")
        if self.quality_heldout:
            parts.append(f"relative quality {_quality(self.quality_heldout)} on held-out")
        if self.checks is not None and self.checks["mean"]:
            parts.append(f"checks {checks_words(self.checks)}")
        if self.hard is not None:
            parts.append(f"{self.hard} hard, {self.easy} easy")
        accepted = {kind: entry["accepted"] for kind, entry in self.generation.items()}
        if accepted:
            parts.append(f"{sum(accepted.values())} new instructions")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(store: RunStore, iteration: int, *, priced: bool = True) -> IterationResult:
    """Gather what an iteration's stages committed; missing values stay None.

    `priced`: include the price of the gain over the previous student.
    """
    found: dict[str, Any] = {}
    summaries: dict[str, Manifest] = {}
    for stage in of_iteration(iteration):
        if stage.manifest(store, iteration):
            found |= stage.results(store, iteration)
            summaries[stage.name] = stage.summary(store, iteration)
    judges = judged_by(store, iteration)
    result = IterationResult(
        iteration=iteration,
        quarantined=_reasons(summaries, "quarantined") | _reasons(summaries, "dropped"),
        filtered=_reasons(summaries, "filtered"),
        judges=judges,
        warnings=[
            *_no_better_than_chance(store, iteration, found.get("canaries") or {}),
            *_drifted(found.get("canaries") or {}),
            *_other_judge(store, iteration, judges),
        ],
        stages={
            name: numbers
            for name, summary in summaries.items()
            if (numbers := {key: summary[key] for key in NUMBERS if summary.get(key) is not None})
        },
        **found,
    )
    if not priced or not iteration:
        return result
    before = summarise(store, iteration - 1, priced=False)
    price = price_of_gain(before, result)
    warnings = [*result.warnings, *alarm(before, result)]
    return replace(result, warnings=warnings, price_of_gain=None if price is None else price.to_json())


def _reasons(summaries: dict[str, Manifest], key: str) -> dict[str, int]:
    return {
        f"{stage}: {reason}": count
        for stage, summary in summaries.items()
        for reason, count in (summary.get(key) or {}).items()
    }


def checks_words(checks: dict[str, Any], of: str = " of the teacher's") -> str:
    """The checks' mean with its interval, and the share of the teacher's: 0.71 [0.62, 0.79], 88% of the teacher's."""
    mean, share = checks["mean"], checks["share_of_teacher"]
    if not mean:
        return DASH
    words = f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"
    return words + (f", {share['value']:.0%}{of}" if share else "")


def judged_by(store: RunStore, iteration: int) -> dict[str, int]:
    """The models that judged in an iteration, as the endpoint reported them, with their numbers of rows."""
    found: Counter[str] = Counter()
    for stage in of_iteration(iteration):
        if stage.actor == "referee":
            found.update(stage.manifest(store, iteration).get("judges", {}))
    return dict(found.most_common())


def _no_better_than_chance(store: RunStore, iteration: int, canaries: Manifest) -> Iterator[str]:
    """Warn once, in the first iteration in which this holds."""
    before = (store.stage(layout.canaries(k)).manifest() or {} for k in range(iteration))
    if _by_chance(canaries) and not any(map(_by_chance, before)):
        yield (
            f"the judge is right in only {canaries['right']} of {canaries['verdicts']} verdicts on pairs with an "
            "obvious winner: its scores say little about the student. Use a better judge, or measure this one with "
            "lion-ray judge calibrate"
        )


def _by_chance(canaries: Manifest) -> bool:
    """Whether the judge is right no more often than by chance."""
    return bool(canaries.get("verdicts")) and 2 * canaries["right"] <= canaries["verdicts"]


def _drifted(canaries: Manifest) -> Iterator[str]:
    found = canaries.get("drift")
    if found and found["drifted"]:
        yield f"the judge has changed since iteration {canaries['against']}. {found['says']}"


def _other_judge(store: RunStore, iteration: int, judges: dict[str, int]) -> Iterator[str]:
    named = ", ".join(f"{model} (for {rows} of {sum(judges.values())} rows)" for model, rows in judges.items())
    if len(judges) > 1:
        yield f"the referee's endpoint answered as more than one model: {named}"
    before = next((found for k in range(iteration - 1, -1, -1) if (found := judged_by(store, k))), None)
    if judges and before and set(judges) != set(before):
        yield f"the referee's endpoint answered as a different model than before: {', '.join(before)}, now {named}"


def finished(store: RunStore, iterations: int) -> bool:
    """Whether a run of `iterations` iterations has written its last result, possibly after an early stop."""
    stopped = read_stop(store)
    last = iterations + 1 if stopped is None else stopped["iteration"]
    return store.exists(layout.result(last))


def results(store: RunStore) -> list[IterationResult]:
    """The result of every iteration in the folder, from 0."""
    described = store.description()
    iterations = 0 if described is None else described["config"].get("iterations", 0)
    found = [summarise(store, iteration) for iteration in range(iterations + 2)]
    return [result for result in found if result.stages]


def results_table(found: list[IterationResult]) -> Table:
    """The table printed at the end of a run."""
    warnings = [f"iteration {one.iteration}: {warning}" for one in found for warning in one.warnings]
    rows = []
    for one in found:
        requests = sum(entry["requests"] for entry in one.generation.values())
        accepted = sum(entry["accepted"] for entry in one.generation.values())
        rows.append(
            (
                str(one.iteration) if one.iteration else "0 (base model)",
                _number(one.train_rows) + (f" + {one.pairs} pairs" if one.pairs else ""),
                _number(one.cache_rows),
                DASH if one.hard is None else f"{one.hard} / {one.easy}",
                str(accepted) if one.generation else DASH,
                f"{accepted / requests:.0%} of {requests}" if requests else DASH,
                str(sum(one.quarantined.values())),
                DASH if one.loss_after is None else f"{_number(one.loss_before)} → {_number(one.loss_after)}",
                _quality(one.quality_heldout),
                _quality(one.quality_cache),
                checks_words(one.checks, of="") if one.checks else DASH,
                f"{sum(stage.get('seconds', 0) for stage in one.stages.values()) / 60:.1f}",
            )
        )
    headings, cells = measured(HEADINGS, rows)
    captions = [CAPTION, *([CHECKS_CAPTION] if CHECKS_HEADING in headings else [])]
    table = Table(title="Results", caption="\n".join([*captions, *warnings]))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in cells:
        table.add_row(*row)
    return table


def measured(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns in which at least one row has a value. Without rows, all of them."""
    kept = [k for k in range(len(headings)) if not rows or any(row[k] != DASH for row in rows)]
    return [headings[k] for k in kept], [[row[k] for k in kept] for row in rows]


def write_result(store: RunStore, result: IterationResult) -> None:
    """Write the iteration's result as JSON into its folder."""
    store.write_record(layout.result(result.iteration), json.loads(json.dumps(result.to_json())))


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


def _quality(value: dict[str, float] | None) -> str:
    return DASH if not value else f"{value['ratio']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
