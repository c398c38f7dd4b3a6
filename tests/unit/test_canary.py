"""What counts as the same weights."""

from __future__ import annotations

from dataclasses import replace

from lion_ray.inference.weight_check import Greedy, compare

TRAINED = Greedy((1, 2), (10, 11, 12), (-0.5, -0.25, -1.0), (3.0, 2.0, 4.0))


def test_the_same_tokens_with_the_same_probabilities_agree() -> None:
    agreement = compare([TRAINED], [replace(TRAINED, margins=())], "float32")
    assert agreement.ok
    assert agreement.compared == 3


def test_another_token_is_another_model() -> None:
    other = replace(TRAINED, tokens=(10, 99, 12))
    agreement = compare([TRAINED], [other], "float32")
    assert not agreement.ok
    assert "prompt 0, token 1: 99 where the trainer has 11" in agreement.detail


def test_after_a_near_tie_nothing_is_compared() -> None:
    tied = replace(TRAINED, margins=(3.0, 0.001, 4.0))
    other = replace(TRAINED, tokens=(10, 99, 98), logprobs=(-0.5, -7.0, -7.0))
    agreement = compare([tied], [other], "float32")
    assert agreement.ok
    assert agreement.compared == 1


def test_yesterdays_weights_are_noticed_by_their_probabilities() -> None:
    stale = replace(TRAINED, logprobs=tuple(value - 0.08 for value in TRAINED.logprobs))
    assert not compare([TRAINED], [stale], "float32").ok
    assert compare([TRAINED], [stale], "bfloat16").ok, "bfloat16 cannot tell so small a difference"


def test_an_answer_cut_short_is_no_agreement() -> None:
    assert not compare([TRAINED], [replace(TRAINED, tokens=(10,), logprobs=(-0.5,))], "float32").ok


def test_nothing_compared_proves_nothing() -> None:
    tied = replace(TRAINED, margins=(0.0, 0.0, 0.0))
    assert not compare([tied], [replace(TRAINED, tokens=(1, 2, 3))], "float32").ok


def test_tolerances_can_be_given() -> None:
    stale = replace(TRAINED, logprobs=tuple(value - 0.08 for value in TRAINED.logprobs))
    assert compare([TRAINED], [stale], "float32", tolerance=0.1).ok
    refused = compare([TRAINED], [stale], "bfloat16", tolerance=0.01)
    assert not refused.ok
    assert refused.detail.endswith("and 0.01 on average is allowed")
    other = replace(TRAINED, tokens=(10, 99, 12))
    assert compare([TRAINED], [other], "float32", tie=2.5).ok, "the trainer's lead there is 2"
