"""The alarm rings where the reward rises and the independent figure does not, and only there."""

from __future__ import annotations

import pytest

from lion_ray.core.iteration_result import IterationResult
from lion_ray.pipeline.reward_alarm import alarm


def result(number: int, reward: float | None, *, checks: float | None = None, quality: float | None = None):
    return IterationResult(
        iteration=number,
        rewards=[{"reward": 0.1}, {"reward": reward}, {"reward": None}],
        checks=None if checks is None else {"mean": {"value": checks}},
        quality_heldout=None if quality is None else {"ratio": quality},
    )


@pytest.mark.parametrize(
    ("before", "after", "rings"),
    [
        ({"reward": 0.5, "checks": 0.4}, {"reward": 0.7, "checks": 0.4}, True),
        ({"reward": 0.5, "checks": 0.4}, {"reward": 0.7, "checks": 0.3, "quality": 0.9}, True),
        ({"reward": 0.5, "quality": 0.8}, {"reward": 0.7, "quality": 0.7}, True),
        ({"reward": 0.5, "checks": 0.4}, {"reward": 0.7, "checks": 0.5}, False),
        ({"reward": 0.7, "checks": 0.4}, {"reward": 0.5, "checks": 0.3}, False),
        ({"reward": 0.5, "checks": 0.4}, {"reward": 0.505, "checks": 0.4}, False),
        ({"reward": None, "checks": 0.4}, {"reward": 0.1, "checks": 0.4}, False),
        ({"reward": 0.5}, {"reward": 0.7}, False),
        ({"reward": 0.5, "checks": 0.4}, {"reward": 0.7, "quality": 0.4}, False),
    ],
)
def test_when_it_rings(before: dict, after: dict, rings: bool) -> None:
    found = list(alarm(result(1, **before), result(2, **after)))
    assert bool(found) is rings
    assert all("please the verifier" in one and "\n" not in one for one in found)
