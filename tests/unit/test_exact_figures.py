"""Figures by number: the same verdicts give the same ratios, rates and intervals in every release and on every machine.

Values are by hand where a sum shows them; intervals are those of the fixed seeds, and pinned.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lion_ray.core.errors import ConfigError
from lion_ray.core.records import ANSWER, OWN_VERDICT, VERDICT, derive_seed, table
from lion_ray.core.statistics import Estimate
from lion_ray.discrimination import drift as drifting
from lion_ray.discrimination import split
from lion_ray.discrimination.drift import Canary, Drift, drift, load_canaries, sign_flip_p
from lion_ray.discrimination.orders import BothOrders, Replayed, first_order, needs_second, replay
from lion_ray.discrimination.quality import (
    CANDIDATE_FIRST,
    REFERENCE_FIRST,
    RelativeQuality,
    Setting,
    Verdict,
    mean_quality,
    relative_quality,
    row_scores,
    settings,
    summarise,
)
from lion_ray.discrimination.scores import combine, in_range
from lion_ray.discrimination.win_rate import (
    JudgeErrors,
    corrected,
    heldout_figures,
    length_controlled,
    outcomes,
    paired_gain,
    win_rate,
)


def near(found: Any, *expected: float) -> None:
    assert astuple(found) == pytest.approx(expected, rel=1e-9)


# -- win rates --------------------------------------------------------------------------------------------------------

GAPS = np.array([-1.0, 0.0, 2.0, 3.0, np.nan, -4.0, 1e-12, 1.0])
TEACHER = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0])
STUDENT = np.array([30.0, 10.0, 35.0, 90.0, 1.0, 61.0, 0.0, 79.0])


def test_the_win_rate_by_number() -> None:
    found = win_rate(GAPS, TEACHER, STUDENT, seed=1)
    assert found is not None
    assert list(found) == ["wins", "ties", "losses", "rate", "length_controlled"]
    assert (found["wins"], found["ties"], found["losses"]) == (2, 2, 3)
    assert found["rate"] == pytest.approx({"value": 3 / 7, "low": 1 / 7, "high": 5 / 7, "n": 7})
    # A longer answer won less often here, so at equal length the student would win a little more.
    assert found["length_controlled"] == pytest.approx(
        {"value": 0.43555103588471683, "low": 0.13450142456200367, "high": 0.7671200762932384, "n": 7}, rel=1e-9
    )
    assert outcomes(np.array([-1e-7, -1e-9, 1e-9, 1e-7])).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_the_length_controlled_rate_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    worth, same = np.array([1, 0, 0.5, 1, 0]), np.full(5, 5.0)
    near(length_controlled(worth, same, seed=2), 0.5, 0.13683636908853167, 0.8631636309114683, 5)
    # In how many steps the resamples are drawn makes no difference to what they are drawn from.
    monkeypatch.setattr("lion_ray.discrimination.win_rate.AT_ONCE", 5 * 3000)
    found = length_controlled(worth, same, seed=2)
    assert (found.value, found.n) == (0.5, 5)
    assert (found.low, found.high) == pytest.approx((0.137, 0.863), abs=0.01)
    monkeypatch.setattr("lion_ray.discrimination.win_rate.AT_ONCE", 1)
    monkeypatch.setattr("lion_ray.discrimination.win_rate.RESAMPLES", 40)
    assert length_controlled(worth, same, seed=2).n == 5


@pytest.mark.parametrize(
    ("share", "rows", "judge", "expected"),
    [
        (0.4, 200, (0.8, 100, 0.9, 150), (0.3 / 0.7, 0.3195363515284333, 0.5525908730211322, 200)),
        (0.05, 50, (0.8, 40, 0.9, 30), (0.0, 0.0, 0.08225330891733112, 50)),
        (0.95, 50, (0.9, 40, 0.8, 30), (1.0, 0.9153851704777688, 1.0, 50)),
    ],
)
def test_the_corrected_share_by_number(
    share: float, rows: int, judge: tuple[float, int, float, int], expected: tuple[float, ...]
) -> None:
    found = corrected(share, rows, JudgeErrors(*judge))
    assert found is not None
    near(found, *expected)


def test_a_judge_without_power_corrects_nothing() -> None:
    assert corrected(0.5, 10, JudgeErrors(0.5, 100, 0.5, 100)) is None
    assert corrected(0.5, 10, JudgeErrors(0.4, 100, 0.5, 100)) is None
    assert corrected(0.5, 0, JudgeErrors(0.9, 100, 0.9, 100)) is None
    assert corrected(0.5, 1, JudgeErrors(0.9, 100, 0.9, 100)) is not None
    # Better than chance as counted, but not once both shares are drawn to the middle.
    assert corrected(0.5, 10, JudgeErrors(1.0, 0, 0.01, 1000)) is None
    assert JudgeErrors.of({"1": {"1": 3}, "2": {"2": 1, "1": 1}}) == JudgeErrors(0.8, 5, 0.8, 5)
    assert JudgeErrors.of({"tie": {"tie": 3}}) is None


def test_a_paired_gain_by_number() -> None:
    before = {"a": 1.0, "b": 8.0, "c": 3.0, "e": 5.0, "f": 0.0}
    after = {"a": 2.0, "b": 7.0, "d": 0.0, "c": 8.0, "e": 5.0}
    found = paired_gain(before, after, seed=4)
    assert found is not None
    near(found, 1.25, -0.5, 3.75, 4)
    assert paired_gain({}, after, seed=4) is None


def verdicts(**rows: tuple[float, float] | None) -> pa.Table:
    listed: list[dict[str, Any]] = [
        {"id": name, "status": "quarantined", "reason": "unread"}
        if pair is None
        else {"id": name, "status": "ok", "teacher_score": pair[0], "student_score": pair[1]}
        for name, pair in rows.items()
    ]
    return table(listed, VERDICT)


def test_a_manifests_figures_by_number() -> None:
    def answers(*texts: str) -> pa.Table:
        named = zip(("c", "a", "b"), texts, strict=True)
        return table([{"id": name, "text": text, "status": "ok"} for name, text in named], ANSWER)

    teacher, student = answers("ä" * 40, "x" * 10, "x"), answers("x" * 10, "x" * 90, "")
    judged = verdicts(a=(5.0, 7.0), b=None, c=(8.0, 3.0))
    found = heldout_figures(judged, teacher, student, verdicts(a=(5.0, 4.0), b=(1.0, 1.0), c=(2.0, 9.0)), seed=3)
    gap, lengths = np.array([-2.0, 5.0]), (np.array([10.0, 40.0]), np.array([90.0, 10.0]))
    assert found == {
        "win_rate": win_rate(gap, *lengths, seed=3),
        "gain": {"value": -1.5, "low": -6.0, "high": 3.0, "n": 2},
    }
    assert heldout_figures(judged, teacher, student, None, seed=3) == {"win_rate": found["win_rate"], "gain": None}


# -- relative quality -------------------------------------------------------------------------------------------------


def test_relative_quality_by_number() -> None:
    near(relative_quality([8, 6, 9, 5], [4, 6, 3, 5], seed=3), 18 / 28, 0.4117647058823529, 1.0, 4)
    for teacher, student, why in (
        ([8, 8], [4], "2 reference scores for 1 candidate scores"),
        ([8, 0], [4, 1], "a reference score is not positive"),
        ([8, -1], [4, 1], "a reference score is not positive"),
    ):
        with pytest.raises(ValueError) as caught:
            relative_quality(teacher, student, seed=1)
        assert str(caught.value) == why
    scores = [{"a": (8.0, 4.0), "b": (2.0, 9.0), "c": (5.0, 5.0)}, {"a": (6.0, 5.0), "c": (4.0, 3.0)}]
    # (18 / 15 + 8 / 10) / 2
    near(mean_quality(scores, ["a", "b", "c", "d"], seed=5), 1.0, 0.6666666666666667, 1.6527777777777777, 2)
    assert mean_quality(scores, [], seed=5) is None
    assert mean_quality(scores, ["b"], seed=5) is None


def test_the_settings_of_every_name() -> None:
    one = Setting(1, (REFERENCE_FIRST,), 1, 0.3)
    two = Setting(2, (REFERENCE_FIRST, CANDIDATE_FIRST), 4, 1.0)
    assert settings("1", 4, 0.3) == [one]
    assert settings("2", 4, 0.3) == [two]
    assert settings("both", 4, 0.3) == [one, two]
    assert (REFERENCE_FIRST, CANDIDATE_FIRST) == ("reference_first", "candidate_first")
    assert row_scores({REFERENCE_FIRST: [(8.0, 2.0), (6.0, 4.0)]}, one) == (7.0, 3.0)
    assert row_scores({REFERENCE_FIRST: [], CANDIDATE_FIRST: [(1.0, 1.0)]}, two) is None


def test_a_whole_comparison_by_number() -> None:
    one, two = settings("both", 2, 0.2)

    def said(question: str, setting: Setting, order: str, *pairs: Any) -> list[Verdict]:
        return [Verdict(question, setting.number, order, number, pair) for number, pair in enumerate(pairs)]

    rows = [
        *said("a", one, REFERENCE_FIRST, (8.0, 4.0)),
        *said("b", one, REFERENCE_FIRST, (2.0, 9.0)),
        *said("c", one, REFERENCE_FIRST, None),
        *said("a", two, REFERENCE_FIRST, (8.0, 4.0), None),
        *said("a", two, CANDIDATE_FIRST, (6.0, 6.0), (6.0, 6.0)),
        *said("b", two, REFERENCE_FIRST, (4.0, 5.0), (4.0, 5.0)),
        *said("b", two, CANDIDATE_FIRST, (3.0, 1.0), (5.0, 3.0)),
        *said("c", two, REFERENCE_FIRST, (4.0, 6.0), (4.0, 6.0)),
        *said("c", two, CANDIDATE_FIRST, (5.0, 5.0), (5.0, 5.0)),
        *said("e", two, REFERENCE_FIRST, (5.0, 5.0), (5.0, 5.0)),
        *said("e", two, CANDIDATE_FIRST, (5.0, 5.0), (5.0, 5.0)),
    ]
    found = summarise(rows, [one, two], {"a": "x", "b": "x", "c": "y", "d": "", "e": "z"}, seed=7)
    assert found.scores == {
        1: {"a": (8.0, 4.0), "b": (2.0, 9.0)},
        2: {"a": (7.0, 5.0), "b": (4.0, 3.5), "c": (4.5, 5.5), "e": (5.0, 5.0)},
    }
    assert found.outcomes == {"a": "loss", "b": "loss", "c": "win", "e": "tie"}
    assert [found.count(one) for one in ("win", "tie", "loss")] == [1, 1, 2]
    first, second = found.settings
    assert (first.unparsed, first.verdicts, first.unread, first.order_flips) == (3, 3, 1, None)
    assert (second.unparsed, second.verdicts, second.unread, second.order_flips) == (1, 16, 1, 1)
    assert first.quality == relative_quality([8, 2], [4, 9], seed=7)
    assert second.quality == relative_quality([7, 4, 4.5, 5], [5, 3.5, 5.5, 5], seed=7)
    assert found.quality == mean_quality(list(found.scores.values()), list("abcde"), seed=7)
    assert found.by_category == {
        "x": mean_quality(list(found.scores.values()), ["a", "b"], seed=7),
        "y": None,
        "z": None,
    }
    assert found.unparsed == 3
    assert found.sign_p == 1.0
    assert found.win_rate == pytest.approx((0.375, 0.0, 0.75))
    assert found.quality is not None
    quality = {"ratio": found.quality.ratio, "low": found.quality.low, "high": found.quality.high, "n": 2}
    shown = found.to_json()
    assert shown["relative"] == quality
    assert shown["win_rate"] == {"rate": 0.375, "low": 0.0, "high": 0.75}
    assert {name: shown[name] for name in ("wins", "ties", "losses", "sign_p", "unparsed")} == {
        "wins": 1,
        "ties": 1,
        "losses": 2,
        "sign_p": 1.0,
        "unparsed": 3,
    }
    assert shown["by_category"]["y"] is None
    assert shown["by_category"]["x"]["n"] == 2
    assert list(shown["settings"]) == ["1", "2"]
    assert first.quality is not None
    assert shown["settings"]["1"] == {
        "ratio": 1.3,
        "low": first.quality.low,
        "high": first.quality.high,
        "n": 2,
        "orders": ["reference_first"],
        "samples": 1,
        "temperature": 0.2,
        "unparsed": 3,
        "verdicts": 3,
        "unread_verdicts": 1,
        "order_flips": None,
    }
    assert shown["settings"]["2"]["orders"] == ["reference_first", "candidate_first"]
    assert (shown["settings"]["2"]["order_flips"], shown["settings"]["2"]["samples"]) == (1, 2)
    nothing = summarise([], [one], {"a": "x"}, seed=7).to_json()
    assert nothing["settings"]["1"] | {"orders": [], "temperature": 0} == {
        "ratio": None,
        "low": None,
        "high": None,
        "n": 0,
        "orders": [],
        "samples": 1,
        "temperature": 0,
        "unparsed": 1,
        "verdicts": 0,
        "unread_verdicts": 0,
        "order_flips": None,
    }
    assert (nothing["relative"], nothing["win_rate"], nothing["sign_p"]) == (None, None, None)


# -- drift ------------------------------------------------------------------------------------------------------------

MOVED = [1.0, -2, 0.5, 0.5, -1, 2, 3, -0.5, 0.25, 1, 1, -1, 0.75, 2, -2, 0.5]


@pytest.mark.parametrize(
    ("moved", "p"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([1.0], 1.0),
        ([1.0, 2.0, 0.0], 0.5),
        ([-1.0, -2.0, -4.0], 0.25),
        ([0.1, 0.2, -0.3, 0.3], 12 / 16),
        (MOVED, 20960 / 65536),
        # More than 16: 100,000 random assignments and the observed one.
        ([*MOVED, 1.0], 24509 / 100001),
        ([*MOVED, 1.0, 0.0], 24509 / 100001),
    ],
)
def test_the_share_of_signs_by_number(moved: list[float], p: float) -> None:
    assert sign_flip_p(np.array(moved)) == pytest.approx(p, rel=1e-12)


def test_a_drift_by_number() -> None:
    before = {("a", "x"): 1.0, ("b", "x"): -1.0, ("c", "x"): 2.0, ("d", "y"): 0.0, ("e", "x"): 3.0, ("f", "x"): 1.0}
    now = {("a", "x"): -1.0, ("b", "x"): -2.0, ("c", "x"): 3.0, ("d", "y"): 1.0, ("e", "x"): 3.0, ("g", "y"): 9.0}
    found = drift(before, now)
    assert found == Drift(5, 4, 3, 3, 1.0, 0.8, 1.0, 0.75)
    assert not found.drifted
    assert found.sentence() == (
        "canary pairs: 3 → 3 of 5 verdicts for the good answer, mean gap 1.00 → 0.80 "
        "(an unchanged judge does this with p = 0.75)"
    )
    assert found.to_json() == {
        "n": 5,
        "changed": 4,
        "right_before": 3,
        "right_now": 3,
        "gap_before": 1.0,
        "gap_now": 0.8,
        "p_gap": 1.0,
        "p_agreement": 0.75,
        "drifted": False,
    }
    assert drift(before, {}) is None
    # Five right verdicts turned wrong and none right: one in 32.
    lost = drift({(str(n), "x"): 1.0 for n in range(5)}, {(str(n), "x"): -1.0 for n in range(5)})
    assert lost is not None
    assert (lost.p_agreement, lost.p_gap) == (1 / 32, 2 / 32)
    assert [Drift(1, 1, 1, 1, 0, 0, *ps).drifted for ps in ((0.01, 1.0), (1.0, 0.01), (0.009, 1.0), (1.0, 0.009))] == [
        False,
        False,
        True,
        True,
    ]


def test_canaries_in_words(tmp_path: Path) -> None:
    def file(*rows: Any) -> None:
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def said() -> str:
        with pytest.raises(ConfigError) as caught:
            load_canaries("own.jsonl", 2, tmp_path)
        return str(caught.value)

    pairs = [{"instruction": f"i{n}", "good": f"g{n}", "poor": f"p{n}", "note": 1} for n in range(3)]
    file(*pairs)
    assert load_canaries("own.jsonl", 2, tmp_path) == [Canary("i0", "g0", "p0"), Canary("i1", "g1", "p1")]
    assert load_canaries("none.jsonl", 0, tmp_path) == []
    assert len(load_canaries(None, 12, tmp_path)) == 12
    form = 'a line is {"instruction": ..., "good": ..., "poor": ...}, none of them empty'
    odd: Any
    for odd in (pairs[1] | {"poor": " "}, pairs[1] | {"good": 3}, [], {"instruction": "x"}):
        file(pairs[0], odd)
        assert said() == f"own.jsonl:2: no canary pair; {form}"
    (tmp_path / "own.jsonl").write_text("{\n\n")
    (tmp_path / "own.jsonl").write_text(json.dumps(pairs[0]) + "\n{x\n")
    assert said() == ("own.jsonl:2: not JSON (Expecting property name enclosed in double quotes at column 2); " + form)
    file(pairs[0], pairs[0])
    assert said() == "own.jsonl:2: this instruction appears twice; remove one of them"
    file(pairs[0])
    assert said() == "referee.canary_pairs is 2, but own.jsonl has 1 pairs; lower it"
    with pytest.raises(ConfigError) as caught:
        load_canaries(None, 1000, tmp_path)
    assert str(caught.value).startswith("referee.canary_pairs is 1000, but the built-in set has ")
    assert drifting.ALPHA == 0.01


# -- the split, and the orders ----------------------------------------------------------------------------------------


def test_a_split_by_number() -> None:
    rows: list[dict[str, Any]] = [
        {"teacher_score": 8.0, "student_score": 7.0, "teacher_first": [8.0, 7.0], "student_first": [7.0, 8.0]},
        {"teacher_score": 8.0, "student_score": 7.5, "teacher_first": [8.0, 7.0], "student_first": [8.0, 8.0]},
        {"teacher_score": 2.0, "student_score": 4.0, "teacher_first": [2.0, 4.0], "student_first": None},
        {"teacher_first": [2.0, 4.0], "student_first": [5.0, 4.0]},
    ]
    judged = table([{"id": str(n), "status": "ok"} | row for n, row in enumerate(rows)], VERDICT)
    assert split.gaps(judged)[:3].tolist() == [1.0, 0.5, -2.0]
    assert np.isnan(split.gaps(judged)[3])
    assert split.lags(judged, 1.0).tolist() == [True, False, False, False]
    assert split.lags(judged, -2.0).tolist() == [True, True, True, False]
    assert split.order_flips(judged) == {"order_flips": 2, "both_orders": 3}
    first, second = split.leads(judged)
    assert first.tolist() == [1.0, 1.0, -2.0, -2.0]
    assert second[[0, 1, 3]].tolist() == [-1.0, 0.0, 1.0]
    assert np.isnan(second[2])
    expected = relative_quality([8, 8, 2], [7, 7.5, 4], seed=derive_seed(9, "stage"))
    assert expected is not None
    assert split.quality(judged, seed=9, stage="stage") == {
        "ratio": expected.ratio,
        "low": expected.low,
        "high": expected.high,
    }
    assert split.quality(judged.slice(3), seed=9, stage="stage") is None
    own: list[dict[str, Any]] = [
        {"teacher_score": 8.0, "student_score": 7.0, "gap": -1.0},
        {"teacher_score": 8.0, "student_score": 7.0},
        {"gap": 3.0, "hard": False},
        {"gap": 0.0, "hard": True},
        {"hard": True},
    ]
    judged = table([{"id": str(n), "status": "ok"} | row for n, row in enumerate(own)], OWN_VERDICT)
    assert split.gaps(judged)[:4].tolist() == [-1.0, 1.0, 3.0, 0.0]
    assert split.lags(judged, 1.0).tolist() == [False, True, False, True, True]


def test_a_replay_by_number() -> None:
    name = next(str(n) for n in range(99) if first_order(str(n)) == "teacher_first")
    other = next(str(n) for n in range(99) if first_order(str(n)) == "student_first")
    rows = [
        BothOrders(name, (9, 6), (3, 9), 3, 0.06),  # hard by its first order, easy by both
        BothOrders(other, (9, 4), (5, 6), 2, 0.04),  # easy by its first order, hard by both
        BothOrders(name, (9, 4), (9, 4), 2, 0.10),  # hard either way
        BothOrders(name, (4, 9), (4, 9), 2, 0.20),  # easy either way
    ]
    assert [row.means for row in rows] == [(6, 7.5), (7, 5), (9, 4), (4, 9)]
    assert [row.gap for row in rows] == [-1.5, 2, 5, -5]
    never, sometimes, always = replay(rows, 1.0, (0.0, 2.0, 6.0))
    assert never == Replayed(0.0, 4, 0, 4, 4 / 9, pytest.approx(0.19), 2, 2, 1, 1)  # type: ignore[arg-type]
    assert sometimes == Replayed(2.0, 4, 2, 2, 2 / 9, pytest.approx(0.15), 2, 2, 0, 0)  # type: ignore[arg-type]
    assert always == Replayed(6.0, 4, 4, 0, 0.0, 0.0, 2, 2, 0, 0)
    assert sometimes.to_json()["changed"] == 0
    assert never.to_json() == {
        "margin": 0.0,
        "rows": 4,
        "asked_second": 0,
        "calls_saved": 4,
        "calls_share": 4 / 9,
        "usd_saved": pytest.approx(0.19),
        "hard": 2,
        "hard_always": 2,
        "became_hard": 1,
        "became_easy": 1,
        "changed": 2,
    }
    unpriced = [BothOrders(name, (9, 4), (9, 4)), rows[2]]
    assert [found.usd_saved for found in replay(unpriced, 1.0)] == [None] * 5
    assert [found.margin for found in replay(rows, 1.0)] == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert replay([], 1.0, (1.0,)) == [Replayed(1.0, 0, 0, 0, 0.0, None, 0, 0, 0, 0)]
    assert needs_second((9.0, 7.5), 1.0, 0.5)
    assert not needs_second((9.0, 7.4), 1.0, 0.5)
    assert needs_second((9.0, 8.5), 1.0, 0.5)
    # Which order comes first may never change: a resumed run would ask rows again.
    assert "".join(first_order(f"row {n}")[0] for n in range(12)) == FIRST


FIRST = "tsssstsstsss"


def test_the_range_of_scores_and_their_mean() -> None:
    assert [in_range(pair) for pair in ((1, 1), (10, 10), (0.9, 5), (5, 0.9), (10.1, 5), (5, 10.1))] == [
        *(True, True),
        *(False, False, False, False),
    ]
    assert combine((8, 2), (4, 3)) == (6, 2.5)
    assert combine((8, 2), None, one_order=True) == (8, 2)
    assert combine((8, 2), (4, 3), one_order=True) is None
    assert combine((8, 2), None) is None


def test_what_an_estimate_holds() -> None:
    assert Estimate(1.0, 2.0, 3.0, 4) == Estimate(value=1.0, low=2.0, high=3.0, n=4)
    assert RelativeQuality(1.0, 2.0, 3.0, 4) == RelativeQuality(ratio=1.0, low=2.0, high=3.0, n=4)
