"""What is settled on, whatever an endpoint says that a call took: never below a reading that agrees with it."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from lion_ray.gateway.usage import LONGEST_TOKEN_BYTES, MOST_TOKENS, Bounds, Settled, Usage, bounds, read_usage

ASKED = bounds(100, 1, 200)
WORST = (116, 200)


def taken(usage: Any, text_bytes: int = 20) -> tuple[int, int]:
    """Prompt and completion tokens of a call that allowed `ASKED`."""
    settled = read_usage(usage).settled(ASKED, ASKED, text_bytes)
    return settled.prompt, settled.completion


def said(prompt: Any = 30, completion: Any = 50, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


@pytest.mark.parametrize(
    ("usage", "right"),
    [
        (said(), (30, 50)),
        (said(total_tokens=80), (30, 50)),
        (said(30.0, 50.0), (30, 50)),
        (said(30, 49.2), (30, 50)),
        (said("30", " 50 "), (30, 50)),
        ({"input_tokens": 30, "output_tokens": 50}, (30, 50)),
        (said(30, 10, input_tokens=12, output_tokens=50), (30, 50)),
        (
            {"input_tokens": 3, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 7, "output_tokens": 5},
            (30, 5),
        ),
    ],
)
def test_honest_counts(usage: Any, right: tuple[int, int]) -> None:
    assert taken(usage) == right


@pytest.mark.parametrize("usage", [None, [], "many", 3, {}, {"prompt_tokens": None, "completion_tokens": None}])
def test_no_counts_are_the_reservation(usage: Any) -> None:
    assert taken(usage) == WORST


ABSURD: list[Any] = [
    None,
    -1,
    -100,
    -0.5,
    10**30,
    MOST_TOKENS + 1,
    2**63,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "ten",
    "-5",
    True,
]
ABSURD += ["1e9", "1" * 400, [], [50], {}, {"tokens": 5}]


@pytest.mark.parametrize("odd", ABSURD, ids=repr)
def test_a_count_that_is_missing_or_absurd_is_at_its_worst_by_itself(odd: Any) -> None:
    assert taken(said(completion=odd)) == (30, 200)
    assert taken(said(prompt=odd)) == (116, 50)
    assert taken(said(odd, odd, total_tokens=odd)) == WORST
    assert taken(said(total_tokens=odd)) == (30, 50)
    assert taken(said(completion_tokens_details={"reasoning_tokens": odd})) == (30, 50)
    assert taken(said(prompt_tokens_details={"cached_tokens": odd})) == (30, 50)


def test_no_tokens_for_a_prompt_or_a_text_that_is_there() -> None:
    assert taken(said(0, 0)) == WORST
    assert taken(said(0, 50)) == (116, 50)
    assert taken(said(30, 0), text_bytes=0) == (30, 0)
    long = bounds(LONGEST_TOKEN_BYTES * 10, 1, 200)
    assert read_usage(said(9, 50)).settled(long, long, 20).prompt == long.prompt
    assert taken(said(30, 9), text_bytes=LONGEST_TOKEN_BYTES * 10) == (30, 200)


@pytest.mark.parametrize(
    ("usage", "right"),
    [
        # Within the completion, as OpenAI has it: the total says so.
        (said(30, 50, total_tokens=80, completion_tokens_details={"reasoning_tokens": 40}), (30, 50)),
        # Beside it.
        (said(30, 50, total_tokens=2080, completion_tokens_details={"reasoning_tokens": 2000}), (30, 2050)),
        (said(30, 50, total_tokens=80, completion_tokens_details={"reasoning_tokens": 2000}), (30, 2050)),
        (said(30, 50, total_tokens=80, reasoning_tokens=2000), (30, 2050)),
        (said(30, 50, total_tokens=2080), (30, 2050)),
        ({"input_tokens": 30, "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 90}}, (30, 140)),
        # Nobody says which.
        (said(30, 50, completion_tokens_details={"reasoning_tokens": 40}), (30, 90)),
        ({"prompt_tokens": 30, "total_tokens": 80}, (30, 200)),
        ({"prompt_tokens": 30, "total_tokens": 980}, (30, 950)),
        ({"completion_tokens": 50, "total_tokens": 80}, (116, 50)),
        ({"completion_tokens": 50, "total_tokens": 980}, (116, 980)),
        ({"total_tokens": 130}, WORST),
        ({"total_tokens": 32_130}, (116, 32_130)),
        (said(30, 50, total_tokens=40), (30, 50)),
    ],
)
def test_hidden_tokens_are_read_at_their_dearest(usage: Any, right: tuple[int, int]) -> None:
    assert taken(usage) == right


def test_only_a_cache_that_can_be_is_cheaper() -> None:
    for field in ("prompt_tokens_details", "input_tokens_details"):
        assert read_usage(said(**{field: {"cached_tokens": 20}})).settled(ASKED, ASKED).cached == 20
    assert read_usage(said(prompt_cache_hit_tokens=20)).settled(ASKED, ASKED).cached == 20
    assert read_usage(said(prompt_tokens_details={"cached_tokens": 10**6})).settled(ASKED, ASKED).cached == 0
    assert read_usage({"prompt_tokens_details": {"cached_tokens": 20}}).settled(ASKED, ASKED).cached == 0


def test_what_was_reserved_is_what_a_missing_count_costs() -> None:
    assert Usage(prompt=30).settled(ASKED, Bounds(116, 32_000)) == Settled(30, 0, 32_000)


@pytest.mark.parametrize("seed", range(200))
def test_nothing_that_is_said_gives_counts_out_of_bounds(seed: int) -> None:
    rng = random.Random(seed)
    fields = ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens", "input_tokens", "output_tokens")
    values = [*ABSURD, 0, 1, 30, 50, 200, 5000, MOST_TOKENS, 12.5, "77"]
    usage: dict[str, Any] = {name: rng.choice(values) for name in fields if rng.random() < 0.6}
    usage["completion_tokens_details"] = rng.choice([*values, {"reasoning_tokens": rng.choice(values)}])
    usage["prompt_tokens_details"] = rng.choice([*values, {"cached_tokens": rng.choice(values)}])
    settled = read_usage(usage).settled(ASKED, ASKED, 20)
    assert all(type(count) is int and 0 <= count <= 4 * MOST_TOKENS for count in settled)
    assert settled.cached <= settled.prompt
    json.dumps(settled)
    # A count of tokens that can be meant is never settled below.
    for name, got in (("prompt_tokens", settled.prompt), ("completion_tokens", settled.completion)):
        if type(told := usage.get(name)) is int and 0 < told <= MOST_TOKENS:
            assert got >= told
    for one, other in itertools.pairwise(("total_tokens", "prompt_tokens")):
        if {type(usage.get(one)), type(usage.get(other))} == {int} and 0 < usage[other] <= usage[one] <= MOST_TOKENS:
            assert settled.prompt + settled.completion >= usage[one]
