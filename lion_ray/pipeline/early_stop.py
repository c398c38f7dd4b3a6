"""Whether a student has stopped gaining, so that a run need not go on.

Invariants:
- The decision depends on what is committed alone, so a run that was killed decides the same when it goes on.
- A decision to stop is written down with the numbers that it rests on; what was decided once stands.
- A checkpoint that was not measured neither gains nor loses.

What is measured: the checks' score on the held-out set where checks are configured (`evaluation.checks`); else relative
quality where every checkpoint is judged on it (`discrimination.judge_heldout: every`); else the held-out loss. This
module knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.shapes import STOP, check
from lion_ray.core.store import RunStore


def on_plateau(values: Sequence[float | None], *, rounds: int, min_gain: float) -> bool:
    """Whether the last `rounds` measured values each failed to beat the best before by at least `min_gain`.

    `values`: more is better, oldest first; None where nothing was measured. A smaller rise does not become the best:
    several of them together still count as a gain.
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
    """Why the run ends with this iteration's imitation; None where it goes on.

    Raises:
        InfrastructureError: the decision could not be written down.
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
    # At the end of the list, or else this checkpoint was not measured and there is nothing to decide.
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

    The checks' score is a mean from 0 to 1, quality is student's scores / teacher's, loss is in nats per token. None
    where it was not measured.
    """
    if config.evaluation.checks:
        scored = [store.stage(layout.checks(k)).manifest() or {} for k in range(iteration + 1)]
        return "checks", [(one.get("mean") or {}).get("value") for one in scored]
    if config.discrimination.judge_heldout == "every":
        judged = [store.stage(layout.verdicts(k, heldout=True)).manifest() or {} for k in range(iteration + 1)]
        return "quality", [(one.get("relative_quality") or {}).get("ratio") for one in judged]
    fits = [store.stage(layout.checkpoint(k)).manifest() or {} for k in range(1, iteration + 1)]
    first = fits[0].get("heldout_loss_before") if fits else None
    return "loss", [first, *(one.get("heldout_loss_after") for one in fits)]


def read_stop(store: RunStore) -> dict[str, Any] | None:
    """The decision to end early, where there is one: iteration, measure, values, rounds, min_gain, reason."""
    found = store.read_record(layout.STOPPED)
    return None if found is None else check(found, STOP)


def _reason(measure: str, values: Sequence[float | None], rounds: int, min_gain: float) -> str:
    known = [value for value in values if value is not None]
    before, last = known[: len(known) - rounds], known[-1]
    times = "an iteration" if rounds == 1 else f"{rounds} iterations in a row"
    if measure == "checks":
        return (
            f"the checks' score on held-out rose by less than {min_gain:g} in {times}: {last:.3f}, and before "
            f"{max(before):.3f} at best"
        )
    if measure == "quality":
        return (
            f"relative quality on held-out rose by less than {min_gain:.1%} in {times}: {last:.1%}, and before "
            f"{max(before):.1%} at best"
        )
    return f"held-out loss fell by less than {min_gain:g} in {times}: {last:.3f}, and before {min(before):.3f} at best"
