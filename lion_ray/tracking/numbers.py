"""An iteration's result, a step and the spending as flat metrics, with the same names in every tracker.

Invariant: no name is a path prefix of another (a, and a/b), because file stores turn them into folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lion_ray.core.iteration_result import IterationResult
from lion_ray.tracking.base import Spend, TrainingStep

STEP = "training/step"
ITERATION = "iteration/number"
SPENT_AT = "spend/seconds"
"""The names of the x-axes: steps, iterations, seconds since the run began."""
SPENT = ("usd", "uncertain_usd", "completed", "replayed", "failed", "prompt_tokens", "completion_tokens", "in_flight")
SUMMED = ("seconds", "calls", "prompt_tokens", "completion_tokens", "cost_usd")
"""Figures summed over an iteration's stages."""


def step_numbers(step: TrainingStep) -> dict[str, float]:
    """A step's metrics, with the trackers' names."""
    return {f"training/{name}": float(value) for name, value in step.metrics.items()} | {STEP: float(step.number)}


def result_numbers(result: IterationResult) -> dict[str, float]:
    """An iteration's metrics, with the trackers' names."""
    return {f"iteration/{name}": value for name, value in numbers(result).items()} | {ITERATION: result.iteration}


def spend_numbers(spend: Spend, began: float) -> dict[str, float]:
    """The spending, with the trackers' names."""
    return {f"spend/{name}": float(getattr(spend, name)) for name in SPENT} | {
        SPENT_AT: float(max(0, int(spend.time - began)))
    }


def numbers(result: IterationResult) -> dict[str, float]:
    """All numbers in an iteration's result, except those that were not measured."""
    return {name: float(value) for name, value in _numbers(result) if value is not None}


def _numbers(result: IterationResult) -> Iterator[tuple[str, float | None]]:
    for name in ("train_rows", "pairs", "cache_rows", "hard", "easy"):
        yield name, getattr(result, name)
    yield "quarantined", sum(result.quarantined.values())
    yield "filtered", sum(result.filtered.values())
    yield "heldout_loss_before", result.loss_before
    yield "heldout_loss", result.loss_after
    yield "heldout_loss_served", result.loss_served
    yield "heldout_loss_after_rounds", result.loss_after_rounds
    if result.rewards:
        yield "reward", result.rewards[-1]["reward"]
        yield "reward_first_round", result.rewards[0]["reward"]
    for name in ("quality_heldout", "quality_cache"):
        quality = getattr(result, name) or {}
        yield name, quality.get("ratio")
        yield f"{name}_low", quality.get("low")
        yield f"{name}_high", quality.get("high")
    yield from _checks(result.checks or {})
    if result.canaries and result.canaries.get("verdicts"):
        yield "canaries_right", result.canaries["right"] / result.canaries["verdicts"]
    if result.generation:
        kinds = result.generation.values()
        requests, accepted = (sum(kind[name] for kind in kinds) for name in ("requests", "accepted"))
        yield "new_rows", accepted
        yield "acceptance", accepted / requests if requests else None
        for kind, entry in result.generation.items():
            yield f"acceptance_{kind}", entry["accepted"] / entry["requests"] if entry["requests"] else None
    for name in SUMMED:
        yield name, sum(stage.get(name) or 0 for stage in result.stages.values())


def _checks(checks: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name, key in (("checks", "mean"), ("checks_of_teacher", "share_of_teacher"), ("checks_gain", "gain")):
        figure = checks.get(key) or {}
        yield name, figure.get("value")
        yield f"{name}_low", figure.get("low")
        yield f"{name}_high", figure.get("high")
    for check, figure in (checks.get("by_check") or {}).items():
        yield f"check/{check}", (figure or {}).get("value")
