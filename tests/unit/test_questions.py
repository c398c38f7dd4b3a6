"""Open questions: files of every form, ids that are ids, and subsets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.evaluation.pairwise.answers import read_answers
from lion_ray.evaluation.pairwise.questions import OpenQuestion, each, read_questions, spread, suite_name

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_every_form(tmp_path: Path) -> None:
    task = {"id": "task_0", "motivation_app": "Mail", "instruction": " Answer it. "}
    path = written(
        tmp_path / "own.jsonl",
        {"question_id": 1, "text": "Why?", "category": "generic"},
        {"question_id": 2, "category": "math", "turns": ["What is 2 + 2?"]},
        task | {"instances": [{"input": "Who are you?", "output": "A poet."}]},
        task | {"id": "task_1", "instances": [{"input": "", "output": "Yes."}]},
        {"id": "own", "instruction": "Name a colour.", "input": "N/A"},
    )
    assert read_questions(str(path), None) == [
        OpenQuestion("1", "Why?", "generic"),
        OpenQuestion("2", "What is 2 + 2?", "math"),
        OpenQuestion("task_0", "Answer it.\n\nWho are you?", "Mail"),
        OpenQuestion("task_1", "Answer it.", "Mail"),
        OpenQuestion("own", "Name a colour.", ""),
    ]
    assert suite_name(str(path)) == "own"


def test_rows_of_equal_text_are_two_questions(tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", {"id": "a", "text": "Why?"}, {"id": "b", "text": "Why?"})
    assert [one.id for one in read_questions(str(path), None)] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "b"}, "own.jsonl:2: no text"),
        ({"text": "Why?"}, "own.jsonl:2: no id"),
        ({"id": True, "text": "Why?"}, "own.jsonl:2: no id"),
        ({"id": "a", "text": "Why?"}, "own.jsonl:2: duplicate id a"),
        ({"id": "b", "text": 3}, "own.jsonl:2: 'text' is not a string but int"),
        ({"id": "b", "text": "Why?", "category": 3}, "own.jsonl:2: `category` must be a string"),
        ({"id": "b", "turns": ["Why?", "Really?"]}, "own.jsonl:2: 2 turns"),
        ({"id": "b", "text": "\ud800"}, "own.jsonl:2: 'text' holds a lone surrogate"),
        ([], "own.jsonl:2: not a JSON object"),
    ],
)
def test_rows_that_are_no_questions(tmp_path: Path, row: Any, said: str) -> None:
    path = written(tmp_path / "own.jsonl", {"id": "a", "text": "Why?"}, row)
    with pytest.raises(DataError) as caught:
        read_questions(str(path), None)
    assert said in str(caught.value)


def test_a_known_suite_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "question.jsonl", {"question_id": 1, "text": "Why?"})
    with pytest.raises(DataError, match="1 questions, but vicuna80 has 80"):
        read_questions("vicuna80", path)
    with pytest.raises(ConfigError, match=r"--suite user252 needs its questions: --questions FILE \(human_eval/user_"):
        read_questions("user252", None)
    with pytest.raises(ConfigError, match="--questions is for vicuna80 and user252"):
        read_questions(str(path), path)
    with pytest.raises(ConfigError, match="no such file"):
        read_questions("vicuna80", tmp_path / "none.jsonl")


def test_a_subset_is_spread_and_grows() -> None:
    questions = [OpenQuestion(str(n), "Why?", "few" if n % 10 == 0 else "many") for n in range(40)]

    def some(limit: int | None) -> list[OpenQuestion]:
        return spread(questions, limit, lambda one: one.id, lambda one: one.category)

    assert some(None) == some(40) == some(99) == questions
    assert Counter(one.category for one in some(6)) == {"few": 3, "many": 3}
    assert Counter(one.category for one in some(12)) == {"few": 4, "many": 8}, "a small category gives all it has"
    assert set(some(6)) < set(some(12))
    assert some(12) == sorted(some(12), key=lambda one: int(one.id)), "in the file's order"
    by_task = each(questions, 3, lambda one: one.id, lambda one: one.category)
    assert Counter(one.category for one in by_task) == {"few": 3, "many": 3}


def test_recorded_answers_go_by_id(tmp_path: Path) -> None:
    questions = [OpenQuestion("1", "Why?"), OpenQuestion("2", "Why?"), OpenQuestion("3", "How?")]
    rows: list[dict[str, Any]] = [{"question_id": 1, "text": "Because."}, {"id": "2", "text": " "}]
    answers = read_answers(written(tmp_path / "answers.jsonl", *rows), questions)
    assert {one: answer.text for one, answer in answers.items()} == {"1": "Because.", "2": None}
    assert answers["2"].reason == "empty answer"
    for row, said in [
        ({"id": "4", "text": "x"}, "answers.jsonl:3: the suite has no question with id 4"),
        ({"id": "1", "text": "x"}, "answers.jsonl:3: duplicate id 1"),
        ({"id": "3"}, "answers.jsonl:3: not"),
    ]:
        with pytest.raises(DataError) as caught:
            read_answers(written(tmp_path / "answers.jsonl", *rows, row), questions)
        assert said in str(caught.value)


def test_the_real_files() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    vicuna = read_questions("vicuna80", SHARED / "vicuna80" / "question.jsonl")
    assert vicuna == read_questions("vicuna80", SHARED / "vicuna80" / "question_turns.jsonl")
    assert Counter(Counter(one.category for one in vicuna).values()) == {10: 7, 7: 1, 3: 1}
    users = read_questions("user252", SHARED / "self-instruct" / "user_oriented_instructions.jsonl")
    assert len({one.id for one in users}) == 252
    assert all("\n\n" in one.text for one in users if one.id == "user_oriented_task_0")
