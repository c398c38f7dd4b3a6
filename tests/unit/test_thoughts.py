"""Thoughts in a reply, in the marks of many models: what is left is the answer, and nothing else is touched."""

from __future__ import annotations

import pytest

from lion_ray.core.thoughts import only_thoughts, without_thoughts

ANSWER = "The Loire."


@pytest.mark.parametrize(
    "reply",
    [
        "<think>\nA river is wanted.\n</think>\n\nThe Loire.",
        "<think></think>The Loire.",
        "\n<think>\n\n</think>\n\nThe Loire.\n",
        "A river is wanted.\n</think>\n\nThe Loire.",
        "A river is wanted.</think>The Loire.",
        "</think>\n\nThe Loire.",
        "<THINK>a river</THINK>The Loire.",
        "<thinking>a river</thinking>\nThe Loire.",
        "<thought>a river</thought>\nThe Loire.",
        "<reasoning>a river</reasoning>\nThe Loire.",
        "<seed:think>a river</seed:think>The Loire.",
        "[THINK]a river[/THINK]The Loire.",
        "◁think▷a river◁/think▷The Loire.",
        "<|begin_of_thought|>a river<|end_of_thought|>\n<|begin_of_solution|>The Loire.<|end_of_solution|>",
        "<|START_THINKING|>a river<|END_THINKING|><|START_RESPONSE|>The Loire.<|END_RESPONSE|>",
        "<unused94>thought\na river<unused95>The Loire.",
        "<think>a river</think>\n<answer>The Loire.</answer>",
        "<think>The tag <think> opens and </think> closes.</think>\nThe Loire.",
        "<think>I may write <think> here.</think>\nThe Loire.",
        "<think>one</think>\n<think>two</think>\nThe Loire.",
        "<think>The user writes `</think>` in a question.</think>The Loire.",
        "The Loire.\n<think>\nIs it? Yes.\n</think>\n",
        "The Loire.\n<think>\nIs it? I had bett",
        "<|channel|>analysis<|message|>A river.<|end|><|start|>assistant<|channel|>final<|message|>"
        "The Loire.<|return|>",
        "<|start|>assistant<|channel|>analysis<|message|>A river.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>final<|message|>The Loire.",
        "<|channel|>final<|message|>The Loire.",
        "analysisThe user wants a river.assistantfinalThe Loire.",
        "analysisWe need a river. Say so.assistantcommentaryNone.assistantfinalThe Loire.",
        "analysis用户想要一条河。assistantfinalThe Loire.",
    ],
)
def test_the_answer_is_what_is_not_thought(reply: str) -> None:
    assert without_thoughts(reply) == ANSWER
    assert not only_thoughts(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "<think>\nA river is wan",
        "<think>",
        "<think>\nA river.\n</think>\n",
        "[THINK]a river is wan",
        "<|begin_of_thought|>a river",
        "<|channel|>analysis<|message|>A river is wan",
        "<|channel|>analysis<|message|>A river.<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>A river.<|end|><|start|>assistant<|channel|>commentary<|message|>{}<|call|>",
        "analysisThe user wants a riv",
    ],
)
def test_thoughts_that_end_in_nothing_leave_no_answer(reply: str) -> None:
    assert without_thoughts(reply) == ""
    assert only_thoughts(reply)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " The Loire, I think.\n",
        "    indented = thinking()\n",
        "Write `<think>` before and `</think>` after your thoughts.",
        'A reply begins with "<think>" and its thoughts end with "</think>".',
        "A template:\n```\n<think>\n…\n</think>\n```\nFill it in.",
        "<p>I think</p>\n<reason>none</reason>",
        "Use this prompt:\n<thinking>\nfirst\n</thinking>\n<answer>\nthen\n</answer>",
        "analysis of the text shows that it is old",
        "analysis: it is old",
        "Analysis\n\nIt is old.",
        "The channel<|end|> is open",
        "[Analysis]\nThe text is old.",
        "<analysis>\nThe text is old.",
        "Some reasoning: 3 > 2, so [x] is right.",
    ],
)
def test_a_text_without_thoughts_stays_as_it_is(text: str) -> None:
    assert without_thoughts(text) == text
    assert not only_thoughts(text)


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "\n<think>\n", "`</think>`", "<|channel|>analysis<|message|>"]
)
def test_a_reply_of_marks_alone_is_read_too(piece: str) -> None:
    """Quadratic time would show: these are a hundred thousand characters and more."""
    without_thoughts("x " + piece * (200_000 // len(piece)))
    without_thoughts(piece * (200_000 // len(piece)))
