"""Letters from log-probabilities, outputs that score alike, intervals, and rows as hubs have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lion_ray.core.errors import DataError
from lion_ray.evaluation.benchmarks.hub import load_from_hub
from lion_ray.evaluation.benchmarks.protocol import AGIEVAL, BBH, Question
from lion_ray.evaluation.benchmarks.recorded import SuiteScore, TaskScore
from lion_ray.evaluation.benchmarks.run import likeliest_letter, written
from lion_ray.gateway.calls import Completion, Failure, Outcome, TokenChoice

QUESTION = Question("bbh", "snarks", 0, "Which?", ("one", "two", "three"), "B")


def completion(text: str, *alternatives: tuple[str, float], offset: int = 0) -> Completion:
    choices = (TokenChoice(offset, text, tuple(alternatives)),) if alternatives else None
    return Completion("k", text, "length", "m", "e", 9, 1, logprobs=choices)


@pytest.mark.parametrize(
    ("alternatives", "letter"),
    [
        ([("A", -0.5), ("B", -1.0)], "A"),
        # Three spellings of one letter are together likelier than the likeliest token.
        ([("A", math.log(0.4)), ("B", math.log(0.2)), (" B", math.log(0.2)), ("(B", math.log(0.1))], "B"),
        ([("The", -0.1), (" C", -4.0)], "C"),
        ([("E", -0.1), ("C)", -4.0)], "C"),  # E is none of the options
        ([("b", -0.1), ("Be", -0.2), ("AB", -0.3)], None),
        ([("B", -math.inf), ("A", -9.0)], "A"),
        ([("B", -1.0), ("A", -1.0)], "A"),
    ],
)
def test_the_likeliest_letter(alternatives: list[tuple[str, float]], letter: str | None) -> None:
    assert likeliest_letter(completion("x", *alternatives), "ABC") == letter


def test_only_the_first_token_answers() -> None:
    assert likeliest_letter(completion("x", ("A", -0.1), offset=7), "ABC") is None
    assert likeliest_letter(completion("A"), "ABC") is None, "no log-probabilities"


def test_what_counts_as_output() -> None:
    outcomes: list[Outcome] = [
        completion("B it is", ("A", -0.1)),
        Failure("k", "timed out", ""),
        completion("x", ("y", -0.1)),
    ]
    questions = [Question("bbh", "snarks", number, "Which?", ("one", "two"), "A") for number in range(3)]
    assert written(questions, outcomes, "published") == {"bbh/snarks/0": "B it is", "bbh/snarks/2": "x"}
    assert written(questions, outcomes, "logprobs") == {"bbh/snarks/0": "(A)", "bbh/snarks/2": ""}


def test_the_interval_of_a_suite() -> None:
    sure = TaskScore("snarks", 10, 10, 10, 0)
    torn = TaskScore("navigate", 100, 100, 50, 0)
    unasked = TaskScore("hyperbaton", 250, 0, 0, 0)
    assert SuiteScore("bbh", "published", (sure,), ()).interval() == (1.0, 1.0)
    assert SuiteScore("bbh", "published", (unasked,), ()).interval() is None
    interval = SuiteScore("bbh", "published", (sure, torn, unasked), ()).interval()
    assert interval is not None
    # The mean of 1 and of 0.5 ± 0.1: half of a binomial's 95 %.
    assert interval == pytest.approx((0.70, 0.80), abs=0.01)


def hub(changed: Callable[[str, list[dict[str, Any]]], None] = lambda *_: None) -> Callable[..., list[dict[str, Any]]]:
    """Made-up rows in the form of the hub's."""

    def fetch(repository: str, name: str | None) -> list[dict[str, Any]]:
        if repository == "SaylorTwift/bbh":
            assert name is not None
            target = {"boolean_expressions": "True", "formal_fallacies": "valid", "sports_understanding": "yes"}
            words = target.get(name, "Yes" if name in ("causal_judgement", "navigate", "web_of_lies") else None)
            row: dict[str, Any] = {"input": "Which?\nOptions:\n(A) this\n(B) that", "target": words or "(B)"}
            rows = [row] * BBH[name]
        else:
            assert name is None
            task = repository.removeprefix("hails/agieval-")
            query = "A story. Q: Which is it? Answer Choices: (A)this (B)that A: Among A through B, the answer is"
            row = {"query": query, "choices": ["(A)this", "(B)that"], "gold": [1]}
            rows = [row] * AGIEVAL[task]
        rows = list(rows)
        changed(repository, rows)
        return rows

    return fetch


def test_suites_from_a_hub() -> None:
    bbh = load_from_hub("bbh", hub())
    assert len(bbh) == 5511
    assert next(one for one in bbh if one.task == "snarks").options == ("this", "that")
    assert next(one for one in bbh if one.task == "formal_fallacies").answer == "A"
    agieval = load_from_hub("agieval", hub())
    assert len(agieval) == 2546
    assert agieval[0] == Question("agieval", "aqua-rat", 0, "Which is it?", ("this", "that"), "B", "A story.")
    assert agieval[0].prompt() == (
        "A story. Q: Which is it? Answer Choices: (A) this (B) that A: Among A through B, the answer is"
    )


def test_a_hub_with_other_rows() -> None:
    def fewer(repository: str, rows: list[dict[str, Any]]) -> None:
        rows.pop()

    def other(repository: str, rows: list[dict[str, Any]]) -> None:
        rows[3] = {"question": "Which?"}

    def several(repository: str, rows: list[dict[str, Any]]) -> None:
        rows[3] = rows[3] | {"gold": [0, 1]}

    with pytest.raises(DataError, match="SaylorTwift/bbh: 249 questions, but boolean_expressions has 250"):
        load_from_hub("bbh", hub(fewer))
    with pytest.raises(DataError, match="SaylorTwift/bbh, boolean_expressions, row 3: unexpected format"):
        load_from_hub("bbh", hub(other))
    with pytest.raises(DataError, match="hails/agieval-aqua-rat, aqua-rat, row 3: unexpected format"):
        load_from_hub("agieval", hub(several))
