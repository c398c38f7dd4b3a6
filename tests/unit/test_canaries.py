"""Canary pairs: the built-in ones, a user's, and when a judge is said to have drifted."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from lion_ray.config import RefereeConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.records import ORDERS
from lion_ray.discrimination.drift import ALPHA, Canary, drift, load_canaries, sign_flip_p

BUILT_IN = load_canaries(None, 12, Path())
KEYS = [(f"canary {n}", order) for n in range(8) for order in ORDERS]


def test_length_does_not_decide_a_built_in_pair() -> None:
    longer = [len(one.good) - len(one.poor) for one in BUILT_IN]
    assert all(abs(difference) <= 0.1 * len(one.good) for difference, one in zip(longer, BUILT_IN, strict=True))
    # Nor does it over those that are used by default.
    assert abs(sum(longer[: RefereeConfig().canary_pairs])) <= 8
    assert len({one.instruction for one in BUILT_IN}) == len(BUILT_IN)


def test_as_many_as_wanted_are_taken() -> None:
    assert load_canaries(None, 3, Path()) == BUILT_IN[:3]
    assert load_canaries("absent.jsonl", 0, Path()) == []
    with pytest.raises(ConfigError, match=r"canary_pairs is 99, .* has 12"):
        load_canaries(None, 99, Path())


def test_a_users_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"instruction": "Name a tree.", "good": "An oak.", "poor": "A car."}\n')
    assert load_canaries("own.jsonl", 1, tmp_path) == [Canary("Name a tree.", "An oak.", "A car.")]


@pytest.mark.parametrize(
    "line",
    [
        '{"instruction": "Name a tree.", "good": "An oak."}',
        '["a"]',
        "{",
        '{"instruction": "i", "good": "g", "poor": " "}',
    ],
)
def test_what_is_no_pair_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    good = '{"instruction": "Name a tree.", "good": "An oak.", "poor": "A car."}'
    (tmp_path / "own.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ConfigError, match=r"own\.jsonl:2: "):
        load_canaries("own.jsonl", 1, tmp_path)


def test_all_signs_are_tried() -> None:
    differences = np.array([1.0, 0.0, 2.0, -0.5])
    moved = [1.0, 2.0, -0.5]
    sums = [
        abs(sum(s * d for s, d in zip(signs, moved, strict=True))) for signs in itertools.product((1, -1), repeat=3)
    ]
    assert sign_flip_p(differences) == sum(total >= 2.5 for total in sums) / 8 == 0.5
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_many_differences_are_drawn_to_about_the_same() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.4, 1.0, 17)
    exact = np.array([signs @ differences for signs in np.array(list(itertools.product((1, -1), repeat=17)))])
    share = (np.abs(exact) >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flip_p(differences) == pytest.approx(share, abs=0.005)
    assert sign_flip_p(np.ones(40)) > 0


def test_the_same_answers_are_no_drift() -> None:
    gaps = dict.fromkeys(KEYS, 6.0)
    found = drift(gaps, gaps)
    assert found is not None
    assert (found.n, found.changed, found.right_now, found.p_gap, found.p_agreement) == (16, 0, 16, 1.0, 1.0)
    assert not found.drifted


def test_a_judge_that_turned_round_is_seen() -> None:
    before = {key: 5.0 + (index % 3) for index, key in enumerate(KEYS)}
    now = {key: -1.0 - (index % 2) for index, key in enumerate(KEYS)}
    found = drift(before, now)
    assert found is not None
    assert found.drifted
    assert found.p_gap == pytest.approx(2 / 2**16)
    assert found.p_agreement == pytest.approx(1 / 2**16)
    assert "16 → 0 of 16" in found.sentence()


def test_a_judge_that_became_milder_is_seen_though_it_still_agrees() -> None:
    found = drift(dict.fromkeys(KEYS, 8.0), {key: 3.0 + (index % 2) for index, key in enumerate(KEYS)})
    assert found is not None
    assert found.drifted
    assert (found.right_before, found.right_now, found.p_agreement) == (16, 16, 1.0)


def test_noise_is_called_drift_as_seldom_as_is_said() -> None:
    rng = random.Random(0)

    def noisy() -> dict[tuple[str, str], float]:
        return {key: round(rng.gauss(4.0, 1.5)) for key in KEYS}

    called = sum(found.drifted for _ in range(400) if (found := drift(noisy(), noisy())) is not None)
    # Two tests at ALPHA: 8 of 400 are expected at most; 20 would be four standard deviations more.
    assert called <= 400 * 2 * ALPHA + 12


def test_only_verdicts_of_both_sides_count() -> None:
    before = dict.fromkeys(KEYS[:4], 5.0)
    found = drift(before, dict.fromkeys(KEYS[2:], 5.0))
    assert found is not None
    assert found.n == 2
    assert drift(before, {}) is None
