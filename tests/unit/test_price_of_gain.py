"""What a point of held-out score cost, from one student to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lion_ray.core.iteration_result import IterationResult
from lion_ray.pipeline.price_of_gain import ANSWERS, price_of_gain
from lion_ray.report.facts import Facts
from lion_ray.report.outcome import price_texts


def measured(
    iteration: int, stages: Any = None, *, checks: float | None = None, quality: float | None = None
) -> IterationResult:
    return IterationResult(
        iteration,
        checks=None if checks is None else {"mean": {"value": checks, "low": 0.0, "high": 1.0, "n": 4}},
        quality_heldout=None if quality is None else {"ratio": quality, "low": 0.0, "high": 1.0},
        stages=stages or {},
    )


FIRST: dict[str, dict[str, float]] = {
    "judging the Cache Pool": {"cost_usd": 2.0, "completion_tokens": 50},
    "generating": {"cost_usd": 1.0},
}
MEASURING = {"judging held-out": {"cost_usd": 99.0}, "teacher answers held-out": {"cost_usd": 99.0}}
STUDENT = {"student answers the Cache Pool": {"completion_tokens": 9000}}


def test_a_student_cost_its_rows_and_what_made_them() -> None:
    before = measured(1, {ANSWERS: {"cost_usd": 50.0}} | FIRST | MEASURING | STUDENT, checks=0.5)
    after = measured(2, {ANSWERS: {"cost_usd": 4.0, "completion_tokens": 300}} | MEASURING, checks=0.6)
    found = price_of_gain(before, after)
    assert found is not None
    assert found.to_json() == {
        "measure": "checks",
        "points": pytest.approx(10.0),
        "usd": 7.0,
        "teacher_tokens": 300,
        "usd_per_point": pytest.approx(0.7),
        "teacher_tokens_per_point": pytest.approx(30.0),
    }


@pytest.mark.parametrize("after", [0.5, 0.4])
def test_nothing_gained_has_no_price(after: float) -> None:
    found = price_of_gain(measured(0, quality=0.5), measured(1, quality=after))
    assert found is not None
    assert (found.usd_per_point, found.tokens_per_point) == (None, None)


def test_students_that_were_not_measured_alike_are_not_compared() -> None:
    assert price_of_gain(measured(0, checks=0.1), measured(1, quality=0.9)) is None


def test_a_call_of_unknown_price_leaves_the_dollars_open() -> None:
    after = measured(1, {ANSWERS: {"completion_tokens": 80}}, quality=0.9)
    found = price_of_gain(measured(0, quality=0.5), after)
    assert found is not None
    assert (found.usd, found.usd_per_point) == (None, None)
    assert found.tokens_per_point == pytest.approx(2.0)


def test_the_report_says_it_in_words() -> None:
    price = {"measure": "checks", "points": 10.0, "usd": 7.0, "teacher_tokens": 300}
    price |= {"usd_per_point": 0.7, "teacher_tokens_per_point": 30.0}
    results = [IterationResult(1), IterationResult(2, price_of_gain=price)]
    (line,) = price_texts(cast(Facts, SimpleNamespace(results=results)))
    assert line == (
        "From iteration 1 to iteration 2 the checks' score changed by +10.0 points for $7.0000 and 300 tokens of the "
        "teacher's answers: $0.7000 and 30 tokens per point. Calls that only measure the student are not counted."
    )
