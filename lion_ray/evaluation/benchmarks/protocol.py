"""BBH and AGIEval by the paper's protocol: zero-shot, multiple choice, one letter as the answer.

Invariants:
- A question's id is ``suite/task/number``, where number is its index in its file, from 0. Answers are matched by id.
- Every question has lettered options and one correct letter. If a task's answers are words, they get letters in the
  order in which the task lists them.
- Each task's number of questions is known and checked; missing tasks are reported.

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

from lion_ray.core.errors import DataError, one_line
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
"""The possible answers of the BBH tasks whose targets are not letters."""
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
"""Questions by task: 23 tasks, 5,511 questions; as in the paper, the four tasks without choices are left out."""
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
"""Questions by task: the 8 English multiple-choice tasks, 2,546 questions."""
SUITES: dict[str, dict[str, int]] = {"bbh": BBH, "agieval": AGIEVAL}
FILES = {
    "bbh": "bbh/*.json of github.com/suzgunmirac/BIG-Bench-Hard",
    "agieval": "data/v1/*.jsonl of github.com/ruixiangcui/AGIEval",
}
"""Where to get a suite's questions."""
PAPER: dict[str, dict[str, float]] = {
    "agieval": {"ChatGPT": 47.2, "Vicuna-7B": 22.6, "Lion-7B": 26.3, "Vicuna-13B": 29.3, "Lion-13B": 34.2},
    "bbh": {"ChatGPT": 48.9, "Vicuna-7B": 21.9, "Lion-7B": 32.0, "Vicuna-13B": 23.3, "Lion-13B": 36.2},
}
"""The paper's results: unweighted means over the tasks, in per cent."""

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
"""Words that may follow the answer A; a noun would follow the article."""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question."""

    suite: str
    task: str
    number: int
    text: str
    """The question, without its options."""
    options: tuple[str, ...]
    """The options' texts, in the order of their letters."""
    answer: str
    """The correct letter."""
    passage: str = ""

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.task}/{self.number}"

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return ascii_uppercase[: len(self.options)]

    def prompt(self) -> str:
        """The paper's zero-shot prompt."""
        options = " ".join(f"({letter}) {text}" for letter, text in zip(self.letters, self.options, strict=True))
        passage = f"{self.passage} " if self.passage else ""
        among = f"Among A through {self.letters[-1]}, the answer is"
        return f"{passage}Q: {self.text} Answer Choices: {options} A: {among}"


def published_letter(output: str) -> str | None:
    """The answer by the paper's method: the first character from A to F anywhere in the output, except in reasoning."""
    found = _PUBLISHED.search(without_thoughts(output))
    return found[0] if found else None


def standing_letter(output: str, letters: str) -> str | None:
    """The one of `letters` that an output gives as its answer; None if there is none.

    In order of precedence: the last announced letter ("the answer is B", "Answer: (B)", "\\\\boxed{B}"), because
    reasoning comes before its conclusion; the first letter in brackets or before punctuation (``(B)``, ``B.``,
    ``B)``); the first letter that is a word by itself, except the article A and the pronoun I. Reasoning is ignored.
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
    """Whether the letter at `place` is the article A or the pronoun I."""
    if output[place] == "A":
        # "A because it is" is an answer, and "A man walks" is not.
        word = re.match(r"A ([a-z]+)", output[place:])
        return word is not None and not (announced and word[1] in _AFTER_ANSWER) and word[1] not in _JOINS
    if output[place] == "I":
        bracketed = output[place - 1 : place] in ("(", "[", "{")
        return not bracketed and re.match(r"I[ \t]+[a-z]|I['’]|I,? (?:am|think|would|do)", output[place:]) is not None
    return False


def load_suite(suite: str, folder: Path) -> list[Question]:
    """The questions of a suite's files in `folder`, task by task; files may be missing.

    Raises:
        DataError: there are no files, or one is invalid; with the file and the row.
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
        raise DataError(f"{folder}: it has no file of {suite}; it needs {FILES[suite]}")
    return questions


def missing_tasks(suite: str, questions: Iterable[Question]) -> list[str]:
    """The tasks of the suite without a question."""
    present = {question.task for question in questions}
    return [task for task in SUITES[suite] if task not in present]


def check_count(where: object, task: str, found: int, count: int) -> None:
    """Raises DataError if a task has the wrong number of questions."""
    if found != count:
        raise DataError(f"{where}: {found} questions, but {task} has {count}; is the file complete?")


def bbh_question(task: str, number: int, source: str, target: str, where: object) -> Question:
    """A question of BBH from its `input` and its `target`; raises DataError if the target is not an option."""
    text, _, listed = source.partition("\nOptions:\n")
    if task in WORDS:
        return _question("bbh", task, number, text, WORDS[task], target, where)
    options = tuple(strip_letter(line) for line in listed.strip().split("\n"))
    return _question("bbh", task, number, text, options, target.strip("()"), where)


def strip_letter(option: str) -> str:
    """An option without its leading letter."""
    return _OPTION.sub("", option, count=1)


def _bbh(task: str, path: Path) -> Iterator[Question]:
    with _locating_errors(f"{path}"):
        rows = _json(path, path.read_bytes())["examples"]
    for number, row in enumerate(rows):
        with _locating_errors(f"{path}: question {number}"):
            yield bbh_question(task, number, row["input"], row["target"], path)


def _agieval(task: str, path: Path) -> Iterator[Question]:
    for number, line in enumerate(path.read_bytes().splitlines()):
        row = _json(path, line, number + 1)
        with _locating_errors(f"{path}:{number + 1}"):
            options = tuple(strip_letter(option) for option in row["options"])
            passage = row["passage"] or ""
            yield _question("agieval", task, number, row["question"], options, row["label"], path, passage)


@contextmanager
def _locating_errors(where: str) -> Iterator[None]:
    """Turns a missing or wrong field into a DataError with its location."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: unexpected format: {type(error).__name__}: {one_line(error)}") from None


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
        # A word; or an option that the source split at its comma ("Monsters, Inc" in movie_recommendation).
        for place in range(len(options) - 1):
            if ", ".join(options[place : place + 2]) == answer:
                options = (*options[:place], answer, *options[place + 2 :])
                break
        places = [place for place, option in enumerate(options) if option == answer]
        if len(places) != 1:
            raise DataError(f"{where}: question {number}: the target '{answer}' is not one of {len(options)} options")
        answer = letters[places[0]]
    return Question(suite, task, number, text.strip(), options, answer, passage.strip())


def _json(path: Path, data: bytes, line: int | None = None) -> Any:
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise DataError(f"{path}{'' if line is None else f':{line}'}: not JSON: {one_line(error)}") from None
