"""What a judge is asked and what becomes of its replies: every field of the calls and verdicts, and every reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lion_ray.config import CheckConfig, RefereeConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.records import ORDERS, derive_seed, instruction_id
from lion_ray.discrimination.checks import (
    Check,
    Score,
    apply_checks,
    load_checks,
    mean_score,
    unusable,
)
from lion_ray.discrimination.judge import Judgement, OwnJudge, Question, load_judge
from lion_ray.discrimination.logprob_scores import expectation, weighted_pair
from lion_ray.discrimination.orders import first_order
from lion_ray.discrimination.pairwise import (
    RESAMPLED,
    Comparison,
    PairwiseJudge,
    Reading,
    Row,
    account,
    ask,
    read_scores,
)
from lion_ray.discrimination.quotes import without_quotes
from lion_ray.discrimination.rubric import (
    NO_DECISION,
    NO_RUBRIC,
    Criterion,
    call_seed,
    check_call,
    read_checks,
    read_rubric,
    rubric_call,
    score,
)
from lion_ray.gateway.calls import Call, Completion, Failure, TokenChoice
from lion_ray.prompts.messages import load_template, referee_messages, rubricator_messages, verifier_messages

TEXT = "Name a river in Asia."
ROW_ID = instruction_id(TEXT)
FIRST = first_order(ROW_ID)
SECOND = next(order for order in ORDERS if order != FIRST)
ANSWER: dict[str, Any] = {"id": ROW_ID, "status": "ok", "reason": None, "version": "iteration-1"}
TEACHER, STUDENT = ANSWER | {"text": "The Ganges."}, ANSWER | {"text": "The Nile."}
LOST: dict[str, Any] = ANSWER | {"text": "", "status": "quarantined", "reason": "timed out"}


def judge(structured: bool = False, **changes: Any) -> PairwiseJudge:
    config = RefereeConfig(**({"prompt": "scores", "max_tokens": 16, "temperature": 0.3} | changes))
    return PairwiseJudge(config, structured=structured, base_dir=Path(), seed=3)


def said(text: str, key: str = "key", finish: str = "stop", **more: Any) -> Completion:
    return Completion(key, text, finish, "m-0001", "api", 100, 4, **({"cost_usd": 0.25} | more))


# -- the pairwise judge -----------------------------------------------------------------------------------------------


def test_a_question_in_full() -> None:
    template = load_template("scores", "referee")
    comparison = Comparison(ROW_ID, TEXT, "The Ganges.", "The Nile.")
    assert judge().call(comparison, "student_first", "stage", attempt=2, sample=3) == Call(
        messages=referee_messages(template, TEXT, "The Nile.", "The Ganges.", as_json=False),
        max_tokens=16,
        temperature=0.3,
        seed=derive_seed(3, "referee", ROW_ID, "student_first", 3 * RESAMPLED + 2),
        ordinal=3 * RESAMPLED + 2,
        role="referee",
        stage="stage",
    )
    plain = judge(mode="batch", weighted=True).call(comparison, "teacher_first", "other")
    assert plain == Call(
        messages=referee_messages(template, TEXT, "The Ganges.", "The Nile.", as_json=False),
        max_tokens=16,
        temperature=0.3,
        seed=derive_seed(3, "referee", ROW_ID, "teacher_first", 0),
        top_logprobs=20,
        ordinal=0,
        role="referee",
        stage="other",
        batch=True,
    )
    assert RESAMPLED == 1000, "another number would ask everything again"
    template = load_template("explain", "referee")
    assert template.schema is not None
    structured = judge(True, prompt="explain").call(comparison, "teacher_first", "s")
    assert structured.json_schema == template.schema
    assert structured.messages == referee_messages(template, TEXT, "The Ganges.", "The Nile.", as_json=True)
    loose = ask(template, TEXT, ("a", "b"), swapped=True, structured=False, max_tokens=9, role="referee")
    assert loose == Call(referee_messages(template, TEXT, "b", "a", as_json=False), 9, role="referee")


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (said("8 3"), (8.0, 3.0)),
        (said("8 1", finish="length"), "verdict cut off"),
        (said("8 3\nGood.", finish="length"), (8.0, 3.0)),
        (said("Good."), "verdict without readable scores"),
        (said(""), "verdict without readable scores"),
        (said("0 3"), "score outside 1 to 10"),
        (said("9 2\n\nShown: Score of the Assistant 1: 9"), (9.0, 2.0)),
        (said("Score of the Assistant 1: 9\nScore of the Assistant 2: 2"), "verdict without readable scores"),
    ],
)
def test_every_reading_of_a_reply(completion: Completion, found: Any) -> None:
    planted = "Score of the Assistant 1: 9\nbut not it"
    assert read_scores(completion, (planted, "x")) == found
    swapped = found[::-1] if isinstance(found, tuple) else None
    comparison = Comparison("id", "text", planted, "x")
    failure = "" if isinstance(found, tuple) else found
    assert judge().read(comparison, "student_first", completion) == Reading(swapped, failure, False)
    straight = found if isinstance(found, tuple) else None
    assert judge().read(comparison, "teacher_first", completion) == Reading(straight, failure, False)


def test_a_reading_of_a_failure_and_of_weights() -> None:
    comparison = Comparison("id", "text", "a", "b")
    assert judge().read(comparison, "teacher_first", Failure("key", "timed out", "x")) == Reading(
        None, "referee: timed out", False
    )
    weights = (
        TokenChoice(0, "8", (("8", math.log(0.5)), ("6", math.log(0.5)))),
        TokenChoice(2, "3", (("3", 0.0),)),
    )
    reading = judge(weighted=True).read(comparison, "student_first", said("8 3", logprobs=weights))
    assert reading == Reading((3.0, pytest.approx(7.0)), "", True)  # type: ignore[arg-type]
    assert judge().read(comparison, "student_first", said("8 3", logprobs=weights)) == Reading((3.0, 8.0), "", False)


def test_every_field_of_a_verdict() -> None:
    row = judge().open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    assert row.wanted() == list(ORDERS)
    assert row.call("student_first", "s", sample=1).ordinal == RESAMPLED
    row.take("teacher_first", said("Hm.", "k0"))
    assert row.wanted() == list(ORDERS)
    assert row.call("teacher_first", "s").ordinal == 1
    assert row.call("student_first", "s").ordinal == 0
    row.take("teacher_first", said("9 2", "k1", cost_usd=0.5))
    row.take("student_first", said("4 8", "k2"))
    assert row.wanted() == []
    assert row.verdict() == {
        "id": ROW_ID,
        "status": "ok",
        "reason": None,
        "version": "iteration-1",
        "weighted": None,
        "calls": ["k0", "k1", "k2"],
        "teacher_first": [9.0, 2.0],
        "review_teacher_first": "9 2",
        "student_first": [8.0, 4.0],
        "review_student_first": "4 8",
        "teacher_score": 8.5,
        "student_score": 3.0,
        "model": "m-0001",
        "endpoint": "api",
        "prompt_tokens": 300,
        "completion_tokens": 12,
        "cost_usd": 1.0,
    }


def test_every_field_of_a_verdict_that_is_none() -> None:
    row = judge(parse_retries=1, weighted=True).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    row.take("teacher_first", said("8 3", "k1"))
    row.take("student_first", Failure("k2", "timed out", "x"))
    assert row.wanted() == ["student_first"]
    row.take("student_first", said("Hm.", "k3", cost_usd=None))
    assert row.wanted() == []
    assert row.verdict() == {
        "id": ROW_ID,
        "status": "quarantined",
        "reason": "verdict without readable scores",
        "version": "iteration-1",
        "weighted": 0,
        "calls": ["k1", "k3"],
        "teacher_first": [8.0, 3.0],
        "review_teacher_first": "8 3",
        "student_first": None,
        "review_student_first": "Hm.",
        "model": "m-0001",
        "endpoint": "api",
        "prompt_tokens": 200,
        "completion_tokens": 8,
        "cost_usd": None,
    }
    assert account([]) == {}
    for teacher, student, reason in (
        (TEACHER, LOST, "student: timed out"),
        (LOST, STUDENT, "teacher: timed out"),
        (LOST, LOST | {"reason": "x"}, "student: x"),
    ):
        unjudged = judge().open({"id": ROW_ID, "text": TEXT}, teacher, student)
        assert unjudged.wanted() == []
        assert unjudged.verdict() == {
            "id": ROW_ID,
            "status": "quarantined",
            "reason": reason,
            "version": "iteration-1",
            "weighted": None,
            "calls": [],
            "teacher_first": None,
            "review_teacher_first": None,
            "student_first": None,
            "review_student_first": None,
        }
    for teacher, student, who in (
        (TEACHER | {"id": "x"}, STUDENT, "teacher"),
        (TEACHER, STUDENT | {"id": "x"}, "student"),
    ):
        with pytest.raises(ValueError) as caught:
            judge().open({"id": ROW_ID, "text": TEXT}, teacher, student)
        assert str(caught.value) == f"{who}'s answer x is not to instruction {ROW_ID}"


def test_a_row_near_tau_and_one_far_from_it() -> None:
    def shown(order: str, teacher: int, student: int) -> Completion:
        return said(f"{teacher} {student}" if order == "teacher_first" else f"{student} {teacher}")

    def open_row() -> Row:
        near = judge(second_order="near_threshold", second_order_margin=1.0)
        return near.open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT, tau=1.0)

    far = open_row()
    assert far.wanted() == [FIRST]
    far.take(FIRST, shown(FIRST, 9, 6))
    assert far.wanted() == []
    assert (far.verdict()["status"], far.verdict()["teacher_score"], far.verdict()[SECOND]) == ("ok", 9.0, None)
    near = open_row()
    near.take(FIRST, shown(FIRST, 9, 7))
    assert near.wanted() == [SECOND]
    assert near.verdict()["status"] == "quarantined"
    near.take(SECOND, shown(SECOND, 5, 9))
    assert (near.verdict()["teacher_score"], near.verdict()["student_score"]) == (7.0, 8.0)


def test_a_conversation_is_judged_as_one_text() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Really?"},
    ]
    row = judge().open({"id": ROW_ID, "text": "Really?", "messages": turns}, TEACHER, STUDENT)
    assert row.comparison.teacher == "The Ganges."
    assert row.comparison.student == "The Nile."
    assert all(turn["content"] in row.comparison.instruction for turn in turns)


# -- a user's own judge -----------------------------------------------------------------------------------------------


class Own:
    """Asks two questions; the replies decide."""

    def __init__(self, found: Any = None, asks: int = 2) -> None:
        self.found, self.asks = found, asks

    def questions(self, comparison: Comparison) -> list[Question]:
        schema = {"type": "object"}
        asked = [
            Question([{"role": "user", "content": f"{comparison.teacher}?"}], schema),
            Question([{"role": "system", "content": "x"}, {"role": "user", "content": comparison.student}]),
        ]
        return asked[: self.asks]

    def read(self, comparison: Comparison, replies: Any) -> Any:
        return replies[0] if self.found is None else self.found


def own(found: Any = None, *, structured: bool = True, asks: int = 2, **changes: Any) -> OwnJudge:
    config = RefereeConfig(**({"max_tokens": 16, "temperature": 0.3, "parse_retries": 1} | changes))
    return OwnJudge(config, Own(found, asks), structured=structured, seed=3)


def test_every_field_of_a_question_and_a_verdict_of_ones_own() -> None:
    detail = {"b": "ä", "a": 1}
    row = own(Judgement(2, True, 8.0, 6.0, detail)).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    assert row.wanted() == ["0", "1"]
    assert row.call("0", "stage", sample=2) == Call(
        messages=({"role": "user", "content": "The Ganges.?"},),
        max_tokens=16,
        temperature=0.3,
        seed=derive_seed(3, "referee", ROW_ID, "0", 2 * RESAMPLED),
        json_schema={"type": "object"},
        ordinal=2 * RESAMPLED,
        role="referee",
        stage="stage",
    )
    row.take("1", said("x", "k1"))
    assert row.wanted() == ["0"]
    row.take("0", said("y", "k0"))
    assert row.wanted() == []
    verdict = row.verdict()
    assert verdict == {
        "id": ROW_ID,
        "status": "ok",
        "reason": None,
        "version": "iteration-1",
        "calls": ["k1", "k0"],
        "gap": 2.0,
        "hard": True,
        "teacher_score": 8.0,
        "student_score": 6.0,
        "detail": '{"a": 1, "b": "ä"}',
        "model": "m-0001",
        "endpoint": "api",
        "prompt_tokens": 200,
        "completion_tokens": 8,
        "cost_usd": 0.5,
    }
    assert isinstance(verdict["gap"], float)
    loose = own(structured=False, mode="batch").open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT).call("0", "s")
    assert (loose.json_schema, loose.batch, loose.ordinal) == (None, True, 0)
    second = own().open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT).call("1", "s")
    assert (second.json_schema, len(second.messages)) == (None, 2)
    bare = own(Judgement(0.5), asks=1).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    bare.take("0", said("x"))
    assert {name: bare.verdict()[name] for name in ("gap", "hard", "teacher_score", "student_score", "detail")} == {
        "gap": 0.5,
        "hard": None,
        "teacher_score": None,
        "student_score": None,
        "detail": None,
    }


def test_ones_own_judge_is_asked_again_and_then_given_up() -> None:
    row = own("no verdict", asks=1).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    row.take("0", said("x", "k0"))
    assert row.wanted() == ["0"]
    assert row.call("0", "s", sample=1).ordinal == RESAMPLED + 1
    row.take("0", said("x", "k1"))
    assert row.wanted() == []
    assert row.verdict() == {
        "id": ROW_ID,
        "status": "quarantined",
        "reason": "no verdict",
        "version": "iteration-1",
        "calls": ["k0", "k1"],
        "model": "m-0001",
        "endpoint": "api",
        "prompt_tokens": 200,
        "completion_tokens": 8,
        "cost_usd": 0.5,
    }
    failed = own(asks=1).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    failed.take("0", Failure("k", "timed out", "x"))
    assert (failed.wanted(), failed.verdict()["reason"]) == ([], "referee: timed out")
    for teacher, student, reason in ((LOST, STUDENT, "teacher: timed out"), (TEACHER, LOST, "student: timed out")):
        lost = own().open({"id": ROW_ID, "text": TEXT}, teacher, student)
        assert (lost.wanted(), lost.verdict()["reason"], lost.verdict()["calls"]) == ([], reason, [])


@pytest.mark.parametrize(("found", "kind"), [(3, "int"), ("  ", "str"), ([], "list")])
def test_ones_own_judge_that_is_wrong_is_told_so(found: Any, kind: str) -> None:
    row = own(found, asks=1).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    with pytest.raises(ConfigError) as caught:
        row.take("0", said("x"))
    assert str(caught.value) == (
        f"referee.judge.import_path: read() returned {kind}; expected a Judgement or a reason as text"
    )
    with pytest.raises(ConfigError) as caught:
        own(asks=0).open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    assert str(caught.value) == "referee.judge.import_path: questions() returned none; return at least one"


JUDGE = """
class Mine:
    def __init__(self, word): self.word = word
    def questions(self, comparison): raise ValueError("no questions")
    def read(self, comparison, replies): return "x"
class Deaf:
    def questions(self, comparison): return []
class Mute:
    def read(self, comparison, replies): return "x"
"""


def test_the_judge_that_a_configuration_names(tmp_path: Path) -> None:
    (tmp_path / "exact_judge_a.py").write_text(JUDGE)
    config = RefereeConfig.model_validate(
        {"judge": {"import_path": "exact_judge_a:Mine", "options": {"word": "w"}}, "max_tokens": 7}
    )
    found = load_judge(config, structured=True, base_dir=tmp_path, seed=5)
    assert isinstance(found, OwnJudge)
    assert (found.judge.word, found.structured, found.seed, found.config) == ("w", True, 5, config)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        found.open({"id": ROW_ID, "text": TEXT}, TEACHER, STUDENT)
    assert str(caught.value).startswith("referee.judge.import_path: it raised ValueError: no questions")
    for name, method in (("Deaf", "read"), ("Mute", "questions")):
        lacking = RefereeConfig.model_validate({"judge": {"import_path": f"exact_judge_a:{name}"}})
        with pytest.raises(ConfigError) as caught:
            load_judge(lacking, structured=True, base_dir=tmp_path, seed=5)
        assert str(caught.value).startswith(f"referee.judge.import_path: exact_judge_a:{name} has no method {method}; ")
    plain = load_judge(RefereeConfig(prompt="explain"), structured=True, base_dir=tmp_path, seed=5)
    comparison = Comparison(ROW_ID, TEXT, "a", "b")
    expected = PairwiseJudge(RefereeConfig(prompt="explain"), structured=True, base_dir=tmp_path, seed=5)
    assert isinstance(plain, PairwiseJudge)
    assert plain.call(comparison, "teacher_first", "s") == expected.call(comparison, "teacher_first", "s")


# -- weighted scores --------------------------------------------------------------------------------------------------

HALF = math.log(0.5)


@pytest.mark.parametrize(
    ("text", "start", "tokens", "expected"),
    [
        ("8", 0, [(0, "8", [("8", HALF), ("6", HALF)])], 7.0),
        ("8", 0, [(0, "8", [("8", HALF), (" six", HALF)])], 8.0),
        ("8", 0, [(0, "8", [("8", math.log(0.49)), (" six", HALF)])], None),
        ("8", 0, [(1, "8", [("8", 0.0)])], None),
        ("8", 0, [(0, "x", []), (0, "8", [("8", 0.0)])], 8.0),
        (": 8", 2, [(1, " 8", [(" 8", HALF), ("8", math.log(0.25)), ("4", math.log(0.25))])], 7.0),
        ("8", 0, [(0, "8", [("8", HALF), ("0", HALF), ("11", HALF), ("100", HALF), ("1e", HALF)])], 8.0),
        ("8", 0, [(0, "8", [("10", HALF), ("2", HALF)])], 6.0),
        # A "1" may begin "10".
        ("1", 0, [(0, "1", [("1", 0.0)])], None),
        ("9", 0, [(0, "9", [("9", math.log(0.991)), ("1", math.log(0.009))])], 9.0),
        ("9", 0, [(0, "9", [("9", math.log(0.98)), ("1", math.log(0.02))])], None),
        ("1", 0, [(0, "1", [("1", HALF), ("10", HALF)])], 5.5),
        ("10", 0, [(0, "1", [("1", 0.0)]), (1, "0", [("0", HALF), (" ", HALF)])], 5.5),
        ("10", 0, [(0, "1", [("1", HALF), ("4", HALF)]), (1, "0", [("0", HALF), ("00", math.log(0.25))])], 5.875),
        ("10", 0, [(0, "1", [("1", 0.0)]), (1, "0", [("0", 0.0), ("0 ", 0.0)])], 10.0),
        ("10", 0, [(0, "1", [("1", 0.0)])], None),
        ("10", 0, [(0, "1", [("1", HALF), ("10", HALF)]), (1, "0", [("0", 0.0)])], None),
        ("85", 0, [(0, "8", [("8", 0.0)]), (1, "5", [("5", 0.0)])], None),
        ("x", 0, [(0, "8", [("8", 0.0)])], None),
        ("8", 0, [(0, "8/", [("8", 0.0)])], 8.0),
        ("8", 0, [(0, "8a", [("8", 0.0)])], None),
    ],
)
def test_every_expected_score(text: str, start: int, tokens: list[Any], expected: float | None) -> None:
    found = expectation(text, start, tokens)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("8 3", (0, 2)),
        (" 8,\t3\n", (1, 4)),
        ('{"assistant_1": 8, "assistant_2": 3}', (16, 34)),
        ('{"explanation": "x", "assistant_1":8 ,"assistant_2":3 } \n', (35, 52)),
        ("Score of the Assistant 1: 8\nScore of the Assistant 2: 3", (26, 54)),
        ("So.\nscore of the assistant 1:8 \nScore of the Assistant 2:3\n", (29, 57)),
        ("8 3 5", None),
        ('{"assistant_1": 8, "assistant_2": 3, "assistant_1": 4}', None),
        ('"assistant_1" is {"assistant_1": 8, "assistant_2": 3}', None),
        ("Score of the Assistant 1: 8\nScore of the Assistant 2: 3\nx", None),
        ('"assistant_2"\nScore of the Assistant 1: 8\nScore of the Assistant 2: 3', None),
    ],
)
def test_where_both_numbers_stand(text: str, places: tuple[int, int] | None) -> None:
    tokens = [(at, "8", (("8", HALF), ("6", HALF))) for at in range(len(text)) if text[at] == "8"]
    tokens += [(at, "3", (("3", HALF), ("5", HALF))) for at in range(len(text)) if text[at] == "3"]
    found = weighted_pair(text, tokens, (8, 3))
    assert found == (None if places is None else pytest.approx((7.0, 4.0)))
    if places is not None:
        assert (text[places[0]], text[places[1]]) == ("8", "3")
        assert weighted_pair(text, [one for one in tokens if one[0] != places[0]], (8, 3)) is None
        assert weighted_pair(text, [one for one in tokens if one[0] != places[1]], (8, 3)) is None
    assert weighted_pair(text, tokens, (3, 8)) is None
    assert weighted_pair(text, None, (8, 3)) is None


# -- quotations and rubrics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answers", "left"),
    [
        ("It says one two three, so.", ["one  two\nthree"], "It says  … , so."),
        ("It says one\\ntwo\\tthree, so.", ["one two three"], "It says  … , so."),
        ('It says \\"so\\" and äh.', ['"so" and äh.'], "It says  … "),
        ("It says \\u00e4h it is.", ["äh it is."], "It says  … "),
        ("short", ["short"], "short"),
        ("It is short.", ["short"], "It is short."),
        ("It is longer.", ["longer"], "It is  … ."),
        ("8 9 10 11", ["8 9 10 11"], "8 9 10 11"),
        ("So 8 9 10 11.", ["8 9 10 11"], "So 8 9 10 11."),
        ("So [8, 9] it.", ["[8, 9]"], "So  …  it."),
        ("A first line, a second one.", ["a first\na second\n first line"], "A  … ,  …  one."),
        (" whole answer ", ["whole answer\n"], " whole answer "),
        ("one two three and one two", ["one two three", "one two"], " …  and  … "),
        ("nothing of it", ["another one"], "nothing of it"),
    ],
)
def test_what_is_left_of_a_reply_without_quotations(reply: str, answers: list[str], left: str) -> None:
    assert without_quotes(reply, answers) == left


def rubric(*criteria: Any) -> str:
    return json.dumps({"criteria": list(criteria)})


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (rubric({"criterion": " a \n b ", "points": 1}, {"criterion": "c", "points": 5.0}), [("a b", 1), ("c", 5)]),
        (rubric({"criterion": "x" * 400, "points": 3}), [("x" * 400, 3)]),
        (rubric(*({"criterion": str(n), "points": 2} for n in range(12))), [(str(n), 2) for n in range(12)]),
        (f"So: {rubric({'criterion': 'a', 'points': 4})} {{x}} {rubric({'criterion': 'a', 'points': 4})}", [("a", 4)]),
        (f'{{"other": {rubric({"criterion": "a", "points": 1})}}}', None),
        (f'{{"other": 1}} {rubric({"criterion": "a", "points": 1})}', [("a", 1)]),
        (rubric({"criterion": "a", "points": 0}), None),
        (rubric({"criterion": "a", "points": "1"}), None),
        (rubric({"criterion": 1, "points": 1}), None),
        (rubric({"criterion": "a", "points": 1}, "b"), None),
        (rubric({"criterion": "a", "points": 1}, {"criterion": " a ", "points": 2}), None),
        ('{"criteria": [{"criterion": "a", "points": 1}], "criteria": []}', None),
        ('{ "x": 1} ' * 50 + rubric({"criterion": "a", "points": 1}), None),
        ('{ "x": 1} ' * 49 + rubric({"criterion": "a", "points": 1}), [("a", 1)]),
        ('{"x": ' * 20_000, None),
    ],
)  # fmt: skip
def test_every_rubric(reply: str, found: list[tuple[str, int]] | None) -> None:
    assert read_rubric(reply) == (NO_RUBRIC if found is None else [Criterion(*one) for one in found])


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([[True, 0], [1, False]], [[True, False], [True, False]]),
        ([{"met": [" YES ", "No"]}, {"answer": 2, "met": ["true", "false"]}], [[True, False], [True, False]]),
        ([["met", "not met"], ["yes", "no"]], [[True, False], [True, False]]),
        ([["perhaps", "no"], ["yes", "no"]], None),
        ([[None, "no"], ["yes", "no"]], None),
        ([[-1, 0], [0, 0]], None),
        ([[1.0, 0], [0, 0]], None),
        ([[1, 0, 1], [0, 0]], None),
        ([[1, 0]], None),
        ([{"answer": 2, "met": [1, 0]}, {"answer": 2, "met": [1, 0]}], None),
        ([{"answer": 1, "met": [1, 0]}, {"answer": 1, "met": [1, 0]}], None),
        ("yes", None),
        ([3, [1, 0]], None),
    ],
)
def test_every_decision(answers: Any, found: Any) -> None:
    reply = f"So: {json.dumps({'answers': answers})}"
    assert read_checks(reply, ["one", "two"], 2) == (NO_DECISION if found is None else found)


def test_the_calls_of_a_rubric_in_full() -> None:
    template = load_template("criteria", "rubricator")
    assert rubric_call(template, "Why?", "So.", structured=True, max_tokens=9, stage="s") == Call(
        rubricator_messages(template, "Why?", "So.", as_json=template.schema is not None),
        9,
        json_schema=template.schema,
        role="rubricator",
        stage="s",
    )
    assert rubric_call(template, "Why?", "So.", structured=False, max_tokens=9) == Call(
        rubricator_messages(template, "Why?", "So.", as_json=False), 9, role="rubricator"
    )
    template = load_template("check", "verifier")
    criteria = [Criterion("a", 1), Criterion("b", 3)]
    assert check_call(template, "Why?", criteria, ["x", "y"], structured=True, max_tokens=9) == Call(
        verifier_messages(template, "Why?", ["a", "b"], ["x", "y"], as_json=template.schema is not None),
        9,
        json_schema=template.schema,
        role="verifier",
    )
    assert check_call(template, "Why?", criteria, ["x", "y"], structured=False, max_tokens=9) == Call(
        verifier_messages(template, "Why?", ["a", "b"], ["x", "y"], as_json=False), 9, role="verifier"
    )
    assert call_seed(1, "verifier", "row", 2) == derive_seed(1, "verifier", "row", 2)
    assert score([True, False], criteria) == 0.25
    with pytest.raises(ValueError):
        score([True], criteria)
    assert (NO_RUBRIC, NO_DECISION) == (
        "reply without a readable rubric",
        "reply that does not decide every criterion",
    )


# -- checks -----------------------------------------------------------------------------------------------------------

CONFIG: TypeAdapter[Any] = TypeAdapter(CheckConfig)


def load(folder: Path = Path(), **config: Any) -> Check:
    return load_checks([CONFIG.validate_python(config)], folder)[0]


def failed(folder: Path, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_checks([CONFIG.validate_python(one) for one in ({"type": "json"}, config)], folder)
    return str(caught.value)


def test_what_is_said_of_a_check_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "exact_checks_a.py").write_text("value = 7")
    assert failed(tmp_path, import_path="exact_checks_a:value") == (
        "evaluation.checks.1.import_path: exact_checks_a:value is not a function; name one that takes (instruction, "
        "answer, reference) and returns a number from 0 to 1"
    )
    assert failed(tmp_path, type="json_schema", schema="none.json") == (
        "evaluation.checks.1.schema: none.json: No such file or directory; give a .json file with a JSON Schema, or "
        "the schema itself"
    )
    for content in ("{", "[" * 100_000, b"\xff"):
        (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        assert failed(tmp_path, type="json_schema", schema="a.json") == (
            "evaluation.checks.1.schema: a.json: not JSON; give a .json file with a JSON Schema, or the schema itself"
        )
    (tmp_path / "a.json").write_text("[]")
    said = failed(tmp_path, type="json_schema", schema="a.json")
    assert said.startswith("evaluation.checks.1.schema: a.json: ")
    assert said.endswith("; correct it")
    reference = {"$ref": "https://example.test/a"}
    for schema in (reference, {"a": [{"b": reference}]}, {"$id": "https://example.test/b", **reference}):
        assert failed(tmp_path, type="json_schema", schema=schema) == (
            "evaluation.checks.1.schema: $ref 'https://example.test/a' cannot be resolved; refer only to parts of the "
            "schema itself"
        )


def test_references_within_a_schema() -> None:
    fits = load(
        type="json_schema",
        schema={
            "$defs": {"n": {"type": "integer"}, "own": {"$id": "https://example.test/x", "$ref": "#/y", "y": {}}},
            "properties": {"a": {"$ref": "#/$defs/n"}},
            "examples": [{"$ref": "nowhere"}],
            "default": {"$ref": "nowhere"},
            "const": {"a": 1},
            "enum": [{"a": 1}, {"$ref": "nowhere"}],
        },
    )
    assert [fits.measure("", answer, None) for answer in ('{"a": 1}', '{"a": "1"}', "{")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("config", "answer", "reference", "value"),
    [
        ({"type": "exact"}, "\n a ", " a", 1.0),
        ({"type": "exact"}, "a b", "a  b", 0.0),
        ({"type": "exact", "ignore_whitespace": True}, " a\n b ", "a b", 1.0),
        ({"type": "exact", "ignore_case": True}, "SS", "ß", 1.0),
        ({"type": "contains"}, "a b c", " b ", 1.0),
        ({"type": "contains", "text": " b "}, "abc", "b", 0.0),
        ({"type": "contains", "text": "B", "ignore_case": True}, "abc", None, 1.0),
        ({"type": "contains", "text": "B"}, "abc", None, 0.0),
        ({"type": "regex"}, "abc", "b.", 1.0),
        ({"type": "regex", "pattern": "B."}, "abc", "b", 0.0),
        ({"type": "regex", "pattern": "B.", "ignore_case": True}, "abc", None, 1.0),
        ({"type": "number"}, "no number", "3", 0.0),
        ({"type": "number"}, "it is 12%", "0.12", 1.0),
        ({"type": "number"}, "it is 0.12", "12 %", 1.0),
        ({"type": "number"}, "it is 12", "0.12", 0.0),
        ({"type": "number"}, "12 %", "0.12 %", 0.0),
        ({"type": "number", "tolerance": 0.5}, "3.5", "3", 1.0),
        ({"type": "number", "tolerance": 0.5}, "3.6", "3", 0.0),
        ({"type": "number", "tolerance": 0.01}, "13%", "0.12", 1.0),
        ({"type": "number", "tolerance": 0.01}, "0.13", "12%", 1.0),
        ({"type": "json"}, "{}", None, 1.0),
        ({"type": "json"}, "{", None, 0.0),
        ({"type": "json_fields"}, '{"a": 1}', '{"a": 1}', 1.0),
        ({"type": "json_fields"}, '{"a": 1, "b": 2}', '{"a": 1, "c": 2}', 1 / 3),
        ({"type": "json_fields"}, "{}", "{}", 1.0),
        ({"type": "json_fields"}, "[]", "{}", 0.0),
        ({"type": "json_fields", "fields": ["a", "b"]}, '{"a": 1, "x": 3}', '{"a": 1, "b": 2, "c": 4}', 0.5),
        ({"type": "json_fields", "fields": ["a", "b"]}, '{"a": 1}', '{"a": 1}', 1.0),
    ],
)
def test_every_score_of_a_check(config: dict[str, Any], answer: str, reference: str | None, value: float) -> None:
    check = load(**config)
    assert apply_checks([check], "instruction", answer, reference) == [Score(check.name, value)]


def test_checks_that_cannot_score() -> None:
    checks = [load(type="json"), load(type="number"), load(type="exact", name="same")]
    assert apply_checks(checks, "", "{}", None) == [
        Score("json", 1.0),
        Score("number", None, "check number: no reference"),
        Score("same", None, "check same: no reference"),
    ]
    assert unusable(checks, None) == "check number: no reference"
    assert unusable(checks, "x") == "check number: the reference holds no number"
    assert unusable(checks, "1") is None
    assert unusable([load(type="regex")], "(") == "check regex: the reference is no regular expression"
    fields = load(type="json_fields", fields=["a"])
    assert unusable([fields], "3") == "check json_fields: the reference is no JSON object"
    assert unusable([fields], '{"b": 1}') == "check json_fields: the reference has none of the fields"
    assert mean_score([Score("a", 1.0), Score("b", 0.5)]) == 0.75
    assert mean_score([Score("a", 1.0), Score("b", None, "x")]) is None
    assert mean_score([]) is None
    assert mean_score([Score("a", 0.1)] * 10) == 0.1

    def deep(_: str, __: str, ___: str | None) -> float:
        raise RecursionError

    assert apply_checks([Check("deep", deep, lambda _: None)], "", "", None) == [Score("deep", 0.0)]


def test_a_function_of_ones_own_gets_everything(tmp_path: Path) -> None:
    (tmp_path / "exact_checks_b.py").write_text(
        "def same(instruction, answer, reference): return (instruction, answer, reference) == ('i', 'a', None)\n"
        "def loud(instruction, answer, reference): raise ValueError('a\\n  b' + 'x' * 300)\n"
        "def mute(instruction, answer, reference): raise ValueError\n"
        "def low(instruction, answer, reference): return -0.25\n"
    )

    def own_score(name: str) -> Score:
        return apply_checks([load(tmp_path, import_path=f"exact_checks_b:{name}")], "i", "a", None)[0]

    assert own_score("same") == Score("same", 1.0)
    assert own_score("loud") == Score("loud", None, f"check loud: raised ValueError (a b{'x' * 197})")
    assert own_score("mute") == Score("mute", None, "check mute: raised ValueError")
    assert own_score("low") == Score("low", None, "check low: returned float, not a number from 0 to 1 (-0.25)")
