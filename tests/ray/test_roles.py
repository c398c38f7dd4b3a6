"""Teacher, referee and generator as real Ray actors against a real HTTP stub: faults end as rows, never as numbers."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from lion_ray.actors.budget import LedgerActor
from lion_ray.actors.endpoint_handle import EndpointHandle
from lion_ray.actors.generator import GeneratorActor
from lion_ray.actors.referee import RefereeActor
from lion_ray.actors.run_store import RunStoreActor
from lion_ray.actors.teacher import ProxySettings, TeacherActor
from lion_ray.config import (
    EndpointConfig,
    GenerationConfig,
    GeneratorConfig,
    PricesConfig,
    RefereeConfig,
    RunConfig,
    ServeConfig,
    TeacherConfig,
)
from lion_ray.core.errors import BudgetError, EndpointError, InfrastructureError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ANSWER, INSTRUCTION, ORDERS, instruction_id, table
from lion_ray.core.store import RunStore
from lion_ray.discrimination.orders import first_order
from lion_ray.gateway.calls import Call, Completion
from lion_ray.pipeline.results import summarise
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stages.canary_pairs import CanaryPairs
from tests.ray.harness import metrics_with
from tests.ray.machines import Machines
from tests.stub_api import Answer, Rule, StubAPI, lion_answer
from tests.tiny import make_tiny_model

TEACHER = TeacherConfig(max_tokens=50)
TEXTS = ("Name a river in Asia.", "Describe the taste of salt.", "Write a haiku about rust.")


def instructions(*texts: str) -> pa.Table:
    rows = ({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts)
    return table(rows, INSTRUCTION)


def answers(*texts: str | None) -> pa.Table:
    """Answers to TEXTS; None is one that failed."""
    rows = (
        {"id": instruction_id(question), "text": text or "", "status": "ok" if text else "quarantined"}
        | ({} if text else {"reason": "timed out"})
        for question, text in zip(TEXTS, texts, strict=True)
    )
    return table(rows, ANSWER)


@asynccontextmanager
async def proxy(
    folder: Path,
    stub: StubAPI,
    *,
    cap: float | None = None,
    fallbacks: tuple[str, ...] = (),
    teacher: TeacherConfig = TEACHER,
    **changes: Any,
) -> AsyncIterator[tuple[Any, str]]:
    """A TeacherProxy on `stub`, and its name. `cap`: the run's budget; `fallbacks`: other proxies' names."""
    endpoint = EndpointConfig(
        model="m", base_url=stub.base_url, api_key_env=None, max_attempts=2, max_backoff_s=0.05, send_seed=True
    ).model_copy(update=changes)
    name = f"proxy-{os.urandom(4).hex()}"
    ledger = LedgerActor.options(name=f"{name}/ledger").remote(cap)
    actor = TeacherActor.options(name=name).remote(
        ProxySettings(
            endpoint="api",
            name=name,
            run="job",
            config=endpoint,
            teacher=teacher,
            journal=str(folder / "journal"),
            base_dir=folder,
            seed=0,
            ledger=f"{name}/ledger",
            fallbacks=tuple((other,) for other in fallbacks),
        )
    )
    try:
        yield actor, name
    finally:
        await actor.close.remote()
        ray.kill(actor)
        ray.kill(ledger)


async def test_what_waits_for_an_endpoint_that_never_opened_gets_an_error(cluster: Machines, tmp_path: Path) -> None:
    """Ray would repeat a killed actor's calls, and write about each."""
    make_tiny_model(tmp_path / "tiny")
    serve = ServeConfig(model="tiny", dtype="float32", max_model_len=128, kv_cache_gib=0.1, enforce_eager=True)
    async with StubAPI() as stub, proxy(tmp_path, stub, serve=serve, base_url=None) as (teacher, _):
        waiting = [teacher.ready.remote(), teacher.stats.remote()]
        await teacher.alive.remote()
        await teacher.close.remote()
        for one in [*waiting, teacher.stats.remote()]:
            with pytest.raises(InfrastructureError, match="the run ended before this endpoint was open"):
                await one


FAULTS = {
    "500": ("quarantined", "server error", None),
    "close": ("quarantined", "cut off", None),
    "garbage": ("quarantined", "garbled", None),
    "empty": ("quarantined", "empty answer", "stop"),
    "400": ("quarantined", "rejected", None),
    "content_filter": ("quarantined", "content filter", "content_filter"),
    "length": ("ok", "", "length"),
}
"""What becomes of a row by its answer's fault: its status, a part of its reason, its finish reason."""


async def test_each_bad_answer_is_one_row(cluster: Machines, tmp_path: Path) -> None:
    bad = {fault: f"Describe number {number}." for number, fault in enumerate(FAULTS)}
    texts = [TEXTS[0], *bad.values(), TEXTS[2]]
    rules = [Rule(fault, contains=text) for fault, text in bad.items()]
    async with StubAPI(rules) as stub, proxy(tmp_path, stub) as (teacher, _):
        rows = (await teacher.answer.remote(instructions(*texts), "answers-0")).to_pylist()
    assert [row["id"] for row in rows] == [instruction_id(text) for text in texts]
    first, *middle, last = rows
    assert first["status"] == last["status"] == "ok"
    for (fault, (status, reason, finish)), row in zip(FAULTS.items(), middle, strict=True):
        assert (row["status"], row["finish_reason"]) == (status, finish), fault
        assert reason in (row["reason"] or ""), fault
    assert middle[-1]["reason"] is None
    assert first["endpoint"] == "api"
    assert first["model"] == "m-0001"
    assert first["prompt_tokens"] > 0


async def test_a_rate_limit_costs_no_row(cluster: Machines, tmp_path: Path) -> None:
    rules = [Rule("429", times=5, retry_after="0")]
    async with StubAPI(rules) as stub, proxy(tmp_path, stub) as (teacher, _):
        rows = (await teacher.answer.remote(instructions(*TEXTS), "answers-0")).to_pylist()
        stats = await teacher.stats.remote()
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert stats.rate_limited == 5


async def test_an_endpoint_that_refuses_ends_the_run_with_its_own_error(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(models=["another"]) as stub, proxy(tmp_path, stub) as (teacher, _):
        with pytest.raises(EndpointError, match="'m'") as caught:
            await teacher.answer.remote(instructions(*TEXTS), "answers-0")
    assert "Traceback" not in str(caught.value)
    assert caught.value.exit_code == 4


async def test_a_proxy_that_dies_goes_on_from_the_journal(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI() as stub, proxy(tmp_path, stub) as (teacher, _):
        first = await teacher.answer.remote(instructions(*TEXTS[:2]), "answers-0")
        before = await teacher.alive.remote()
        ray.kill(teacher, no_restart=False)
        while await teacher.alive.remote() == before:  # each look is a round trip to the actor
            pass
        second = await teacher.answer.remote(instructions(*TEXTS), "answers-0")
        assert stub.stats()["total"] == 3, "two were bought before, one after"
    assert second["text"].to_pylist()[:2] == first["text"].to_pylist()


async def test_another_endpoint_answers_while_the_teachers_is_down(cluster: Machines, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"breaker_failures": 2, "max_attempts": 6}
    async with (
        StubAPI() as first,
        StubAPI() as second,
        proxy(tmp_path, second, model="other") as (_, other),
        proxy(tmp_path, first, fallbacks=(other,), **settings) as (teacher, _),
    ):
        # An endpoint counts as down only once it has answered: nobody there at all is a mistake to be told.
        await teacher.answer.remote(instructions("Say anything."), "answers-0")
        first.rules = [Rule("drop")]
        rows = (await teacher.answer.remote(instructions(*TEXTS), "answers-0")).to_pylist()
        assert [row["status"] for row in rows] == ["ok"] * 3
        assert {row["model"] for row in rows} == {"other-0001"}, "each answer says who gave it"


async def test_an_endpoint_that_refuses_passes_on_to_the_next(cluster: Machines, tmp_path: Path) -> None:
    async with (
        StubAPI(models=["else"]) as first,
        StubAPI() as second,
        proxy(tmp_path, second, model="o") as (_, other),
        proxy(tmp_path, first, fallbacks=(other,)) as (teacher, _),
    ):
        rows = (await teacher.answer.remote(instructions(*TEXTS), "answers-0")).to_pylist()
    assert {row["model"] for row in rows} == {"o-0001"}


async def test_a_budget_ends_the_run_at_its_cap(cluster: Machines, tmp_path: Path) -> None:
    # 50 tokens at most for an answer at $1,000 a million: 5 cents. What is reserved is the worst case.
    prices = PricesConfig(input=0, output=1000)
    many = instructions(*(f"Describe thing number {n}." for n in range(40)))
    async with StubAPI() as stub:
        async with proxy(tmp_path, stub, cap=0.25, prices=prices) as (teacher, _):
            with pytest.raises(BudgetError, match="budget has no room"):
                await teacher.answer.remote(many, "answers-0")
            spent = sum(len(stub.answer(body).text.split()) for body in stub.requests) / 1000
            assert 0.15 < spent <= 0.25
            assert (await teacher.stats.remote()).spent_usd == pytest.approx(spent)
        sent = stub.stats()["total"]
        # The next attempt knows from the journal what is gone.
        async with proxy(tmp_path, stub, cap=0.25, prices=prices) as (teacher, _):
            with pytest.raises(BudgetError):
                await teacher.answer.remote(many, "answers-0")
        assert stub.stats()["total"] - sent <= 2
        async with proxy(tmp_path, stub, cap=10.0, prices=prices) as (teacher, _):
            rows = (await teacher.answer.remote(many, "answers-0")).to_pylist()
        assert [row["status"] for row in rows] == ["ok"] * 40
        assert not stub.stats()["repeated"], "nothing was bought twice"
        assert all(row["cost_usd"] > 0 for row in rows)


async def test_proxies_of_one_endpoint_never_buy_a_call_twice(cluster: Machines, tmp_path: Path) -> None:
    calls = [Call(({"role": "user", "content": f"Question {n % 30}"},), 50, role="teacher") for n in range(90)]
    async with (
        StubAPI() as stub,
        proxy(tmp_path, stub, proxies=2) as (_, one),
        proxy(tmp_path, stub, proxies=2) as (_, two),
    ):
        outcomes = await EndpointHandle((one, two)).complete(calls)
        assert stub.stats()["total"] == 30
        assert not stub.stats()["repeated"]
    texts = [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]
    assert texts == texts[:30] * 3


def verdict_by(scores: Callable[[str, int], str]) -> Callable[[dict[str, Any]], Answer]:
    """A judge whose text depends on the prompt and on how often it saw this very prompt."""
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][-1]["content"]
        seen[prompt] += 1
        return Answer(scores(prompt, seen[prompt]))

    return answer


async def judge(
    folder: Path, stub: StubAPI, teacher: pa.Table, student: pa.Table, **changes: Any
) -> list[dict[str, Any]]:
    async with proxy(folder, stub, **changes) as (_, name):
        config = RefereeConfig(prompt="scores", max_tokens=16, parse_retries=2)
        referee = RefereeActor.remote(config, (name,), changes.get("json_schema", False), folder, 0, 1.0)
        verdicts = await referee.judge.remote(instructions(*TEXTS), teacher, student, "iteration-1/verdicts")
        ray.kill(referee)
    rows: list[dict[str, Any]] = verdicts.to_pylist()
    return rows


GOOD = answers("good river", "good salt", "good haiku")
POOR = answers("poor river", "poor salt", "poor haiku")


def prefers_good(prompt: str) -> str:
    return "9 4" if prompt.index("good") < prompt.index("poor") else "5 8"


async def test_both_orders_are_judged_and_averaged(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=verdict_by(lambda prompt, _: prefers_good(prompt))) as stub:
        rows = await judge(tmp_path, stub, GOOD, POOR)
    assert [(row["teacher_score"], row["student_score"]) for row in rows] == [(8.5, 4.5)] * 3
    assert rows[0]["teacher_first"] == [9, 4]
    assert rows[0]["student_first"] == [8, 5]
    assert len(rows[0]["calls"]) == 2


async def test_an_unreadable_verdict_is_asked_again_then_quarantined(cluster: Machines, tmp_path: Path) -> None:
    def scores(prompt: str, time: int) -> str:
        if "salt" in prompt:
            return "I would rather not say."
        if "haiku" in prompt and time == 1:
            return "Hmm."
        return prefers_good(prompt)

    async with StubAPI(answer=verdict_by(scores)) as stub:
        river, salt, haiku = await judge(tmp_path, stub, GOOD, POOR)
        assert stub.stats()["total"] == 2 + 2 * 3 + 2 * 2
    assert river["status"] == haiku["status"] == "ok"
    assert (salt["status"], salt["teacher_score"], salt["student_score"]) == ("quarantined", None, None)
    assert salt["reason"] == "verdict without readable scores"
    assert salt["review_teacher_first"] == "I would rather not say."


async def test_a_score_out_of_range_is_never_averaged_in(cluster: Machines, tmp_path: Path) -> None:
    def scores(prompt: str, _: int) -> str:
        return "11 4" if "river" in prompt else "0 4" if "salt" in prompt else "-1 -1"

    async with StubAPI(answer=verdict_by(scores)) as stub:
        rows = await judge(tmp_path, stub, GOOD, POOR)
    assert [(row["status"], row["teacher_score"]) for row in rows] == [("quarantined", None)] * 3


async def test_an_answer_that_failed_is_not_judged(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=verdict_by(lambda prompt, _: prefers_good(prompt))) as stub:
        rows = await judge(tmp_path, stub, answers("good", None, "good"), answers("poor", "poor", None))
        assert stub.stats()["total"] == 2
    assert [row["reason"] for row in rows] == [None, "teacher: timed out", "student: timed out"]


async def test_a_schema_is_asked_for_where_the_endpoint_can(cluster: Machines, tmp_path: Path) -> None:
    def scores(prompt: str, time: int) -> str:
        first, second = prefers_good(prompt).split()
        return json.dumps({"assistant_1": int(first), "assistant_2": int(second)})

    async with StubAPI(answer=verdict_by(scores)) as stub:
        rows = await judge(tmp_path, stub, GOOD, POOR, json_schema=True)
        assert all(body["response_format"]["type"] == "json_schema" for body in stub.requests)
    assert [(row["teacher_score"], row["student_score"]) for row in rows] == [(8.5, 4.5)] * 3


async def test_a_referee_asks_the_second_order_only_near_tau(cluster: Machines, tmp_path: Path) -> None:
    def scores(prompt: str, _: int) -> str:
        teacher, student = (7, 6) if "salt" in prompt else (9, 2)
        good_first = prompt.index("good") < prompt.index("poor")
        return f"{teacher} {student}" if good_first else f"{student} {teacher}"

    near = RefereeConfig(
        prompt="scores", max_tokens=16, second_order="near_threshold", second_order_margin=0.5, canary_pairs=0
    )
    async with StubAPI(answer=verdict_by(scores)) as stub, proxy(tmp_path, stub) as (_, name):
        referee = RefereeActor.remote(near, (name,), False, tmp_path, 0, 1.0)
        tables = (instructions(*TEXTS), GOOD, POOR)
        river, salt, haiku = (await referee.judge.remote(*tables, "iteration-1/verdicts")).to_pylist()
        assert stub.stats()["total"] == 1 + 2 + 1
        both = (await referee.judge.remote(*tables, "iteration-1/heldout/verdicts", both_orders=True)).to_pylist()
        assert stub.stats()["total"] == 6, "what was asked before came out of the journal"
        ray.kill(referee)
    for row in (river, haiku):
        first = first_order(row["id"])
        assert (row["status"], row["teacher_score"], row["student_score"]) == ("ok", 9, 2)
        assert row[first] == [9, 2]
        assert [row[order] for order in ORDERS if order != first] == [None]
    assert (salt["teacher_first"], salt["student_first"]) == ([7, 6], [7, 6])
    assert all(row[order] is not None for row in both for order in ORDERS)


async def test_a_referees_canaries_are_bought_anew_in_each_iteration(cluster: Machines, tmp_path: Path) -> None:
    judge = verdict_by(lambda prompt, time: f"{9 - time} 2")
    config = RefereeConfig(prompt="scores", max_tokens=16, canary_pairs=3)
    async with StubAPI(answer=judge) as stub, proxy(tmp_path, stub) as (_, name):
        referee = RefereeActor.remote(config, (name,), False, tmp_path, 0, 1.0)
        asked = []
        for iteration in (1, 2, 2):  # the last: an iteration that was cut off and is resumed
            verdicts = await referee.judge_canaries.remote(iteration, f"iteration-{iteration}/canaries")
            asked.append(verdicts.to_pylist())
        assert stub.stats()["total"] == 12
        assert not stub.stats()["repeated"]
        ray.kill(referee)
    first, second, resumed = asked
    assert [row["teacher_first"] for row in first] == [[8, 2]] * 3
    assert [row["teacher_first"] for row in second] == [[7, 2]] * 3
    assert resumed == second


async def test_a_referee_is_watched_once_in_each_iteration(cluster: Machines, tmp_path: Path) -> None:
    # Milder from the second iteration on: the good answers lose six points.
    judge = verdict_by(lambda prompt, time: "9 2" if time == 1 else "3 2")
    config = RunConfig.model_validate(
        {
            "run_name": "job",
            "data": {"pool": "pool.jsonl"},
            "endpoints": {"default": {"model": "m"}},
            "referee": {"prompt": "scores", "max_tokens": 16},
            "student": {"model": "./student"},
        }
    )
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    async with StubAPI(answer=judge) as stub, proxy(tmp_path, stub) as (_, name):
        referee = RefereeActor.remote(config.referee, (name,), False, tmp_path, 0, 1.0)
        run_store = RunStoreActor.remote(store)
        run = Run(config, tmp_path, store, Progress(), SimpleNamespace(referee=lambda _: referee, run_store=run_store))
        for iteration in (1, 1, 2):
            await CanaryPairs().run(run, iteration)
        assert stub.stats()["total"] == 2 * 16, "a committed iteration asks nothing"
        ray.kill(referee)
        ray.kill(run_store)
    first, second = (summarise(store, iteration) for iteration in (1, 2))
    (chance,) = first.warnings
    assert "right in only 8 of 16 verdicts on pairs with an obvious winner" in chance
    assert first.judges == {"m-0001": 8}
    assert second.canaries is not None
    # Whoever stood first got more, so half of the verdicts were for the poor answer from the start.
    assert (second.canaries["verdicts"], second.canaries["right"], second.canaries["against"]) == (16, 8, 1)
    assert second.canaries["drift"]["changed"] == 16


async def test_a_referee_weighs_scores_by_their_log_probabilities(cluster: Machines, tmp_path: Path) -> None:
    # The stub gives a number 0.75 and its neighbours 0.125 each; 11 is no score.
    def scores(prompt: str, _: int) -> str:
        if "haiku" in prompt:
            return "Assistant 1: 8\nAssistant 2: 5"
        return "10 5" if prompt.index("good") < prompt.index("poor") else "5 9"

    config = RefereeConfig(prompt="scores", max_tokens=16, weighted=True)
    async with StubAPI(answer=verdict_by(scores)) as stub, proxy(tmp_path, stub) as (_, name):
        referee = RefereeActor.remote(config, (name,), False, tmp_path, 0, 1.0)
        river, _, haiku = (await referee.judge.remote(instructions(*TEXTS), GOOD, POOR, "s")).to_pylist()
        assert all(body["top_logprobs"] == 20 for body in stub.requests)
        ray.kill(referee)
    assert river["teacher_first"] == pytest.approx([(10 * 0.75 + 9 * 0.125) / 0.875, 5.0])
    assert river["student_first"] == pytest.approx([9.0, 5.0])
    assert river["weighted"] == 2
    assert (haiku["teacher_first"], haiku["weighted"]) == ([8, 5], 0), "the place is not certain: the plain score"


async def generate(
    folder: Path, stub: StubAPI, limits: GenerationConfig, shard_rows: int = 3
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    async with proxy(folder, stub) as (_, name):
        generator = GeneratorActor.remote(GeneratorConfig(), limits, (name,), folder, 0)
        hard, easy = instructions(*TEXTS[:1]), instructions(*TEXTS[1:])
        questions = instructions("An evaluation question about owls.")
        pieces = generator.create.remote(
            hard, easy, instructions(*TEXTS), instructions("Held out and secret words."), questions, 1, shard_rows
        )
        found = [await piece async for piece in pieces]
        ray.kill(generator)
    *parts, (last, candidates) = found
    assert last is None
    assert [piece.part for piece in parts] == list(range(len(parts)))
    assert all(piece.rows.num_rows == shard_rows for piece in parts[:-1])
    return [row for piece in parts for row in piece.rows.to_pylist()], candidates.to_pylist()


async def test_generation_meets_its_target_and_says_who_begot_whom(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=lambda body: lion_answer(body, ("never",), ("",))) as stub:
        accepted, candidates = await generate(tmp_path, stub, GenerationConfig(hard=5, easy=3))
    assert Counter(row["source"] for row in accepted) == {"hard": 5, "easy": 3}
    assert {row["parent"] for row in accepted if row["source"] == "hard"} == {instruction_id(TEXTS[0])}
    assert len({row["id"] for row in accepted}) == 8
    assert all(row["iteration"] == 1 for row in accepted)
    assert sum(row["status"] == "ok" for row in candidates) == 8


async def test_the_same_answers_make_the_same_pool(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=lambda body: lion_answer(body, ("never",), ("",))) as stub:
        once = await generate(tmp_path / "a", stub, GenerationConfig(hard=4, easy=4))
        again = await generate(tmp_path / "b", stub, GenerationConfig(hard=4, easy=4))
    assert once == again


async def test_a_target_that_cannot_be_met_ends(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=lambda body: Answer("Held out and secret words.")) as stub:
        accepted, candidates = await generate(tmp_path, stub, GenerationConfig(hard=3, easy=2, max_attempts=4))
    assert accepted == []
    assert Counter(row["source"] for row in candidates) == {"hard": 12, "easy": 8}
    assert {row["reason"] for row in candidates} == {"too similar to a held-out instruction"}


async def test_an_evaluation_question_is_never_accepted(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=lambda body: Answer("An evaluation question about owls?")) as stub:
        accepted, candidates = await generate(tmp_path, stub, GenerationConfig(hard=1, easy=1, max_attempts=2))
    assert accepted == []
    assert {row["reason"] for row in candidates} == {"too similar to an evaluation question"}


async def test_what_is_accepted_does_not_depend_on_the_order_of_arrival(cluster: Machines, tmp_path: Path) -> None:
    limits = GenerationConfig(hard=90, easy=90)
    # One kind's answers come late, and so do some of the other's.
    rules = [Rule("late", contains=TEXTS[0]), Rule("late", ordinals=range(1, 400, 3))]
    async with StubAPI(answer=lambda body: lion_answer(body, ("never",), ("",))) as stub:
        once = await generate(tmp_path / "a", stub, limits, 64)
    async with StubAPI(answer=lambda body: lion_answer(body, ("never",), ("",)), rules=rules) as stub:
        late = await generate(tmp_path / "b", stub, limits, 64)
    assert once == late
    assert len(once[0]) == 180


async def test_copies_of_a_new_row_are_rejected_across_kinds(cluster: Machines, tmp_path: Path) -> None:
    async with StubAPI(answer=lambda body: Answer("Paint the old boat green before winter.")) as stub:
        accepted, candidates = await generate(tmp_path, stub, GenerationConfig(hard=2, easy=2, max_attempts=2))
    assert [row["source"] for row in accepted] == ["hard"]
    assert Counter(row["reason"] for row in candidates)["too similar to a known instruction"] == 7


async def test_metrics_tell_calls_by_endpoint_role_and_status(cluster: Machines, tmp_path: Path) -> None:
    prices = PricesConfig(input=1, output=1)
    async with StubAPI([Rule("400", contains=TEXTS[1])]) as stub, proxy(tmp_path, stub, prices=prices) as (teacher, _):
        await teacher.answer.remote(instructions(*TEXTS), "answers-0")
        wanted = (
            "ray_lion_calls",
            "ray_lion_tokens",
            "ray_lion_cost_usd",
            "ray_lion_call_seconds",
            "ray_lion_in_flight",
        )
        text = await asyncio.to_thread(metrics_with, *wanted)
    calls = [line for line in text.split("\n") if line.startswith("ray_lion_calls")]
    assert any('endpoint="api"' in line and 'role="teacher"' in line and 'status="completed"' in line for line in calls)
    assert any('status="failed"' in line for line in calls)
