"""A row on its way to a verdict, and verdicts on their way to hard and easy, without Ray or an endpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.actors.run_store import RunStoreServer
from lion_ray.config import RefereeConfig
from lion_ray.core import layout
from lion_ray.core.records import INSTRUCTION, ORDERS, VERDICT, derive_seed, instruction_id, table
from lion_ray.core.store import RunStore
from lion_ray.discrimination.orders import first_order
from lion_ray.discrimination.pairwise import RESAMPLED, PairwiseJudge, Row
from lion_ray.gateway.calls import Completion, Failure, Outcome, TokenChoice
from lion_ray.pipeline.results import summarise
from lion_ray.pipeline.results_table import results_table

TEXT = "Name a river in Asia."
ROW_ID = instruction_id(TEXT)
FIRST = first_order(ROW_ID)
SECOND = next(order for order in ORDERS if order != FIRST)


def judge(**changes: Any) -> PairwiseJudge:
    config = RefereeConfig(prompt="scores", max_tokens=16, second_order="near_threshold", **changes)
    return PairwiseJudge(config, structured=False, base_dir=Path(), seed=3)


def row(judge: PairwiseJudge, tau: float | None = 1.0) -> Row:
    answer: dict[str, Any] = {"id": ROW_ID, "status": "ok", "reason": None, "version": "iteration-1"}
    texts = ({"text": "The Ganges."}, {"text": "The Nile."})
    return Row(judge, {"id": ROW_ID, "text": TEXT}, *(answer | text for text in texts), tau=tau)


def said(text: str, **more: Any) -> Completion:
    return Completion("key", text, "stop", "m-0001", "api", 100, 4, cost_usd=0.25, **more)


def shown(order: str, teacher: int, student: int) -> Completion:
    """A verdict as the judge writes it, who sees the answers in this order."""
    return said(f"{teacher} {student}" if order == "teacher_first" else f"{student} {teacher}")


def ask(row: Row, answers: dict[str, list[Outcome]]) -> list[str]:
    """Ask until nothing is wanted; returns the orders that were asked, in turn."""
    asked = []
    while wanted := row.wanted():
        for order in wanted:
            asked.append(order)
            row.take(order, answers[order].pop(0))
    return asked


def test_a_row_far_from_tau_rests_on_one_order_and_says_so() -> None:
    one = row(judge())
    assert ask(one, {FIRST: [shown(FIRST, 9, 3)]}) == [FIRST]
    verdict = one.verdict()
    assert (verdict["status"], verdict["teacher_score"], verdict["student_score"]) == ("ok", 9, 3)
    assert verdict[FIRST] == [9, 3]
    assert verdict[SECOND] is None
    assert verdict[f"review_{SECOND}"] is None
    assert (len(verdict["calls"]), verdict["cost_usd"]) == (1, 0.25)


def test_a_row_near_tau_is_asked_in_both() -> None:
    one = row(judge(second_order_margin=1.0))
    assert ask(one, {FIRST: [shown(FIRST, 8, 6)], SECOND: [shown(SECOND, 6, 6)]}) == [FIRST, SECOND]
    assert (one.verdict()["teacher_score"], one.verdict()["student_score"]) == (7, 6)


def test_an_unreadable_first_order_is_asked_again_before_anything_is_decided() -> None:
    one = row(judge(parse_retries=1))
    assert ask(one, {FIRST: [said("Hmm."), shown(FIRST, 9, 3)]}) == [FIRST, FIRST]
    assert one.verdict()["status"] == "ok"
    lost = row(judge(parse_retries=1))
    assert ask(lost, {FIRST: [said("Hmm."), Failure("key", "timed out", "")]}) == [FIRST, FIRST]
    verdict = lost.verdict()
    assert (verdict["status"], verdict["reason"]) == ("quarantined", "referee: timed out")
    assert "teacher_score" not in verdict


def test_a_second_order_that_was_wanted_and_failed_is_not_done_without() -> None:
    one = row(judge(parse_retries=0))
    assert ask(one, {FIRST: [shown(FIRST, 8, 7)], SECOND: [said("Hmm.")]}) == [FIRST, SECOND]
    verdict = one.verdict()
    assert (verdict["status"], verdict["reason"]) == ("quarantined", "verdict without readable scores")
    assert verdict[FIRST] == [8, 7]
    assert "student_score" not in verdict


def test_without_tau_both_orders_are_always_asked() -> None:
    answers: dict[str, list[Outcome]] = {order: [shown(order, 9, 3)] for order in ORDERS}
    assert ask(row(judge(), tau=None), answers) == list(ORDERS)


def test_a_question_is_the_same_to_a_resumed_run_and_another_for_another_sample() -> None:
    one = row(judge())
    first = one.call(FIRST, "s")
    assert (first.ordinal, first.seed) == (0, derive_seed(3, "referee", ROW_ID, FIRST, 0))
    assert first.key("m") == row(judge()).call(FIRST, "elsewhere").key("m")
    one.take(FIRST, said("Hmm."))
    again = one.call(FIRST, "s")
    assert (again.ordinal, again.seed) == (1, derive_seed(3, "referee", ROW_ID, FIRST, 1))
    samples = [row(judge()).call(FIRST, "s", sample=sample) for sample in range(3)]
    assert len({call.key("m") for call in (*samples, again)}) == 4
    assert samples[2].ordinal == 2 * RESAMPLED


def test_a_verdict_says_how_many_of_its_orders_were_weighted() -> None:
    one = row(judge(weighted=True), tau=None)
    assert one.call(FIRST, "s").top_logprobs == 20
    eight = tuple((number, math.log(chance)) for number, chance in (("8", 0.5), ("9", 0.5)))
    choices = (TokenChoice(0, "8", eight), TokenChoice(1, " 3", ((" 3", 0.0),)))
    one.take("teacher_first", said("8 3", logprobs=choices))
    one.take("student_first", said("3 8"))
    verdict = one.verdict()
    assert verdict["teacher_first"] == pytest.approx([8.5, 3.0])
    assert verdict["student_first"] == [8, 3], "no log-probabilities: the plain score"
    assert verdict["weighted"] == 1
    assert row(judge(), tau=None).call(FIRST, "s").top_logprobs is None


VERDICTS: tuple[dict[str, list[float]], ...] = (
    {"teacher_first": [9.0, 4.0], "student_first": [8.0, 5.0]},  # 8.5 against 4.5
    {"teacher_first": [9.0, 6.0], "student_first": [5.0, 8.0]},  # flips: 7 against 7
    {"teacher_first": [9.0, 3.0]},
    {"student_first": [4.0, 8.0]},
)


def verdict_rows(models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for number, (orders, model) in enumerate(zip(VERDICTS, models, strict=True)):
        means = [sum(pair[place] for pair in orders.values()) / len(orders) for place in (0, 1)]
        scores = {"teacher_score": means[0], "student_score": means[1]}
        rows.append({"id": f"row-{number}", "status": "ok", "model": model, "calls": ["k"]} | orders | scores)
    return rows


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    found = RunStore(str(tmp_path / "run"))
    found.claim()
    return found


def test_rows_on_one_order_are_split_and_never_counted_as_flips(store: RunStore) -> None:
    pool = ({"id": f"row-{n}", "text": f"Row {n}.", "source": "seed", "iteration": 0} for n in range(4))
    store.write_table("pool-0/part-00000.parquet", table(pool, INSTRUCTION))
    stage = store.stage("iteration-1/verdicts")
    stage.write_part(0, table(verdict_rows(("m-1", "m-1", "m-2", "m-1")), VERDICT))
    split = RunStoreServer(store).split_verdicts(stage.name, ["pool-0/part-00000.parquet"], 1.0, 0)
    assert (split["hard"], split["easy"]) == (2, 2)
    assert store.read_table(f"{stage.name}/hard.parquet")["id"].to_pylist() == ["row-0", "row-2"]
    assert (split["order_flips"], split["both_orders"]) == (1, 2)
    assert split["relative_quality"]["ratio"] == pytest.approx((4.5 + 7 + 3 + 8) / (8.5 + 7 + 9 + 4))
    assert split["judges"] == {"m-1": 3, "m-2": 1}


def canary_verdicts(good: float, model: str = "m-1") -> pa.Table:
    rows = (
        {"id": f"canary-{n}", "status": "ok", "model": model, "calls": ["a", "b"]}
        | {order: [good, 5.0 - (n + place) % 2] for place, order in enumerate(ORDERS)}
        for n in range(8)
    )
    return table(rows, VERDICT)


def test_a_judge_that_drifts_is_told_in_the_results(store: RunStore) -> None:
    run_store = RunStoreServer(store)
    good, poor = canary_verdicts(9.0), canary_verdicts(2.0, "m-2")
    for iteration, verdicts in enumerate([good, good, poor, poor]):
        stage = store.stage(layout.canaries(iteration))
        stage.commit(run_store.commit_canaries(iteration, verdicts))
    first, same, other, later = (summarise(store, iteration) for iteration in range(4))
    assert first.canaries is not None
    assert (first.canaries["verdicts"], first.canaries["right"], first.canaries["drift"]) == (16, 16, None)
    assert first.warnings == same.warnings == []
    assert other.canaries is not None
    assert (other.canaries["right"], other.canaries["against"]) == (0, 0)
    chance, drifted, renamed = other.warnings
    assert "right in only 0 of 16 verdicts on pairs with an obvious winner" in chance
    assert len(later.warnings) == 1, "that it is no better than chance is told once"
    assert "16 → 0 of 16 verdicts for the good answer" in drifted
    assert "m-1, now m-2" in renamed
    assert "m-2" in str(results_table([first, same, other]).caption)
    assert other.stages["canary pairs"]["calls"] == 16


def test_more_than_one_judge_within_an_iteration_is_told(store: RunStore) -> None:
    store.stage("iteration-1/verdicts").commit({"rows": 4, "judges": {"m-1": 3, "m-2": 1}})
    (warning,) = summarise(store, 1).warnings
    assert "m-1 (for 3 of 4 rows), m-2 (for 1 of 4 rows)" in warning
