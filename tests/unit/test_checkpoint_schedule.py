"""When a fit writes a checkpoint: by steps, or by time and what a write has cost."""

from __future__ import annotations

import pytest

from lion_ray.config.section import seconds_of
from lion_ray.imitation.training.checkpoints import Schedule


def simulated(schedule: Schedule, step_s: float, write_s: float, hours: float) -> tuple[list[float], float]:
    """The times at which checkpoints begin, and the share of the time in which one is written."""
    now, begun, spent, ends = 0.0, [], 0.0, None
    for step in range(1, round(hours * 3600 / step_s)):
        now += step_s
        if ends is not None and now >= ends:
            schedule.wrote(write_s, now)
            ends = None
        if ends is None and schedule.due(step, now):
            begun.append(now)
            spent += write_s
            ends = now + write_s
    return begun, spent / now


@pytest.mark.parametrize("write_s", [0.5, 30, 40, 300, 1000])
@pytest.mark.parametrize("guess_s", [1, 300])
def test_writing_takes_at_most_a_twentieth_of_a_fit(write_s: float, guess_s: float) -> None:
    begun, share = simulated(Schedule(600, None, guess_s, 0.0), 2.0, write_s, 24)
    assert begun
    assert share <= 0.05 + 1e-3
    # Not more seldom than that takes.
    assert len(begun) >= 0.9 * min(24 * 3600 / (600 + write_s + 2), 24 * 3600 * 0.05 / write_s) - 1


def test_a_fit_that_is_too_short_for_a_write_has_none() -> None:
    assert simulated(Schedule(600, None, 300, 0.0), 2.0, 300, 1.5)[0] == []


def test_a_number_of_steps_is_kept_to_whatever_it_costs() -> None:
    schedule = Schedule(600, 3, 1e9, 0.0)
    assert [step for step in range(10) if schedule.due(step, 0.0)] == [0, 3, 6, 9]


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("10min", 600), ("1.5h", 5400)])
def test_a_duration_in_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
