"""What a judge's replies are said to mean, against figures worked out by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import ANSWER, INSTRUCTION, ORDERS, VERDICT, table
from lion_ray.core.statistics import agreement, estimate, kappa, mean, pooled_sd, spearman
from lion_ray.core.store import RunStore
from lion_ray.discrimination.pairwise import Comparison
from lion_ray.evaluation.calibration.cases import Case, both_orders, judged_iterations, judged_rows, read_pairs
from lion_ray.evaluation.calibration.measures import Reply, measure
from lion_ray.evaluation.calibration.threshold import STEP


def case(number: int, label: str | None = None, first: str = "a", second: str = "b") -> Case:
    return Case(Comparison(f"pair-{number}", "Say it.", first, second), label)


def verdict(number: int, *orders: tuple[float, float], sample: int = 0, **more: Any) -> list[Reply]:
    """Replies of (answer 1, answer 2), with answer 1 first and then second."""
    return [Reply(f"pair-{number}", order, sample, pair, **more) for order, pair in zip(ORDERS, orders, strict=True)]


def flat(groups: Iterable[list[Reply]]) -> list[Reply]:
    return [reply for group in groups for reply in group]


# -- statistics ------------------------------------------------------------------------------------------------------


def test_kappa_of_a_table_worked_out_by_hand() -> None:
    # 20 and 15 agree of 50; expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    pairs = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
    assert agreement(pairs) == pytest.approx(0.7)
    assert kappa(pairs) == pytest.approx((0.7 - 0.5) / 0.5)
    assert kappa([("y", "y")] * 3) is None, "nobody could tell it from chance"
    assert kappa([]) is agreement([]) is mean([]) is None


def test_ranks_and_their_correlation() -> None:
    # Ties share their mean rank: 1.5, 3, 1.5, 4 against 1, 2, 3, 4.
    assert spearman([10, 20, 10, 30], [1, 2, 3, 4]) == pytest.approx(3.0 / math.sqrt(4.5 * 5))
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Without ties: 1 - 6 * (the ranks' squared differences) / (n * (n^2 - 1)).
    assert spearman([1, 2, 3, 4, 5], [2, 1, 5, 3, 4]) == pytest.approx(1 - 6 * (1 + 1 + 4 + 1 + 1) / 120)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None


def test_a_pooled_deviation_weighs_by_degrees_of_freedom() -> None:
    assert pooled_sd([[1, 3], [10, 10, 13]]) == pytest.approx(math.sqrt((2 + 6) / 3))
    assert pooled_sd([[1], []]) is None


def test_an_interval_resamples_groups_whole() -> None:
    groups = [[float(n % 2)] * 5 for n in range(40)]
    found = estimate(groups, mean, seed=1)
    assert found is not None
    assert (found.value, found.n) == (0.5, 40)
    # 40 groups, not 200 values: the standard error is sqrt(0.25 / 40) = 0.079.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.079, abs=0.04)
    assert estimate(groups, mean, seed=1) == found
    assert estimate([[]], mean, seed=1) is None


# -- a judge ---------------------------------------------------------------------------------------------------------


def test_every_figure_of_a_small_calibration() -> None:
    cases = [case(0, "1", first="long" * 9), case(1, "2"), case(2, "tie"), case(3, "1", second="long" * 2)]
    replies = flat(
        [
            verdict(0, (9, 3), (8, 4), cost_usd=0.01, prompt_tokens=10, completion_tokens=2),  # 1, right
            verdict(1, (9, 3), (2, 8), cost_usd=0.01, prompt_tokens=10, completion_tokens=2),  # flips; d 0: a tie
            verdict(2, (7, 7), (6, 6), cost_usd=0.01, prompt_tokens=10, completion_tokens=2),  # a tie, right
        ]
    )
    replies += [
        Reply("pair-3", "teacher_first", 0, (8, 4), cost_usd=0.01, prompt_tokens=10, completion_tokens=2),
        Reply(
            "pair-3",
            "student_first",
            0,
            None,
            "verdict cut off",
            cost_usd=0.03,
            prompt_tokens=10,
            completion_tokens=6,
            replayed=False,
        ),
    ]
    found = measure(cases, replies, alpha=0.1, tau=1.0)
    assert (found.pairs, found.samples, found.replies, found.verdicts) == (4, 1, 8, 3)
    assert (found.unread, found.unread_rate) == ({"verdict cut off": 1}, 1 / 8)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(2 / 3)
    assert found.agreement.n == 3, "a pair without a verdict is counted as unread, not as wrong"
    # Labels 1, 2, tie against 1, tie, tie: expected (1*1 + 1*0 + 1*2) / 9 = 1/3.
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert found.agreement_decided is not None
    assert (found.agreement_decided.value, found.agreement_decided.n) == (1.0, 1)
    assert found.confusion == {
        "1": {"1": 1, "2": 0, "tie": 0},
        "2": {"1": 0, "2": 0, "tie": 1},
        "tie": {"1": 0, "2": 0, "tie": 1},
    }
    assert (found.flips, found.ties) == (1, 2)
    # Shown first minus shown second: (6 - 4) / 2, (6 + 6) / 2, 0.
    assert found.position_bias is not None
    assert found.position_bias.value == pytest.approx((1 + 6 + 0) / 3)
    assert found.histogram == {2: 1, 3: 2, 4: 2, 6: 2, 7: 2, 8: 3, 9: 2}
    assert found.length_correlation == pytest.approx(1.0)  # lengths 35, 0, 0 and d 5, 0, 0
    assert found.usd_per_pair == pytest.approx(0.10 / 4)
    assert found.prompt_tokens_per_pair == 20
    assert (found.calls_now, found.usd_now) == (1, 0.03)
    assert found.sd_both_orders is None, "one sample says nothing of noise"
    assert found.tau is None


def test_answers_that_win_by_length_show() -> None:
    cases = [case(n, first="x" * (10 * n), second="x" * 50) for n in range(10)]
    longer = flat(verdict(n, (5 + (n > 5), 5), (5, 5 + (n < 5))) for n in range(10))
    found = measure(cases, longer, alpha=0.1, tau=1.0)
    assert found.length_correlation is not None
    assert found.length_correlation > 0.9


def noisy(sd: float, pairs: int, samples: int, seed: int = 0) -> list[Reply]:
    """Replies whose two-order mean has this standard deviation within a pair, around a gap of the pair's own."""
    rng = random.Random(seed)
    replies = []
    for number in range(pairs):
        gap = rng.uniform(-1, 1)
        for sample in range(samples):
            d = [gap + rng.gauss(0, sd * math.sqrt(2)) for _ in ORDERS]
            replies += verdict(number, *((5.5 + one / 2, 5.5 - one / 2) for one in d), sample=sample)
    return replies


def test_noise_is_found_whatever_the_pairs_own_gaps_are() -> None:
    found = measure([case(n) for n in range(300)], noisy(0.8, 300, 3), alpha=0.1, tau=1.0)
    assert found.sd_both_orders == pytest.approx(0.8, rel=0.1)
    assert found.sd_one_order == pytest.approx(0.8 * math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(("sd", "alpha"), [(0.8, 0.1), (0.8, 0.05), (1.3, 0.1), (0.2, 0.1)])
def test_the_recommended_tau_is_the_smallest_that_noise_seldom_reaches(sd: float, alpha: float) -> None:
    found = measure([case(n) for n in range(600)], noisy(sd, 600, 2, seed=1), alpha=alpha, tau=1.0)
    advice = found.tau
    assert advice is not None
    exact = NormalDist(0, sd).inv_cdf(1 - alpha)
    assert advice.recommended == STEP * math.ceil(exact / STEP)
    line = next(line for line in advice.lines if line.tau == advice.recommended)
    assert line.normal <= alpha
    assert line.measured == pytest.approx(line.normal, abs=0.03)
    assert f"tau = {advice.recommended:g}" in advice.reasoning
    assert {0.5, 1.0, 1.5, 2.0, advice.recommended} <= {one.tau for one in advice.lines}


def test_rare_and_large_noise_counts_as_it_was_seen() -> None:
    # 3 of 4 pairs never move; the fourth moves by 4. A normal curve would make less of it.
    moves = [4 if n % 4 == 0 else 0 for n in range(40)]
    before = [verdict(n, (5, 5), (5, 5)) for n in range(40)]
    after = [verdict(n, (5 + move, 5), (5, 5 - move), sample=1) for n, move in enumerate(moves)]
    advice = measure([case(n) for n in range(40)], flat(before + after), alpha=0.1, tau=1.0).tau
    assert advice is not None
    assert advice.sd == pytest.approx(math.sqrt(8 / 4))
    assert next(line.measured for line in advice.lines if line.tau == 2.0) == pytest.approx(1 / 8)
    assert advice.recommended == 3.0, "4 / sqrt(2) is 2.83"
    assert next(line.changed for line in advice.lines if line.tau == 1.0) == pytest.approx(1 / 4)


def test_a_judge_that_never_moves_leaves_tau_free() -> None:
    same = flat(verdict(n, (8, 5), (7, 6), sample=sample) for n in range(5) for sample in range(2))
    advice = measure([case(n) for n in range(5)], same, alpha=0.1, tau=2.5).tau
    assert advice is not None
    assert (advice.sd, advice.recommended, advice.configured) == (0.0, STEP, 2.5)
    assert [line.changed for line in advice.lines] == [0.0] * len(advice.lines)
    assert "it is not changed" in advice.reasoning


# -- pairs -----------------------------------------------------------------------------------------------------------


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_pairs_are_read_in_every_form(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in ("A", "B")]
    found = read_pairs(
        written(
            tmp_path,
            {"id": "x", "instruction": "Q", "first": "A", "second": "B", "label": 1},
            {"instruction": "Q", "answer_1": "A", "answer_2": "B", "label": "tie"},
            {"question_id": 81, "conversation_a": turns[0], "conversation_b": turns[1], "winner": "model_b"},
            {"question_id": 81, "conversation_a": turns[0], "conversation_b": turns[1], "winner": "tie (bothbad)"},
            {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "model_a"},
        )
    )
    assert [one.label for one in found] == ["1", "tie", "2", "tie", "1"]
    assert [one.id for one in found] == ["x", "pair-2", "pair-3", "pair-4", "pair-5"]
    assert {(one.comparison.instruction, one.comparison.teacher, one.comparison.student) for one in found} == {
        ("Q", "A", "B")
    }


PAIR = {"instruction": "Q", "first": "A", "second": "B", "label": 1}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (PAIR | {"label": 3}, "`label` (or `winner`) is 3"),
        ({key: PAIR[key] for key in PAIR if key != "label"}, "`label` (or `winner`) is None"),
        ({key: PAIR[key] for key in PAIR if key != "second"}, "`second` is missing"),
        (PAIR | {"instruction": 5}, "`instruction` is missing or not a string"),
        (PAIR | {"id": "x"}, "duplicate id 'x'"),
        ("{", "not JSON"),
        ([1], "not an object"),
        ({"conversation_a": [{"content": "Q"}] * 4, "winner": "tie"}, "only single turns"),
    ],
)
def test_what_is_no_pair_is_told_with_its_line(tmp_path: Path, row: Any, says: str) -> None:
    path = written(tmp_path, PAIR | {"id": "x"}, row)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert "pairs.jsonl:2: " in str(caught.value)
    assert says in str(caught.value)


def test_pairs_in_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="JSON Lines"):
        read_pairs(tmp_path / "pairs.csv")


def make_run(folder: Path) -> RunStore:
    """An iteration that judged six rows of two pools: one on one order, one quarantined, one never answered."""
    store = RunStore(str(folder / "run"))
    store.claim()
    orders: list[dict[str, Any]] = [
        {"teacher_first": [9.0, 4.0], "student_first": [8.0, 5.0], "calls": ["a", "b"], "cost_usd": 0.2},
        {"teacher_first": [9.0, 3.0], "calls": ["c"], "cost_usd": 0.1},
        {"teacher_first": [7.0, 6.0], "calls": ["d", "e", "f"], "cost_usd": 0.3, "reason": "verdict cut off"},
        {"calls": [], "reason": "teacher: timed out"},
        {"teacher_first": [2.0, 4.0], "student_first": [3.0, 3.0], "calls": ["g", "h", "i"], "cost_usd": 0.3},
        {"teacher_first": [5.0, 4.0], "student_first": [5.0, 4.0], "calls": ["j", "k"], "cost_usd": 0.2},
    ]
    verdicts = [
        one | {"id": f"row-{n}", "status": "quarantined" if "reason" in one else "ok", "prompt_tokens": 10}
        for n, one in enumerate(orders)
    ]
    for pool, places in (("0", range(4)), ("1", range(4, 6))):
        rows = [{"id": f"row-{n}", "text": f"Say {n}.", "source": "seed", "iteration": 0} for n in places]
        failed = {"status": "quarantined", "reason": "timed out", "text": ""}
        teacher = [{"id": f"row-{n}", "text": f"good {n}", "status": "ok"} | (failed if n == 3 else {}) for n in places]
        store.stage(f"pool-{pool}").write_part(0, table(rows, INSTRUCTION))
        store.stage(f"pool-{pool}").commit({"rows": len(rows), "parts": 1})
        store.stage(f"answers-{pool}").write_part(0, table(teacher, ANSWER))
        student = [{"id": f"row-{n}", "text": f"poor {n}", "status": "ok"} for n in places]
        store.stage("iteration-2/student").write_part(int(pool), table(student, ANSWER))
        store.stage("iteration-2/verdicts").write_part(int(pool), table([verdicts[n] for n in places], VERDICT))
    store.stage("iteration-2/verdicts").commit({"rows": 6, "hard": 2, "easy": 2})
    return store


def test_a_runs_rows_are_joined_with_their_verdicts(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    assert judged_iterations(store) == [2]
    rows = {row.case.id: row for row in judged_rows(store, 2)}
    assert set(rows) == {"row-0", "row-1", "row-2", "row-4", "row-5"}
    assert rows["row-4"].case.comparison == Comparison("row-4", "Say 4.", "good 4", "poor 4")
    assert rows["row-0"].orders == {"teacher_first": (9, 4), "student_first": (8, 5)}
    assert rows["row-2"].reason == "verdict cut off"
    assert [row.id for row in both_orders(rows.values())] == ["row-0", "row-4", "row-5"]
    assert len(judged_rows(store, 2, 2)) == 2
    assert judged_rows(store, 2, 2) == judged_rows(store, 2, 2)
    with pytest.raises(DataError, match="iteration 1 has not finished judging"):
        judged_rows(store, 1)
