"""BBH and AGIEval: questions, prompts, letters and scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lion_ray.cli import app, guarded
from lion_ray.core.errors import DataError
from lion_ray.evaluation.benchmarks.protocol import (
    AGIEVAL,
    BBH,
    SUITES,
    WORDS,
    Question,
    load_suite,
    missing_tasks,
    published_letter,
    standing_letter,
)
from lion_ray.evaluation.benchmarks.recorded import read_outputs, score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NAVIGATE = Question("bbh", "navigate", 0, "Do you return?", ("Yes", "No"), "B")


def bbh_file(folder: Path, task: str, rows: list[dict[str, str]]) -> None:
    """A task of as many questions as it must have: these, over and over."""
    rows = (rows * (BBH[task] // len(rows) + 1))[: BBH[task]]
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.json").write_text(json.dumps({"examples": rows}))


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "bbh"
    bbh_file(folder, "navigate", [{"input": "Turn around. Do you return?\nOptions:\n- Yes\n- No", "target": "No"}])
    snark = {"input": "Which is sarcastic?\nOptions:\n(A) A fine day\n(B) No rain at all", "target": "(B)"}
    bbh_file(folder, "snarks", [snark])
    return folder


def test_the_suites_are_as_large_as_the_papers() -> None:
    assert (len(BBH), sum(BBH.values())) == (23, 5511)
    assert (len(AGIEVAL), sum(AGIEVAL.values())) == (8, 2546)
    assert len(WORDS) == 6
    assert set(WORDS) <= set(BBH)


def test_the_prompt_is_the_papers() -> None:
    assert NAVIGATE.prompt() == ("Q: Do you return? Answer Choices: (A) Yes (B) No A: Among A through B, the answer is")
    with_passage = Question("agieval", "sat-en", 3, "Why?", ("x", "y", "z"), "C", "A story.")
    assert with_passage.prompt().startswith("A story. Q: Why?")
    assert with_passage.id == "agieval/sat-en/3"


def test_words_become_letters_and_options_lose_theirs(two_tasks: Path) -> None:
    navigate, *_ = load_suite("bbh", two_tasks)
    assert (navigate.text, navigate.options, navigate.answer) == ("Turn around. Do you return?", ("Yes", "No"), "B")
    snark = next(one for one in load_suite("bbh", two_tasks) if one.task == "snarks")
    assert (snark.options, snark.answer) == (("A fine day", "No rain at all"), "B")
    assert len(missing_tasks("bbh", load_suite("bbh", two_tasks))) == 21


@pytest.mark.parametrize(
    ("output", "published", "standing"),
    [
        ("(B)", "B", "B"),
        ("B. because it is", "B", "B"),
        ("Because of this, the answer is C", "B", "C"),
        ("the answer is (D), not E", "D", "D"),
        ("A man walks in: C", "A", "C"),
        ("A", "A", "A"),
        ("I do not know", None, None),
        ("no letter here", None, None),
        ("", None, None),
        ("G", None, None),
        ("<think>Not A. Perhaps B?</think>\nC", "C", "C"),
        ("Final answer: B", "F", "B"),
    ],
)
def test_the_letter_of_an_output(output: str, published: str | None, standing: str | None) -> None:
    assert published_letter(output) == published
    assert standing_letter(output, "ABCDE") == standing


@pytest.mark.parametrize(
    ("output", "letters", "letter"),
    [
        ("I think the answer is (C).", "ABCDEFGHIJ", "C"),
        ("I would say D.", "ABCDEFGHIJ", "D"),
        ("Here I count six lines, so (D)", "ABCDEFGHIJ", "D"),
        ("I'm sure it is B", "ABCDEFGHIJ", "B"),
        ("I", "ABCDEFGHIJ", "I"),
        ("I.", "ABCDEFGHIJ", "I"),
        ("(I) sector", "ABCDEFGHIJ", "I"),
        ("The answer is I.", "ABCDEFGHIJ", "I"),
        ("The correct answer is A because it is closed.", "ABCD", "A"),
        ("The answer is A", "ABCD", "A"),
        ("the answer is: **A**", "ABCD", "A"),
        ("A man walks; it is a cat", "ABCD", None),
        ("A is right", "ABCD", "A"),
        ("A) a closed path", "ABCD", "A"),
        ("Option B fails, and so the answer is (C)", "ABCD", "C"),
        ("Answer: A. No, on reflection, Answer: C", "ABCD", "C"),
        ("$\\boxed{B}$", "ABCD", "B"),
        ("\\boxed{\\text{B}}", "ABCD", "B"),
        ("My answer is a guess: D", "ABCD", "D"),
        ("The answer is a circle, so B", "ABCDE", "B"),
        ("The answer is E", "ABCD", None),
        ("It's C.", "ABCD", "C"),
    ],
)
def test_the_letter_that_stands_for_an_answer(output: str, letters: str, letter: str | None) -> None:
    assert standing_letter(output, letters) == letter


def test_scores_are_means_over_tasks_and_count_what_is_missing(two_tasks: Path) -> None:
    questions = load_suite("bbh", two_tasks)
    outputs = {one.id: "B" for one in questions if one.task == "navigate"}
    outputs |= {one.id: "no idea" for one in questions if one.task == "snarks" and one.number < 10}
    scored = score("bbh", questions, outputs)
    navigate, snarks = scored.tasks
    assert (navigate.accuracy, navigate.unparsed) == (1.0, 0)
    assert (snarks.answered, snarks.right, snarks.unparsed, snarks.accuracy) == (10, 0, 10, 0.0)
    assert scored.mean == 0.5, "each task counts alike"
    assert not scored.whole
    assert len(scored.missing) == 21


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"id": "bbh/navigate/0", "output": "A"}', "{"], "outputs.jsonl:2: not {"),
        (['{"id": "bbh/navigate/0"}'], "outputs.jsonl:1: not {"),
        (['{"id": 3, "output": "A"}'], "outputs.jsonl:1: id and output must be texts"),
        (['{"id": "bbh/navigate/0", "output": "A"}'] * 2, "outputs.jsonl:2: duplicate id bbh/navigate/0"),
        (['{"id": "bbh/navigate/999", "output": "A"}'], "1 ids are not among bbh's questions here"),
    ],
)
def test_outputs_that_cannot_be_used(two_tasks: Path, tmp_path: Path, lines: list[str], said: str) -> None:
    (tmp_path / "outputs.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        score("bbh", load_suite("bbh", two_tasks), read_outputs(tmp_path / "outputs.jsonl"))
    assert said in str(caught.value)


def test_a_file_that_is_not_whole(two_tasks: Path) -> None:
    whole = json.loads((two_tasks / "snarks.json").read_text())
    (two_tasks / "snarks.json").write_text(json.dumps({"examples": whole["examples"][:-1]}))
    with pytest.raises(DataError, match=r"snarks\.json: 177 questions, but snarks has 178"):
        load_suite("bbh", two_tasks)
    with pytest.raises(DataError, match="it has no file of agieval"):
        load_suite("agieval", two_tasks)


def test_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "snarks.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"snarks\.json: unexpected format: KeyError: 'examples'"):
        load_suite("bbh", tmp_path)
    bbh_file(tmp_path, "snarks", [{"input": "Which?", "answer": "(A)"}])
    with pytest.raises(DataError, match=r"snarks\.json: question 0: unexpected format"):
        load_suite("bbh", tmp_path)
    (tmp_path / "sat-en.jsonl").write_text('{"passage": null, "question": "Which?", "options": null, "label": "A"}\n')
    with pytest.raises(DataError, match=r"sat-en\.jsonl:1: unexpected format"):
        load_suite("agieval", tmp_path)


def test_on_the_command_line(two_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs.jsonl"
    outputs.write_text('{"id": "bbh/navigate/0", "output": "B"}\n')
    arguments = ["eval", "score", "--suite", "bbh", "--data", str(two_tasks), "--outputs", str(outputs)]
    assert guarded(lambda: app([*arguments, "--json"], standalone_mode=False)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == 1.0
    assert found["paper"]["Lion-7B"] == 32.0
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    told = capsys.readouterr().out
    assert "mean over tasks" in told
    assert "Lion-7B (paper)" in told
    assert "only a part of the suite was answered" in told


@pytest.mark.parametrize(("suite", "tasks", "questions"), [("bbh", 21, 5011), ("agieval", 6, 1816)])
def test_the_real_files(suite: str, tasks: int, questions: int) -> None:
    folder = SHARED / suite
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    found = load_suite(suite, folder)
    assert len({one.task for one in found}) == tasks
    assert len(found) == questions
    assert {one.task for one in found} <= set(SUITES[suite])
    right = score(suite, found, {one.id: f"({one.answer})" for one in found}, "standing")
    assert right.mean == 1.0
    assert len({one.id for one in found}) == len(found)
