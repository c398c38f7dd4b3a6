"""What verdicts come to: ratios, intervals, wins, and what is counted but not scored."""

from __future__ import annotations

import math

import pytest

from lion_ray.core.statistics import sign_test
from lion_ray.discrimination.quality import (
    CANDIDATE_FIRST,
    REFERENCE_FIRST,
    Relative,
    Setting,
    Verdict,
    mean_quality,
    row_scores,
    settings,
    summarise,
)
from lion_ray.discrimination.scores import Pair

ONE, TWO = settings("both", 3, 0.2)


def said(question: str, setting: Setting, order: str, *samples: Pair | None) -> list[Verdict]:
    return [
        Verdict(question, setting.number, order, number, pair, None if pair else "verdict without readable scores")
        for number, pair in enumerate(samples)
    ]


def both(question: str, reference_first: list[Pair | None], candidate_first: list[Pair | None]) -> list[Verdict]:
    return said(question, TWO, REFERENCE_FIRST, *reference_first) + said(
        question, TWO, CANDIDATE_FIRST, *candidate_first
    )


def test_the_papers_settings() -> None:
    assert Setting(1, (REFERENCE_FIRST,), 1, 0.2) == ONE
    assert Setting(2, (REFERENCE_FIRST, CANDIDATE_FIRST), 3, 1.0) == TWO
    assert settings("2", 5, 0.2) == [Setting(2, (REFERENCE_FIRST, CANDIDATE_FIRST), 5, 1.0)]


def test_orders_count_alike_however_many_verdicts_were_read() -> None:
    row = {REFERENCE_FIRST: [(8.0, 2.0), (6.0, 4.0)], CANDIDATE_FIRST: [(3.0, 9.0)]}
    assert row_scores(row, TWO) == (5.0, 6.0)
    assert row_scores({REFERENCE_FIRST: [(8.0, 2.0)]}, TWO) is None, "one order alone is no score"
    assert row_scores({}, ONE) is None


def example() -> Relative:
    verdicts = [
        *said("a", ONE, REFERENCE_FIRST, (8.0, 4.0)),
        *said("b", ONE, REFERENCE_FIRST, (2.0, 9.0)),
        *said("c", ONE, REFERENCE_FIRST, None),
        *both("a", [(8, 4), (8, 4), None], [(6, 6), (6, 6), (6, 6)]),  # (7, 5)
        *both("b", [(4, 5)] * 3, [(6, 4)] * 3),  # (5, 4.5): each order has another winner
        *both("c", [(5, 5)] * 3, [(5, 5)] * 3),
        *both("d", [(5, 5)] * 3, [None] * 3),
        *said("d", ONE, REFERENCE_FIRST, (10.0, 1.0)),
    ]
    return summarise(verdicts, [ONE, TWO], {"a": "x", "b": "x", "c": "y", "d": ""}, seed=0)


def test_ratios_outcomes_and_counts() -> None:
    found = example()
    one, two = found.settings
    assert one.quality is not None
    assert two.quality is not None
    assert found.quality is not None
    assert math.isclose(one.quality.ratio, (4 + 9 + 1) / (8 + 2 + 10))
    assert math.isclose(two.quality.ratio, (5 + 4.5 + 5) / (7 + 5 + 5))
    assert math.isclose(found.quality.ratio, (one.quality.ratio + two.quality.ratio) / 2), "a mean of ratios"
    assert (one.unparsed, one.verdicts, one.unread, one.order_flips) == (1, 4, 1, None)
    assert (two.unparsed, two.verdicts, two.unread, two.order_flips) == (1, 24, 4, 1)
    assert found.quality.n == 2, "a and b have a score in both settings"
    assert found.unparsed == 2
    assert found.outcomes == {"a": "loss", "b": "loss", "c": "tie"}, "of setting 2; d has no score there"
    assert found.win_rate is not None
    assert math.isclose(found.win_rate[0], 0.5 / 3)
    assert found.sign_p == 0.5
    assert list(found.by_category) == ["x", "y"], "no category is not a category"
    assert found.by_category["y"] is None, "setting 1 has no score of it"


def test_the_json_has_what_was_agreed() -> None:
    found = example().to_json()
    assert set(found["relative"]) == {"ratio", "low", "high", "n"}
    assert set(found["settings"]) == {"1", "2"}
    assert found["relative"]["low"] <= found["relative"]["ratio"] <= found["relative"]["high"]
    assert (found["wins"], found["ties"], found["losses"], found["unparsed"]) == (0, 1, 2, 2)


def test_one_setting_is_its_own_mean() -> None:
    found = summarise(said("a", ONE, REFERENCE_FIRST, (8.0, 4.0)), [ONE], {"a": ""}, seed=0)
    assert found.quality == found.settings[0].quality
    assert found.quality is not None
    assert found.quality.ratio == 0.5


def test_nothing_was_scored() -> None:
    found = summarise(said("a", ONE, REFERENCE_FIRST, None), [ONE], {"a": "x"}, seed=0)
    assert found.quality is None
    assert found.win_rate is None
    assert found.sign_p is None
    assert found.unparsed == 1
    empty = summarise([], [ONE, TWO], {}, seed=0).to_json()
    assert empty["relative"] is None
    assert empty["settings"]["1"]["ratio"] is None


def test_the_interval_is_paired_and_repeatable() -> None:
    # Each candidate's score is half of its reference's: however questions are drawn, the ratio is one half.
    scores = {str(n): (float(2 + n % 8), (2 + n % 8) / 2) for n in range(50)}
    quality = mean_quality([scores, scores], list(scores), seed=1)
    assert quality is not None
    assert (quality.ratio, quality.n) == (0.5, 50)
    assert math.isclose(quality.low, 0.5)
    assert math.isclose(quality.high, 0.5)
    noisy = {str(n): (5.0, 2.0 if n % 2 else 8.0) for n in range(50)}
    first, again = (mean_quality([noisy], list(noisy), seed=1) for _ in range(2))
    assert first == again
    assert first is not None
    assert 0.8 < first.low < 0.95 < 1.05 < first.high < 1.2


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, None), (1, 1, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (8, 2, 0.109375)]
)
def test_the_sign_test(wins: int, losses: int, p: float | None) -> None:
    assert sign_test(wins, losses) == p
    assert sign_test(losses, wins) == p
