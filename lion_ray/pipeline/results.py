"""Iterations' results, read from a run folder's manifests.

Invariants:
- Everything is derived from the run folder, so `status` shows the same from anywhere, during and after a run.
- A value that was not measured is None, never 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lion_ray.core import layout
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.store import Manifest, RunStore
from lion_ray.pipeline.early_stop import read_stop
from lion_ray.pipeline.price_of_gain import price_of_gain
from lion_ray.pipeline.reward_alarm import alarm
from lion_ray.pipeline.stage import NUMBERS
from lion_ray.pipeline.stages import of_iteration


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


def write_result(store: RunStore, result: IterationResult) -> None:
    """Write the iteration's result as JSON into its folder."""
    store.write_record(layout.result(result.iteration), json.loads(json.dumps(result.to_json())))
