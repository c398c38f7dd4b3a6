"""Weighted scores from made-up log-probabilities: what is weighed, and what is left alone."""

from __future__ import annotations

import math

import pytest

from lion_ray.discrimination.logprob_scores import Token, weighted_pair
from lion_ray.discrimination.scores import parse_scores
from lion_ray.prompts.messages import BUILTINS, load_template


def token(offset: int, text: str, **chances: float) -> Token:
    """A token; `chances` by number, `n9=0.5`, and what is left is another word's."""
    lead = text[: len(text) - len(text.lstrip())]
    others = [(lead + name[1:], math.log(chance)) for name, chance in chances.items()]
    rest = 1 - sum(chances.values())
    return offset, text, [*others, *([("so", math.log(rest))] if rest > 1e-9 else [])]


def weighted(text: str, *tokens: Token) -> tuple[float, float] | None:
    pair = parse_scores(text)
    assert pair is not None
    return weighted_pair(text, tokens, pair)


EIGHT = {"n8": 0.5, "n9": 0.25, "n7": 0.125, "n10": 0.0625}
"""Numbers have 15/16 of it: (8 * 8 + 9 * 4 + 7 * 2 + 10) / 15."""


def test_a_score_is_the_mean_over_the_numbers_that_might_have_stood_there() -> None:
    assert weighted("8 3", token(0, "8", **EIGHT), token(1, " 3", n3=0.75, n4=0.25)) == pytest.approx((124 / 15, 3.25))


@pytest.mark.parametrize(
    "text",
    [
        '{"assistant_1": 8, "assistant_2": 3}',
        '{"explanation": "The 1st names 10 rivers, the 2nd 9.", "assistant_1": 8, "assistant_2": 3}',
        '{"explanation": "It says \\"assistant_1\\": 9", "assistant_1": 8, "assistant_2": 3}',
        "The first names 9 rivers.\nScore of the Assistant 1: 8\nScore of the Assistant 2: 3",
    ],
)
def test_every_form_that_a_template_asks_for_has_a_certain_place(text: str) -> None:
    first, second = text.rindex("8"), text.rindex("3")
    decoy = text.find("9")
    tokens = [token(first, "8", **EIGHT), token(second - 1, " 3", n3=0.75, n4=0.25)]
    if decoy >= 0:
        tokens.insert(0, token(decoy, "9", n9=0.5, n2=0.5))
    assert weighted(text, *tokens) == pytest.approx((124 / 15, 3.25))


def test_spaced_alternatives_are_one_number() -> None:
    both = [("8", math.log(0.25)), (" 8", math.log(0.25)), ("6", math.log(0.5)), ("11", math.log(1e-9))]
    found = weighted("8 3", (0, "8", both), token(1, " 3", n3=1.0))
    assert found == pytest.approx((7.0, 3.0))


def test_ten_in_two_tokens_is_weighed_by_both() -> None:
    # "1" has 0.5, and 0.8 of it goes on to "10"; 9 has the other half.
    tokens = [token(0, "1", n1=0.5, n9=0.5), (1, "0", [("0", math.log(0.8)), (" ", math.log(0.2))])]
    assert weighted("10 4", *tokens, token(2, " 4", n4=1.0)) == pytest.approx((0.4 * 10 + 0.1 * 1 + 0.5 * 9, 4.0))


def test_ten_as_one_token_is_a_number_like_any_other() -> None:
    assert weighted("10 1", token(0, "10", n10=0.5, n9=0.5), token(2, " 1", n1=0.75, n10=0.25)) == pytest.approx(
        (9.5, 3.25)
    )


def test_a_one_that_may_be_a_tens_beginning_is_not_guessed_at() -> None:
    sure = token(1, " 4", n4=1.0)
    assert weighted("9 4", token(0, "9", n9=0.9, n1=0.1), sure) is None
    assert weighted("1 4", token(0, "1", n1=0.9, n2=0.1), sure) is None
    # Next to nothing: left out.
    assert weighted("9 4", token(0, "9", n9=0.796, n8=0.199, n1=0.005), sure) == pytest.approx((8.8, 4.0))


@pytest.mark.parametrize(
    "text",
    [
        "8.5 3",
        "8/10 3/10",
        "Assistant 1: 8\nAssistant 2: 3",
        "I would give Assistant 1 a score of 8 and Assistant 2 a score of 3.",
        "Score of the Assistant 1: 5\nScore of the Assistant 2: 5\n\nScore of the Assistant 1: 8\n"
        "Score of the Assistant 2: 3",
    ],
)
def test_without_a_certain_place_nothing_is_weighed(text: str) -> None:
    tokens = [token(place, char, **{f"n{char}": 1.0}) for place, char in enumerate(text) if char.isdigit()]
    assert weighted(text, *tokens) is None


def test_what_an_endpoint_does_not_give_is_not_made_up() -> None:
    assert weighted_pair("8 3", None, (8, 3)) is None
    assert weighted("8 3") is None
    assert weighted("8 3", token(0, "8", n8=1.0)) is None, "the second is not there"
    assert weighted("8 3", token(0, "8", n8=0.25), token(1, " 3", n3=1.0)) is None, "it was about to say something else"
    assert weighted_pair("8 3", [token(0, "8", n8=1.0), token(1, " 3", n3=1.0)], (3, 8)) is None, "another reading"


def test_the_forms_are_those_of_the_built_in_templates() -> None:
    asked = {
        name: "\n".join(source for _, source in load_template(name, "referee").messages) for name in BUILTINS["referee"]
    }
    assert "Score of the Assistant 1: ...\nScore of the Assistant 2: ..." in asked["explain"]
    assert all('"assistant_1"' in text for text in asked.values())
    assert "one line: the grade of Assistant 1, a space, the grade of Assistant 2" in asked["scores"]
