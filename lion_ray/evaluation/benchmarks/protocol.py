"""BBH and AGIEval as the paper asks them: zero-shot, multiple choice, one letter as the answer.

Invariants:
- A question's id is ``suite/task/number``, the number its place in its file, from 0; ids are what answers go by.
- Every question has lettered options and one letter that is right. Where a task's answers are words, they are lettered
  in the order in which the task names them.
- A suite is whole or it is not: how many questions each task has is known and checked, and what is missing is said.

Sources: the paper, section 5.1 and appendix; BIG-Bench Hard (arXiv 2210.09261); AGIEval (arXiv 2304.06364). The
questions are not shipped: see `FILES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import orjson

from lion_ray.core.errors import DataError
from lion_ray.core.thoughts import without_thoughts

YES_NO = ("Yes", "No")
WORDS: dict[str, tuple[str, ...]] = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": YES_NO,
    "formal_fallacies": ("valid", "invalid"),
    "navigate": YES_NO,
    "sports_understanding": ("yes", "no"),
    "web_of_lies": YES_NO,
}
"""The answers of BBH's tasks whose targets are not letters."""
BBH: dict[str, int] = dict.fromkeys(
    (
        "boolean_expressions",
        "date_understanding",
        "disambiguation_qa",
        "formal_fallacies",
        "geometric_shapes",
        "hyperbaton",
        "logical_deduction_five_objects",
        "logical_deduction_seven_objects",
        "logical_deduction_three_objects",
        "movie_recommendation",
        "navigate",
        "reasoning_about_colored_objects",
        "ruin_names",
        "salient_translation_error_detection",
        "sports_understanding",
        "temporal_sequences",
        "tracking_shuffled_objects_five_objects",
        "tracking_shuffled_objects_seven_objects",
        "tracking_shuffled_objects_three_objects",
        "web_of_lies",
    ),
    250,
) | {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}
"""Questions by task: 23 tasks, 5,511 questions; the four that have no choices to letter are left out, as published."""
AGIEVAL: dict[str, int] = {
    "aqua-rat": 254,
    "logiqa-en": 651,
    "lsat-ar": 230,
    "lsat-lr": 510,
    "lsat-rc": 269,
    "sat-en": 206,
    "sat-en-without-passage": 206,
    "sat-math": 220,
}
"""Questions by set: the 8 English multiple-choice sets, 2,546 questions."""
SUITES: dict[str, dict[str, int]] = {"bbh": BBH, "agieval": AGIEVAL}
FILES = {
    "bbh": "bbh/*.json of github.com/suzgunmirac/BIG-Bench-Hard",
    "agieval": "data/v1/*.jsonl of github.com/ruixiangcui/AGIEval",
}
"""Where a suite's questions are to be had."""
PAPER: dict[str, dict[str, float]] = {
    "agieval": {"ChatGPT": 47.2, "Vicuna-7B": 22.6, "Lion-7B": 26.3, "Vicuna-13B": 29.3, "Lion-13B": 34.2},
    "bbh": {"ChatGPT": 48.9, "Vicuna-7B": 21.9, "Lion-7B": 32.0, "Vicuna-13B": 23.3, "Lion-13B": 36.2},
}
"""What the paper reports: unweighted means over the tasks, per cent."""

_OPTION = re.compile(r"^(?:\([A-Z]\)|[A-Z][.)]?\s)\s*")
_PUBLISHED = re.compile(r"[A-F]")
_ANNOUNCED = re.compile(
    r"(?:\b(?:answer|choice|option|solution)\b"
    r"(?: (?:is|would be|must be|should be|choice|option|letter|here)| to [^.\n]{0,60} is)*"
    r" ?[:=]?|\b(?:choose|chose|pick|select|go with)\b|\\boxed) ?(?:option |choice |letter )?[\"'*_`({\[$]*"
    r"(?:\\text ?\{)?\(?(?P<letter>[A-Z])(?![A-Za-z'’])",
    re.IGNORECASE,
)
_MARKED = re.compile(r"[(\[]([A-Z])[)\]]|(?:^|(?<=\s))\*{0,2}([A-Z])(?:[.):]|\*\*)(?=\s|$)")
_ALONE = re.compile(r"(?<![A-Za-z'’])([A-Z])(?![A-Za-z'’])")
_JOINS = frozenset({"because", "since", "as", "is", "and", "or", "but", "seems", "was", "would", "matches", "fits"})
_AFTER_ANSWER = _JOINS | {"for", "due", "which", "in", "from", "with", "by", "on", "the", "given", "based"}
"""Words that may follow an answer A, where an article would have a noun."""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question."""

    suite: str
    task: str
    number: int
    text: str
    """The question, without its options."""
    options: tuple[str, ...]
    """What the letters from A on stand for."""
    answer: str
    """The letter that is right."""
    passage: str = ""

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.task}/{self.number}"

    @property
    def letters(self) -> str:
        """The letters there are to choose from."""
        return ascii_uppercase[: len(self.options)]

    def prompt(self) -> str:
        """The paper's zero-shot prompt."""
        options = " ".join(f"({letter}) {text}" for letter, text in zip(self.letters, self.options, strict=True))
        passage = f"{self.passage} " if self.passage else ""
        among = f"Among A through {self.letters[-1]}, the answer is"
        return f"{passage}Q: {self.text} Answer Choices: {options} A: {among}"


def published_letter(output: str) -> str | None:
    """The answer as the paper takes it: the first of the characters A to F, wherever it stands but in thoughts."""
    found = _PUBLISHED.search(without_thoughts(output))
    return found[0] if found else None


def standing_letter(output: str, letters: str) -> str | None:
    """Which of `letters` an output answers with; None where it names none.

    An announced letter goes first: "the answer is B", "Answer: (B)", "\\\\boxed{B}"; of several the last, as whoever
    reasons ends with it. Then a letter in brackets or with a mark behind it: ``(B)``, ``B.``, ``B)``; then one that
    stands alone, but the B of ``Because``, the article A and the word I. What the model thought does not count.
    """
    output = without_thoughts(output)
    announced = [found for found in _ANNOUNCED.finditer(output) if found["letter"] in letters]
    announced = [found for found in announced if not _is_word(output, found.start("letter"), announced=True)]
    if announced:
        return announced[-1]["letter"]
    for pattern in (_MARKED, _ALONE):
        for found in pattern.finditer(output):
            letter = next(group for group in found.groups() if group)
            if letter in letters and not _is_word(output, found.start(found.lastindex or 1)):
                return letter
    return None


def _is_word(output: str, place: int, *, announced: bool = False) -> bool:
    """Whether the letter there is a word of the sentence: the article A, or I."""
    if output[place] == "A":
        # "A because it is" is an answer, and "A man walks" is not.
        word = re.match(r"A ([a-z]+)", output[place:])
        return word is not None and not (announced and word[1] in _AFTER_ANSWER) and word[1] not in _JOINS
    if output[place] == "I":
        bracketed = output[place - 1 : place] in ("(", "[", "{")
        return not bracketed and re.match(r"I[ \t]+[a-z]|I['’]|I,? (?:am|think|would|do)", output[place:]) is not None
    return False


def load_suite(suite: str, folder: Path) -> list[Question]:
    """The questions of a suite, as far as its files are in `folder`, task by task.

    Raises:
        DataError: there is none, or a file does not hold what it should; with the file and the row.
    """
    questions: list[Question] = []
    for task, count in SUITES[suite].items():
        path = folder / (f"{task}.json" if suite == "bbh" else f"{task}.jsonl")
        if not path.is_file():
            continue
        found = list(_bbh(task, path) if suite == "bbh" else _agieval(task, path))
        check_count(path, task, len(found), count)
        questions += found
    if not questions:
        raise DataError(f"{folder}: none of {suite}'s files is there; it takes {FILES[suite]}")
    return questions


def missing_tasks(suite: str, questions: Iterable[Question]) -> list[str]:
    """The tasks of the suite that none of these questions is of."""
    there = {question.task for question in questions}
    return [task for task in SUITES[suite] if task not in there]


def check_count(where: object, task: str, found: int, count: int) -> None:
    """Raises DataError where a task has not as many questions as it must have."""
    if found != count:
        raise DataError(f"{where}: {found} questions, and {task} has {count}; is the file whole?")


def bbh_question(task: str, number: int, asked: str, target: str, where: object) -> Question:
    """A question of BBH from its `input` and its `target`; raises DataError where the target is none of the options."""
    text, _, listed = asked.partition("\nOptions:\n")
    if task in WORDS:
        return _question("bbh", task, number, text, WORDS[task], target, where)
    options = tuple(strip_letter(line) for line in listed.strip().split("\n"))
    return _question("bbh", task, number, text, options, target.strip("()"), where)


def strip_letter(option: str) -> str:
    """An option without the letter before it."""
    return _OPTION.sub("", option, count=1)


def _bbh(task: str, path: Path) -> Iterator[Question]:
    with _row_of(f"{path}"):
        rows = _json(path, path.read_bytes())["examples"]
    for number, row in enumerate(rows):
        with _row_of(f"{path}: question {number}"):
            yield bbh_question(task, number, row["input"], row["target"], path)


def _agieval(task: str, path: Path) -> Iterator[Question]:
    for number, line in enumerate(path.read_bytes().splitlines()):
        row = _json(path, line, number + 1)
        with _row_of(f"{path}:{number + 1}"):
            options = tuple(strip_letter(option) for option in row["options"])
            passage = row["passage"] or ""
            yield _question("agieval", task, number, row["question"], options, row["label"], path, passage)


@contextmanager
def _row_of(where: str) -> Iterator[None]:
    """What is not in a row is told with its place."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not the form that was expected: {type(error).__name__}: {error}") from None


def _question(
    suite: str,
    task: str,
    number: int,
    text: str,
    options: tuple[str, ...],
    answer: str,
    where: object,
    passage: str = "",
) -> Question:
    letters = ascii_uppercase[: len(options)]
    if answer not in letters or len(answer) != 1:
        # A word; or an option that was itself cut at its comma ("Monsters, Inc" in movie_recommendation).
        for place in range(len(options) - 1):
            if ", ".join(options[place : place + 2]) == answer:
                options = (*options[:place], answer, *options[place + 2 :])
                break
        places = [place for place, option in enumerate(options) if option == answer]
        if len(places) != 1:
            raise DataError(f"{where}: question {number}: the target '{answer}' is none of {len(options)} options")
        answer = letters[places[0]]
    return Question(suite, task, number, text.strip(), options, answer, passage.strip())


def _json(path: Path, data: bytes, line: int | None = None) -> Any:
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise DataError(f"{path}{'' if line is None else f':{line}'}: not JSON: {error}") from None
