"""Win rates: by hand, without the effect of length, and corrected for a judge's errors (coverage by simulation)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lion_ray.core.records import ANSWER, VERDICT, table
from lion_ray.discrimination.win_rate import (
    JudgeErrors,
    corrected,
    heldout_figures,
    length_controlled,
    outcomes,
    paired_gain,
    win_rate,
)


def test_wins_ties_and_losses() -> None:
    gap = np.array([-1.0, 0.0, 2.0, 3.0, np.nan])
    lengths = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    found = win_rate(gap, lengths, lengths, seed=1)
    assert found is not None
    assert (found["wins"], found["ties"], found["losses"]) == (1, 1, 2)
    assert found["rate"]["value"] == 0.375
    assert found["rate"]["low"] <= 0.375 <= found["rate"]["high"]
    assert found["rate"]["n"] == 4
    assert found["length_controlled"]["value"] == pytest.approx(0.375, abs=0.02), "no length differs"
    assert win_rate(np.array([np.nan]), lengths[:1], lengths[:1], seed=1) is None
    assert outcomes(np.array([-2.0, 0.0, 1e-12, 1.0])).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_a_judge_that_likes_length_is_seen_through() -> None:
    rng = np.random.default_rng(5)
    longer: Any = np.asarray(rng.normal(200, 100, 1500))
    odds = -0.8 + 2.0 * np.tanh(longer / longer.std())  # at equal length 31 %
    worth: Any = (rng.random(1500) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    found = length_controlled(np.asarray(worth, np.float64), longer, seed=1)
    assert worth.mean() > 0.6
    assert found.value == pytest.approx(1 / (1 + np.exp(0.8)), abs=0.08)
    assert found.low < found.value < found.high < 0.5


def test_a_student_that_wins_everything_has_a_rate() -> None:
    found = length_controlled(np.ones(50), np.linspace(0, 49, 50), seed=1)
    assert 0.9 < found.low <= found.value <= 1


CONFUSION = {"1": {"1": 40, "2": 5, "tie": 5}, "2": {"1": 10, "2": 30, "tie": 0}, "tie": {"1": 2, "2": 2, "tie": 6}}


def test_a_judge_s_errors_count_each_pair_for_both_answers() -> None:
    found = JudgeErrors.of(CONFUSION)
    assert found == JudgeErrors((40 + 30) / 90, 90, 1 - (5 + 10 + 2 + 2) / 110, 110)
    assert JudgeErrors.of({}) is None
    assert JudgeErrors.of({"tie": {"1": 1, "2": 0, "tie": 3}}) is None


def test_the_correction_by_hand() -> None:
    found = corrected(0.4, 200, JudgeErrors(0.8, 100, 0.9, 100))
    assert found is not None
    assert found.value == pytest.approx((0.4 - 0.1) / 0.7)
    assert found.low < found.value < found.high
    assert corrected(0.02, 200, JudgeErrors(0.8, 100, 0.9, 100)).value == 0  # type: ignore[union-attr]
    assert corrected(0.4, 200, JudgeErrors(0.5, 100, 0.5, 100)) is None, "a coin tells nothing"
    assert corrected(0.4, 0, JudgeErrors(0.8, 100, 0.9, 100)) is None


@pytest.mark.parametrize(("truth", "sensitivity", "specificity"), [(0.3, 0.85, 0.75), (0.5, 0.7, 0.9), (0.1, 0.9, 0.8)])
def test_the_corrected_interval_covers_the_truth(truth: float, sensitivity: float, specificity: float) -> None:
    rng = np.random.default_rng(11)
    covered = plain = 0
    draws = 1000
    for _ in range(draws):
        seen = rng.binomial(300, truth * sensitivity + (1 - truth) * (1 - specificity)) / 300
        judge = JudgeErrors(rng.binomial(120, sensitivity) / 120, 120, rng.binomial(150, specificity) / 150, 150)
        found = corrected(seen, 300, judge)
        assert found is not None
        covered += found.low <= truth <= found.high
        half = 1.96 * np.sqrt(seen * (1 - seen) / 300)
        plain += seen - half <= truth <= seen + half
    assert covered / draws >= 0.93
    assert plain / draws < covered / draws, "which the uncorrected one does not"


def test_what_a_held_out_verdict_s_manifest_says() -> None:
    def verdicts(scores: dict[str, tuple[float, float] | None]) -> pa.Table:
        rows = [
            {"id": name, "status": "quarantined", "reason": "unread"}
            if pair is None
            else {"id": name, "status": "ok", "teacher_score": pair[0], "student_score": pair[1]}
            for name, pair in scores.items()
        ]
        return table(rows, VERDICT)

    def answers(*texts: str) -> pa.Table:
        rows = zip("abc", texts, strict=True)
        return table([{"id": name, "text": text, "status": "ok"} for name, text in rows], ANSWER)

    found = heldout_figures(
        verdicts({"a": (5.0, 7.0), "b": None, "c": (8.0, 8.0)}),
        answers("xx", "", "xxxx"),
        answers("x", "x", "xxxxxxxx"),
        verdicts({"a": (5.0, 4.0), "b": (1.0, 1.0), "c": None}),
        seed=3,
    )
    assert (found["win_rate"]["wins"], found["win_rate"]["ties"], found["win_rate"]["losses"]) == (1, 1, 0)
    assert found["gain"] == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 1}
    assert heldout_figures(verdicts({"b": None}), answers("", "", ""), answers("", "", ""), None, seed=3) == {
        "win_rate": None,
        "gain": None,
    }


def test_a_gain_is_paired() -> None:
    found = paired_gain({"a": 1.0, "b": 8.0, "c": 3.0}, {"a": 2.0, "b": 9.0, "d": 0.0}, seed=1)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 2)
    assert paired_gain({"a": 1.0}, {"b": 1.0}, seed=1) is None
