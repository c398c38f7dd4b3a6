"""Early stop: whether the student has stopped gaining, so that the run can end.

Invariants:
- The decision depends only on committed data, so a killed run decides the same when it resumes.
- A decision to stop is recorded with its numbers and never changed.
- A checkpoint that was not measured counts as neither gain nor loss.

The measure: the checks' score on the held-out set if checks are configured (`evaluation.checks`); else relative
quality if every checkpoint is judged on it (`discrimination.judge_heldout: every`); else the held-out loss. This module
does not know Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.shapes import STOP, check
from lion_ray.core.store import RunStore
from lion_ray.models.checkpoints import last_fit


def on_plateau(values: Sequence[float | None], *, rounds: int, min_gain: float) -> bool:
    """Whether each of the last `rounds` measured values failed to exceed the previous best by at least `min_gain`.

    `values`: higher is better, oldest first; None if not measured. A smaller rise does not become the new best, so
    several small rises together can still count as a gain.
    """
    best: float | None = None
    waited = 0
    for value in values:
        if value is None:
            continue
        if best is None or (value > best and value - best >= min_gain):
            best, waited = value, 0
        else:
            waited += 1
    return waited >= rounds


def stop_reason(store: RunStore, config: RunConfig, iteration: int) -> str | None:
    """Why the run ends with this iteration's imitation. Returns None if it continues.

    Raises:
        InfrastructureError: the decision could not be recorded.
    """
    if config.stop.plateau is None:
        return None
    known = read_stop(store)
    if known is not None:
        return str(known["reason"]) if known["iteration"] == iteration else None
    rounds, min_gain = config.stop.plateau.rounds, config.stop.plateau.min_gain
    measure, values = measured(store, config, iteration)
    sign = -1.0 if measure == "loss" else 1.0
    signed = [None if value is None else sign * value for value in values]
    # If the last value is None, this checkpoint was not measured and there is nothing to decide.
    if values[-1] is None or not on_plateau(signed, rounds=rounds, min_gain=min_gain):
        return None
    reason = _reason(measure, values, rounds, min_gain)
    store.write_record(
        layout.STOPPED,
        {
            "iteration": iteration,
            "measure": measure,
            "values": values,
            "rounds": rounds,
            "min_gain": min_gain,
            "reason": reason,
        },
    )
    return reason


def measured(store: RunStore, config: RunConfig, iteration: int) -> tuple[str, list[float | None]]:
    """(checks, quality or loss; its value for the base model and after each iteration up to this one).

    The checks' score is a mean from 0 to 1, quality is student's scores / teacher's, loss is in nats per token. None if
    not measured.
    """
    if config.evaluation.checks:
        scored = [store.stage(layout.checks(k)).manifest() or {} for k in range(iteration + 1)]
        return "checks", [(one.get("mean") or {}).get("value") for one in scored]
    if config.discrimination.judge_heldout == "every":
        judged = [store.stage(layout.verdicts(k, heldout=True)).manifest() or {} for k in range(iteration + 1)]
        return "quality", [(one.get("relative_quality") or {}).get("ratio") for one in judged]
    fits = [store.stage(last_fit(store, k)).manifest() or {} for k in range(1, iteration + 1)]
    first = (store.stage(layout.checkpoint(1)).manifest() or {}).get("heldout_loss_before")
    return "loss", [first, *(one.get("heldout_loss_after") for one in fits)]


def read_stop(store: RunStore) -> dict[str, Any] | None:
    """The decision to end early, if any: iteration, measure, values, rounds, min_gain, reason."""
    found = store.read_record(layout.STOPPED)
    return None if found is None else check(found, STOP)


def _reason(measure: str, values: Sequence[float | None], rounds: int, min_gain: float) -> str:
    known = [value for value in values if value is not None]
    before, last = known[: len(known) - rounds], known[-1]
    times = "an iteration" if rounds == 1 else f"{rounds} iterations in a row"
    if measure == "checks":
        return (
            f"the checks' held-out score rose by less than {min_gain:g} in {times}: {last:.3f}, previous best "
            f"{max(before):.3f}"
        )
    if measure == "quality":
        return (
            f"held-out relative quality rose by less than {min_gain:.1%} in {times}: {last:.1%}, previous best "
            f"{max(before):.1%}"
        )
    return f"held-out loss fell by less than {min_gain:g} in {times}: {last:.3f}, previous best {min(before):.3f}"
