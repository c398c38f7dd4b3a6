"""What is too near an evaluation question, and how questions are found in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lion_ray.config import DataConfig
from lion_ray.core.errors import ConfigError, DataError
from lion_ray.data.contamination import NGRAM, QUOTES, SIMILAR, EvaluationSet, read_questions
from lion_ray.data.importing import import_data

QUESTION = "If a train leaves at nine and arrives at noon after two stops, how long was it under way in all?"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def test_near_and_quoting_texts_are_rejected() -> None:
    evaluation = EvaluationSet([QUESTION, "Name a river."])
    assert evaluation.rejects(QUESTION.replace("nine", "ten")) == SIMILAR
    assert evaluation.rejects("name a river") == SIMILAR
    assert evaluation.rejects("Describe a train that leaves at night.") is None
    words = QUESTION.split()
    around = (
        "Here is something else entirely, told at some length before the borrowed part begins and goes on: {} And more."
    )
    assert evaluation.rejects(around.format(" ".join(words[:NGRAM]))) == QUOTES
    assert evaluation.rejects(around.format(" ".join(words[: NGRAM - 1]))) is None
    # The same words, but not in a row.
    assert evaluation.rejects(around.format(" ".join(words[: NGRAM - 1]) + " then " + words[NGRAM - 1])) is None


QUOTED = 13
"""Words in a row, as in GPT-3's contamination study, and not as the code has it."""


@pytest.mark.parametrize("before", [0, 40])
@pytest.mark.parametrize("after", [0, 40])
@pytest.mark.parametrize("start", [0, 3, len(QUESTION.split()) - QUOTED])
def test_thirteen_words_in_a_row_are_a_quotation_wherever_they_stand(before: int, after: int, start: int) -> None:
    assert NGRAM == QUOTED
    evaluation = EvaluationSet([QUESTION])
    words = QUESTION.split()[start : start + QUOTED]
    assert len(words) == QUOTED

    def among_others(quoted: list[str]) -> str:
        return " ".join([*(f"one{n}" for n in range(before)), *quoted, *(f"two{n}" for n in range(after))])

    if before + after > QUOTED:  # else ROUGE-L says so already
        assert evaluation.rejects(among_others(words)) == QUOTES
        assert evaluation.rejects(among_others(words[1:])) is None
        assert evaluation.rejects(among_others(words[:-1])) is None
    else:
        assert evaluation.rejects(among_others(words)) is not None


def test_a_question_of_thirteen_words_is_quoted_whole() -> None:
    words = [f"word{n}" for n in range(QUOTED)]
    around = [f"other{n}" for n in range(40)]
    assert EvaluationSet([" ".join(words)]).rejects(" ".join([*around, *words])) == QUOTES
    assert EvaluationSet([" ".join(words[1:])]).rejects(" ".join([*around, *words])) is None, "too short to be quoted"


def test_nothing_is_rejected_without_questions() -> None:
    assert EvaluationSet().rejects(QUESTION) is None
    assert EvaluationSet([""]).rejects("") is None


def test_questions_are_found_under_many_keys_and_in_folders(tmp_path: Path) -> None:
    suite = tmp_path / "suite" / "deep"
    suite.mkdir(parents=True)
    (suite / "a.json").write_text(json.dumps({"canary": "x", "examples": [{"input": "one", "target": "no"}]}))
    (suite / "b.jsonl").write_text('{"passage": "two", "question": "three", "answer": "no"}\n')
    (suite / "notes.txt").write_text("not a question")
    (tmp_path / "c.json").write_text(json.dumps([{"turns": ["four", "five"]}, {"instruction": "six"}]))
    assert read_questions(["suite", "c.json"], tmp_path) == ["one", "three", "two", "four", "five", "six"]


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("absent.jsonl", None, ConfigError, "absent.jsonl: no such file"),
        ("empty.jsonl", '{"answer": "x"}\n', DataError, "empty.jsonl: no row has any of instruction, prompt"),
        ("torn.jsonl", '{"question": "x"}\n{"que\n', DataError, "torn.jsonl:2: not JSON"),
        ("odd.jsonl", '{"question": "x"}\n[1]\n', DataError, "odd.jsonl:2: not a JSON object"),
        ("object.json", '{"version": 1}', DataError, "object.json: no row has any of"),
        ("torn.json", '{"examples": [', DataError, "torn.json:1: not a list"),
        ("hollow", "", ConfigError, "hollow: no .json"),
    ],
)
def test_a_source_that_protects_nothing_is_an_error(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], told: str
) -> None:
    if name == "hollow":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error) as caught:
        read_questions([name], tmp_path)
    assert told in str(caught.value)


def test_the_users_own_instructions_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": text} for text in ("Name a river!", "Write a poem about lions.", QUESTION)]
    (tmp_path / "pool.json").write_text(json.dumps(rows))
    (tmp_path / "suite.jsonl").write_text(json.dumps({"text": QUESTION}) + '\n{"text": "Name a river"}\n')
    data = DataConfig(pool="pool.json", decontaminate=("suite.jsonl",))
    taken = import_data(data, tmp_path, 0)
    assert taken.pool["text"].to_pylist() == ["Write a poem about lions."]
    assert taken.counts()["contaminated"] == {SIMILAR: 2}
    assert [json.loads(line)["text"] for line in taken.contaminated_jsonl().splitlines()] == ["Name a river!", QUESTION]
    (tmp_path / "pool.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(
        DataError, match="no instruction is left to train on \\(1 are too similar to an evaluation question"
    ):
        import_data(data, tmp_path, 0)


def test_real_benchmarks_are_read_whole() -> None:
    if not SHARED.exists():
        pytest.skip(f"needs the shared data: {SHARED} is absent")
    questions = read_questions(["bbh", "agieval", "vicuna80"], SHARED)
    evaluation = EvaluationSet(questions)
    assert len(evaluation) > 7000
    assert all(evaluation.rejects(question) == SIMILAR for question in questions[::97] if len(question.split()) > 3)
