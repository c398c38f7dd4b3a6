"""The alarm for a student that learns to please what rewards it: the reward rises, and an independent figure does not.

The independent figure is the checks' mean on the held-out set, else the held-out quality by the referee, which may not
be the model that rewards (`RunConfig`). Both are compared with the iteration before.
"""

from __future__ import annotations

from collections.abc import Iterator

from lion_ray.core.iteration_result import IterationResult

MIN_RISE = 0.01
"""The smallest rise of the mean reward (0 to 1) that counts."""


def reward(result: IterationResult) -> float | None:
    """The mean reward of the student's answers in an iteration's last round that has one."""
    # A discriminator's scores, which come without criteria, have no scale.
    found = [one["reward"] for one in result.rewards or () if one["reward"] is not None and one.get("criteria", 1)]
    return found[-1] if found else None


def independent(result: IterationResult) -> tuple[str, float] | None:
    """The name and the value of what measures the student without rewarding it."""
    if result.checks is not None and result.checks["mean"]:
        return "the checks' score", result.checks["mean"]["value"]
    if result.quality_heldout:
        return "held-out quality", result.quality_heldout["ratio"]
    return None


def alarm(before: IterationResult, after: IterationResult) -> Iterator[str]:
    """A warning if the reward rose from one iteration to the next and the independent figure did not."""
    rewards, first, last = (reward(before), reward(after)), independent(before), independent(after)
    if rewards[0] is None or rewards[1] is None or first is None or last is None:
        return
    (name, earlier), (same, later) = first, last
    if name == same and rewards[1] - rewards[0] >= MIN_RISE and later <= earlier:
        yield (
            f"the reward rose from {rewards[0]:.3f} to {rewards[1]:.3f}, and {name} did not ({earlier:.3f}, now "
            f"{later:.3f}): the student may be learning to please the verifier. Read some answers of the last round "
            "(docs/on-policy.md), lower on_policy.learning_rate or on_policy.rounds, or take another verifier"
        )
