"""Evaluations against a real HTTP endpoint: answers, verdicts, letters, faults, a budget, and nothing bought twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import BudgetError, ConfigError, DataError, EndpointError, RunConflictError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.discrimination.quality import settings
from lion_ray.evaluation.benchmarks.protocol import Question, load_suite
from lion_ray.evaluation.benchmarks.recorded import read_outputs, score
from lion_ray.evaluation.benchmarks.run import ChoicePlan, choose
from lion_ray.evaluation.endpoint import LazyEndpoint
from lion_ray.evaluation.pairwise.questions import OpenQuestion, read_questions
from lion_ray.evaluation.pairwise.run import PairwisePlan, compare
from lion_ray.evaluation.pairwise.table import notes, relative_tables
from lion_ray.evaluation.participants import Participant
from lion_ray.evaluation.session import Place, place_of, session
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Budget
from lion_ray.prompts.messages import load_template
from tests.stub_api import REFEREE_MARKERS, Answer, Rule, StubAPI, plain_answer
from tests.unit.test_benchmarks import bbh_file

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PRICES = PricesConfig(input=1.0, output=10.0)


def said(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


def judging(body: dict[str, Any]) -> Answer:
    """Answers by the model's name; verdicts by what stands first: the reference's answers are worth 8, others 4."""
    text = said(body)
    if not all(marker in text.lower() for marker in REFEREE_MARKERS):
        return Answer(f"{body['model']} says: {plain_answer(body).text}")
    if "unreadable" in text:
        return Answer("Both are fine.")
    return Answer("8 4" if text.index("teacher says") < text.index("student says") else "4 8")


def lettered(letter: Callable[[str], str]) -> Callable[[dict[str, Any]], Answer]:
    return lambda body: Answer(letter(said(body)))


def participant(stub: StubAPI, model: str, **known: Any) -> Participant:
    config = EndpointConfig(model=model, base_url=stub.base_url, api_key_env=None, **known)
    return Participant(model, endpoint=model, config=config)


def judge(stub: StubAPI, **known: Any) -> Participant:
    config = EndpointConfig(model="judge", base_url=stub.base_url, api_key_env=None, **known)
    template = load_template("scores", "referee")
    return Participant("judge", endpoint="judge", config=config, template=template, temperature=0.2, max_tokens=16)


def quiet() -> Progress:
    return Progress(io.StringIO())


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    texts = [
        "Why is the sky blue?",
        "Name a river.",
        "Name a river.",
        "unreadable?",
        "Who wrote it?",
        "Count to three.",
    ]
    rows = [{"id": f"q{n}", "text": text, "category": "ab"[n % 2]} for n, text in enumerate(texts)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def place(tmp_path: Path, target: Participant) -> Place:
    return place_of(target, tmp_path / "out", None)


def pairwise(stub: StubAPI, questions: Path, which: str = "both", **known: Any) -> PairwisePlan:
    target = known.pop("target", None) or participant(stub, "student", prices=PRICES)
    reference = known.pop("reference", None) or participant(stub, "teacher", prices=PRICES)
    how = settings(which, 3, 0.2)
    return PairwisePlan(str(questions), None, target, reference, judge(stub, prices=PRICES), how, **known)


async def test_an_endpoint_without_a_run(stub: StubAPI, tmp_path: Path) -> None:
    config = EndpointConfig(model="m", base_url=stub.base_url, api_key_env=None, prices=PRICES)
    journal = Journal.open(str(tmp_path / "journal"))
    budget = Budget(1.0)
    calls = [
        Call(({"role": "user", "content": f"say {n}"},), max_tokens=50, role="judge", stage="s") for n in range(20)
    ]
    for replayed in (False, True):
        async with LazyEndpoint(
            "name", config, journal, budget, account="run/eval", base_dir=tmp_path, progress=quiet()
        ) as asked:
            outcomes = await asked.ask(calls, "asking")
        assert [one.replayed for one in outcomes if isinstance(one, Completion)] == [replayed] * 20
    assert stub.stats()["total"] == 20
    ((account, spent),) = journal.spending("run/eval").items()
    assert (account.run, account.role, account.stage) == ("run/eval", "judge", "s")
    assert spent.usd == pytest.approx(budget.spent)
    await journal.close()


async def test_both_settings_end_to_end(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = judging
    stub.rules = [Rule("429", times=3, retry_after="0"), Rule("500", times=1, contains="Who wrote it?")]
    plan = pairwise(stub, questions)
    compared = await compare(plan, place(tmp_path, plan.target), quiet())
    found = compared.json
    assert found["relative"] == {"ratio": 0.5, "low": 0.5, "high": 0.5, "n": 5}
    assert (found["wins"], found["ties"], found["losses"], found["unparsed"]) == (0, 0, 5, 1)
    assert found["settings"]["2"]["order_flips"] == 0
    assert found["settings"]["1"]["verdicts"] == 6
    assert found["settings"]["2"]["verdicts"] == 36
    assert set(found["by_category"]) == {"a", "b"}
    assert found["reasons"] == {"verdict without readable scores": 7}
    # q1 and q2 are one text: their answers and verdicts were bought once, and are two rows.
    assert found["cost"]["target"]["calls"] == 5
    rows = {row["id"]: row for row in pq.read_table(compared.path.replace(".json", ".parquet")).to_pylist()}
    assert rows["q1"]["candidate_call"] == rows["q2"]["candidate_call"]
    assert (rows["q1"]["outcome"], rows["q2"]["outcome"], rows["q3"]["outcome"]) == ("loss", "loss", None)
    assert [one["order"] for one in rows["q0"]["verdicts"]] == ["reference_first"] * 4 + ["candidate_first"] * 3
    assert {(one["reference"], one["candidate"]) for one in rows["q0"]["verdicts"]} == {(8.0, 4.0)}
    assert rows["q3"]["verdicts"][0]["review"] == "Both are fine."
    # A verdict that could not be read was asked again, twice, and each sample is a call of its own.
    assert found["cost"]["judge"]["calls"] == 5 * 7 - 7 + 7 * 3
    for table in relative_tables(found):
        assert table.row_count
    assert any("1 without a readable score in some setting" in line for line in notes(found))


async def test_the_same_command_again_buys_nothing(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = judging
    plan = pairwise(stub, questions)
    first = await compare(plan, place(tmp_path, plan.target), quiet())
    sent = stub.stats()["total"]
    again = await compare(plan, place(tmp_path, plan.target), quiet())
    assert stub.stats()["total"] == sent
    assert again.json["relative"] == first.json["relative"]
    assert {role: cost["bought"] for role, cost in again.json["cost"].items()} == dict.fromkeys(again.json["cost"], 0)
    assert again.json["cost"]["judge"]["usd"] == pytest.approx(first.json["cost"]["judge"]["usd"])
    # A subset, or more samples, asks only for what is new.
    await compare(pairwise(stub, questions, limit=3), place(tmp_path, plan.target), quiet())
    assert stub.stats()["total"] == sent
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "own-student-vs-teacher-by-judge.json",
        "own-student-vs-teacher-by-judge-limit3.json",
    }


async def test_a_budget_ends_it_and_a_higher_one_goes_on(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = judging
    plan = pairwise(stub, questions, budget=0.0115)
    with pytest.raises(BudgetError, match=r"the budget of \$0\.01 is spent.*raise --budget and run the same command"):
        await compare(plan, place(tmp_path, plan.target), quiet())
    paid = stub.stats()["completed"]
    assert 0 < paid < 5 + 5 + 49
    assert not list((tmp_path / "out").glob("*.json")), "no result before the last verdict"
    with pytest.raises(BudgetError):
        await compare(plan, place(tmp_path, plan.target), quiet())
    assert stub.stats()["completed"] <= paid + 1, "what it has cost before counts"
    done = await compare(pairwise(stub, questions, budget=5.0), place(tmp_path, plan.target), quiet())
    sums = {role: cost["calls"] for role, cost in done.json["cost"].items()}
    assert stub.stats()["completed"] == sum(sums.values()), "nothing was bought twice"
    free = participant(stub, "student")
    with pytest.raises(ConfigError, match="endpoint student has no prices"):
        await compare(pairwise(stub, questions, target=free, budget=5.0), place(tmp_path, free), quiet())


async def test_answers_that_are_missing_are_counted(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = judging
    stub.rules = [Rule("empty", contains="Count to three."), Rule("400", contains="Why is the sky")]
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text("".join(json.dumps({"id": f"q{n}", "text": "teacher says no."}) + "\n" for n in range(5)))
    plan = pairwise(stub, questions, "1", reference=Participant("recorded", recorded=recorded))
    found = (await compare(plan, place(tmp_path, plan.target), quiet())).json
    assert (found["questions"], found["judged"], found["unparsed"]) == (6, 4, 1)
    assert found["unanswered"] == {"target": 2, "reference": 1}
    assert found["reasons"]["target: empty answer"] == 1
    assert found["reasons"]["reference: not among the recorded answers"] == 1
    assert found["relative"]["n"] == 3
    assert set(found["cost"]) == {"target", "judge"}


async def test_not_one_question_was_scored(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = lambda body: Answer("I would rather not say.")
    plan = pairwise(stub, questions, "1")
    with pytest.raises(DataError, match="none of 6 questions could be scored: 6 × verdict without readable scores"):
        await compare(plan, place(tmp_path, plan.target), quiet())


async def test_a_verdict_that_was_cut_off_is_asked_again(stub: StubAPI, tmp_path: Path, questions: Path) -> None:
    stub.answer = judging
    stub.rules = [Rule("length", contains="answer of Assistant 1", times=1)]
    plan = pairwise(stub, questions, "1")
    found = (await compare(plan, place(tmp_path, plan.target), quiet())).json
    assert found["relative"]["n"] == 5


# -- letters ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bbh(tmp_path: Path) -> list[Question]:
    folder = tmp_path / "bbh"
    bbh_file(folder, "navigate", [{"input": f"Go {n}. Do you return?", "target": "No"} for n in range(7)])
    rows = [{"input": f"Pick {n}.\nOptions:\n(A) this\n(B) that\n(C) none", "target": "(C)"} for n in range(5)]
    bbh_file(folder, "snarks", rows)
    return load_suite("bbh", folder)


@pytest.mark.parametrize("letters", ["published", "standing", "logprobs"])
async def test_letters_and_outputs_score_alike(
    stub: StubAPI, tmp_path: Path, bbh: list[Question], letters: str
) -> None:
    stub.answer = lettered(
        lambda text: "B" if "Do you return" in text else "Because C" if letters != "logprobs" else "C"
    )
    target = participant(stub, "student")
    chosen = await choose(ChoicePlan("bbh", bbh, target, letters), place(tmp_path, target), quiet())
    # As published, the B of "Because" is the answer.
    assert chosen.score.mean == (0.5 if letters == "published" else 1.0)
    assert chosen.json["mean"] == chosen.json["means"][letters] == chosen.score.mean
    if letters != "logprobs":
        assert chosen.json["means"] == {"published": 0.5, "standing": 1.0}
    assert (chosen.json["unanswered"], chosen.json["asked"], len(chosen.json["missing"])) == (0, 250 + 178, 21)
    outputs = read_outputs(Path(chosen.path.replace(".json", ".jsonl")))
    again = score("bbh", bbh, outputs, letters).to_json()
    assert {key: chosen.json[key] for key in again} == again, "eval score says the same"
    sent = stub.requests[0]
    assert sent["messages"] == [{"role": "user", "content": bbh[0].prompt()}]
    assert sent["temperature"] == 0.0
    assert (sent["max_tokens"], sent.get("top_logprobs")) == ((1, 20) if letters == "logprobs" else (64, None))
    assert stub.stats()["total"] == 12, "equal questions are asked once"


async def test_questions_of_each_task_and_calls_that_fail(stub: StubAPI, tmp_path: Path, bbh: list[Question]) -> None:
    stub.answer = lettered(lambda _: "(B)")
    stub.rules = [Rule("400", contains="Go ")]
    target = participant(stub, "student")
    chosen = await choose(ChoicePlan("bbh", bbh, target, "published", limit=3), place(tmp_path, target), quiet())
    navigate, snarks = chosen.score.tasks
    assert (navigate.answered, navigate.accuracy) == (0, None)
    assert (snarks.answered, snarks.accuracy) == (3, 0.0)
    assert chosen.score.mean == 0.0, "what was not answered is neither right nor wrong"
    assert chosen.json["unanswered"] == 3
    assert list(chosen.json["reasons"].values()) == [3]
    assert chosen.path.endswith("bbh-student-published-limit3.json")


async def test_an_endpoint_without_log_probabilities(
    stub: StubAPI, tmp_path: Path, bbh: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.stub_api._logprobs", lambda *_: None)
    target = participant(stub, "student")
    with pytest.raises(EndpointError, match="returns no log-probabilities; use --letters published or standing"):
        await choose(ChoicePlan("bbh", bbh, target, "logprobs", limit=1), place(tmp_path, target), quiet())


@pytest.mark.parametrize(("suite", "count"), [("bbh", 5011), ("agieval", 1816)])
async def test_the_whole_suites_as_far_as_they_are_here(stub: StubAPI, tmp_path: Path, suite: str, count: int) -> None:
    if not (SHARED / suite).is_dir():
        pytest.skip(f"{SHARED / suite} is not on this machine")
    stub.answer = lettered(lambda _: "The answer is (B).")
    loaded = load_suite(suite, SHARED / suite)
    target = participant(stub, "student")
    chosen = await choose(ChoicePlan(suite, loaded, target, "standing"), place(tmp_path, target), quiet())
    assert chosen.json["asked"] == count
    always_b = [sum(one.answer == "B" for one in loaded if one.task == task.task) for task in chosen.score.tasks]
    assert [task.right for task in chosen.score.tasks] == always_b
    assert not chosen.score.whole


async def test_vicunas_questions_and_the_252(stub: StubAPI, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    stub.answer = judging
    files = {
        "vicuna80": SHARED / "vicuna80" / "question.jsonl",
        "user252": SHARED / "self-instruct" / "user_oriented_instructions.jsonl",
    }
    for (suite, path), count in zip(files.items(), (80, 252), strict=True):
        target, reference = participant(stub, "student"), participant(stub, "teacher")
        plan = PairwisePlan(suite, path, target, reference, judge(stub), settings("1", 3, 0.2))
        found = (await compare(plan, place(tmp_path, target), quiet())).json
        assert (found["questions"], found["relative"]["n"]) == (count, count)
        assert found["relative"]["ratio"] == 0.5
        known: list[OpenQuestion] = read_questions(suite, path)
        assert set(found["by_category"]) == {one.category for one in known}


async def test_two_commands_at_one_evaluation_would_buy_it_twice(tmp_path: Path) -> None:
    place = Place(RunStore(str(tmp_path)), "", str(tmp_path / "journal"), "student/eval")
    progress = Progress(io.StringIO())
    async with session(place, "own", progress, [], 1.0):
        with pytest.raises(RunConflictError, match="own: another command is running this evaluation"):
            async with session(place, "own", progress, [], 1.0):
                raise AssertionError("two hold the cap")
        async with session(place, "another", progress, [], 1.0):
            pass
    async with session(place, "own", progress, [], 1.0):
        pass
