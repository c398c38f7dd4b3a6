"""How services say that a text ended, and what becomes of one that did not end well."""

from __future__ import annotations

import pytest

from lion_ray.core.finish_reason import Ending, ending
from lion_ray.discrimination.pairwise import read_scores
from lion_ray.gateway.calls import REFUSED, Completion, refusal
from lion_ray.generation.sampling import CUT_OFF, FILTERED, UNFINISHED, filter_candidate


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (Ending.COMPLETE, "stop STOP end_turn stop_sequence eos_token eos COMPLETE eosFound FinishReason.STOP <|eot|>"),
        (Ending.CUT, "length LENGTH max_tokens MAX_TOKENS model_length model_context_window_exceeded maxTokens"),
        (Ending.CUT, "maxPredictedTokensReached contextLengthReached token_limit not_finished max_new_tokens"),
        (Ending.CUT, "FinishReason.MAX_TOKENS length_capped max_output_tokens truncated repetition"),
        (Ending.FILTERED, "content_filter SAFETY RECITATION content_filtered guardrail_intervened refusal sensitive"),
        (Ending.FILTERED, "content_filter:PROHIBITED_CONTENT PROHIBITED_CONTENT blocked ERROR_TOXIC content_policy"),
        (Ending.TOOL, "tool_calls function_call tool_use toolCalls UNEXPECTED_TOOL_CALL"),
        (Ending.FAILED, "error network_error insufficient_system_resource abort TIMEOUT cancelled modelUnloaded"),
        (Ending.FAILED, "malformed_model_output upstream_error internal_server_error"),
        (Ending.UNKNOWN, "unknown other null FINISH_REASON_UNSPECIFIED whatever 0 结束 unstoppable stopgap"),
    ],
)
def test_names(expected: Ending, names: str) -> None:
    assert {name: ending(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


@pytest.mark.parametrize("reason", [None, "", "  ", ":", "\x00", "\ud83e", "x" * 100_000])
def test_what_is_no_name_is_not_complete(reason: str | None) -> None:
    assert ending(reason) is Ending.UNKNOWN


def test_the_canonical_names_mean_themselves() -> None:
    assert [ending(one.value) for one in Ending] == list(Ending)


CANDIDATE = "Name the longest river that flows through the city"


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("end_turn", None),
        ("MAX_TOKENS", CUT_OFF),
        ("SAFETY", FILTERED),
        ("tool_use", UNFINISHED),
        ("network_error", UNFINISHED),
        ("novel_reason", UNFINISHED),
    ],
)
def test_only_a_whole_text_becomes_an_instruction(reason: str, why: str | None) -> None:
    assert filter_candidate(CANDIDATE, reason, min_words=4) == why


def completion(text: str, reason: str) -> Completion:
    return Completion("k" * 64, text, reason, "m", "e", 1, 1)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "SAFETY", "novel_reason"])
def test_a_verdict_that_may_have_lost_its_last_digit_is_none(reason: str) -> None:
    text = "Score of the Assistant 1: 8\nScore of the Assistant 2: 1"
    assert isinstance(read_scores(completion(text, reason), ()), str)
    assert read_scores(completion(text, "end_turn"), ()) == (8, 1)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("stop", None),
        ("MAX_TOKENS", None),
        ("novel_reason", None),
        (REFUSED, "refused by the model"),
        ("PROHIBITED_CONTENT", "withheld by the endpoint's content filter"),
        ("tool_use", "a tool call instead of an answer"),
        ("abort", "broken off by the endpoint"),
    ],
)
def test_what_is_no_answer_at_all(reason: str, told: str | None) -> None:
    assert refusal(completion("The Loire.", reason)) == told
