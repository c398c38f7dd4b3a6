"""A call's key names what is bought, and nothing else: a changed key would buy every answer again."""

from __future__ import annotations

import pickle
from dataclasses import replace

import orjson
import pytest

from lion_ray.gateway.calls import ONLY_THOUGHTS, Call, Completion, Failure, answer_text, refusal
from lion_ray.gateway.reply import parse_reply

CALL = Call(
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "狮子?"}),
    max_tokens=32,
    temperature=0.7,
)


def test_the_key_of_a_known_call_never_changes() -> None:
    # Journals outlive versions of this code.
    assert CALL.key("gpt-x") == "4c0aa892e29e7b6ea1bf050b23adcbe4a24980c624c16e5c3d5f866808b36021"


def test_who_asks_is_not_part_of_the_key() -> None:
    assert replace(CALL, role="referee").key("m") == CALL.key("m")


def test_the_order_of_a_messages_fields_is_not_part_of_the_key() -> None:
    turned = tuple(dict(reversed(message.items())) for message in CALL.messages)
    assert replace(CALL, messages=turned).key("m") == CALL.key("m")


def test_all_else_is() -> None:
    keys = [
        call.key("m")
        for call in (
            CALL,
            replace(CALL, messages=CALL.messages[::-1]),
            replace(CALL, messages=CALL.messages[1:]),
            replace(CALL, max_tokens=33),
            replace(CALL, temperature=0.8),
            replace(CALL, top_p=0.9),
            replace(CALL, seed=0),
            replace(CALL, json_schema={"type": "object"}),
            replace(CALL, ordinal=1),
        )
    ]
    keys.append(CALL.key("another model"))
    assert len(set(keys)) == len(keys)


def test_a_body_leaves_out_what_was_not_asked_for() -> None:
    assert CALL.body("m") == {
        "model": "m",
        "messages": list(CALL.messages),
        "max_tokens": 32,
        "temperature": 0.7,
        "top_p": 1.0,
    }


@pytest.mark.parametrize(
    "thing", [CALL, Completion("k", "t", "stop", "m", "default", 1, 2), Failure("k", "timed out", "after 3 s")]
)
def test_they_cross_process_boundaries(thing: object) -> None:
    assert pickle.loads(pickle.dumps(thing)) == thing


def completion(text: str, finish_reason: str = "stop", tokens: int = 9) -> Completion:
    return Completion("k", text, finish_reason, "m", "api", prompt_tokens=3, completion_tokens=tokens)


@pytest.mark.parametrize(
    ("answer", "text", "refused"),
    [
        (completion("The Loire."), "The Loire.", None),
        (completion("<think>\nA river.\n</think>\n\nThe Loire."), "The Loire.", None),
        (completion("A river.\n</think>\n\nThe Loire."), "The Loire.", None),
        (completion("<think>\nA river is wan", "length"), "", ONLY_THOUGHTS),
        (completion("<think>\nA river is wan", "stop"), "", ONLY_THOUGHTS),
        # The thoughts are elsewhere (`reasoning_content`), and took all there was.
        (completion("", "length"), "", ONLY_THOUGHTS),
        (completion("", "stop"), "", "empty answer"),
        (completion("", "length", tokens=0), "", "empty answer"),
    ],
)
def test_thoughts_are_no_answer(answer: Completion, text: str, refused: str | None) -> None:
    assert (answer_text(answer), refusal(answer)) == (text, refused)


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "reasoning_content", "redacted_thinking"])
def test_parts_of_a_message_that_are_thoughts_are_not_its_text(kind: str) -> None:
    parts = [{"type": kind, "text": "A river."}, {"type": "text", "text": "The Loire."}, {"text": " Yes."}]
    body = {"choices": [{"message": {"content": parts, "reasoning_content": "A river."}, "finish_reason": "stop"}]}
    assert parse_reply(orjson.dumps(body)).text == "The Loire. Yes."
