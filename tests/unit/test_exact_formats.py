"""What is read of a row in each format, and what is said of a malformed one: every field, and words in full."""

from __future__ import annotations

from typing import Any

import pytest

from lion_ray.data.formats import FormatError, ReadRow, read_row, says_no_input

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
AGAIN = {"role": "user", "content": "Really?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": " Why? ", "input": "So"}, ReadRow("Why?\n\nSo")),
        ({"instruction": "Why?", "prompt": "x", "text": "y", "note": 1, "output": 2}, ReadRow(
            "Why?", ignored=("note", "output")
        )),
        ({"prompt": "Why?", "completion": " So. "}, ReadRow(
            "Why?", (), "So.", (("prompt", "instruction"), ("completion", "reference"))
        )),
        ({"prompt": "Why?", "completion": " "}, ReadRow("Why?", renamed=(("prompt", "instruction"),))),
        ({"prompt": "Why?", "completion": "So.", "reference": "No."}, ReadRow(
            "Why?", (), "No.", (("prompt", "instruction"),)
        )),
        ({"text": "Why?", "completion": "So."}, ReadRow("Why?", renamed=(("text", "instruction"),))),
        ({"question": "Why?", "context": "A.", "passage": "A.", "inputs": "none"}, ReadRow(
            "Why?\n\nA.", renamed=(("question", "instruction"),)
        )),
        ({"instruction": "Why?", "system": "Be brief.", "system_prompt": " Be brief. "}, ReadRow(
            "Why?", (SYSTEM, USER), None, (("system", "system message"), ("system_prompt", "system message"))
        )),
        ({"instruction": "Why?", "system": " ", "system_prompt": None}, ReadRow("Why?")),
        ({"instruction": "Why?", "reference": " So. "}, ReadRow("Why?", (), " So. ")),
        ({"instruction": "Why?", "reference": " "}, ReadRow("Why?")),
        ({"instruction": "Why?", "reference": {"b": 1, "a": [2]}}, ReadRow("Why?", (), '{"a":[2],"b":1}')),
        ({"messages": [USER, ANSWER]}, ReadRow(
            "Why?", (), "So.", (("the last answer of 'messages'", "reference"),)
        )),
        ({"messages": [USER, ANSWER], "reference": "No."}, ReadRow("Why?", (), "No.")),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, ReadRow("Why?")),
        ({"conversation": (SYSTEM, USER, ANSWER, AGAIN)}, ReadRow(
            "Really?", (SYSTEM, USER, ANSWER, AGAIN), None, (("conversation", "messages"),)
        )),
        ({"conversations": [USER], "system": "Be brief."}, ReadRow(
            "Why?", (SYSTEM, USER), None, (("system", "system message"), ("conversations", "messages"))
        )),
        # What only repeats the last turn, or holds nothing, is not said to be left out.
        ({"messages": [USER], "prompt": "Why?", "text": "other", "input": None, "completion": "x", "n": None}, ReadRow(
            "Why?", ignored=("n", "text", "completion")
        )),
        *(({"messages": [{"from": f" {name.upper()} ", "value": "Why?"}]}, ReadRow("Why?"))
          for name in ("user", "human", "prompter")),
        *(({"messages": [USER, {"role": name, "content": "So."}]}, ReadRow(
            "Why?", (), "So.", (("the last answer of 'messages'", "reference"),)
        )) for name in ("assistant", "gpt", "chatgpt", "bing", "bard", "model")),
        ({"messages": [{"role": "user", "content": ({"type": "text", "text": "Why?"}, {"type": "text", "text":
         "So?"})}]},
         ReadRow("Why?\nSo?")),
    ],
)  # fmt: skip
def test_everything_that_is_read_of_a_row(row: dict[str, Any], expected: ReadRow) -> None:
    assert read_row(row) == expected


MISSING = "which means that it is missing"
ROLES = "the roles are system, user and assistant"
DEEP: Any = {"a": {1, 2}}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([], "not a JSON object"),
        ({}, "no 'instruction'"),
        ({"instruction": None, "prompt": None}, "no 'instruction'"),
        ({"question": "a", "text": "b", "prompt": "c"}, "no 'instruction', but both 'prompt' and 'question'"),
        ({"instruction": 3}, "'instruction' is not a string but int"),
        ({"prompt": ["x"]}, "'prompt' is not a string but list"),
        ({"instruction": "\ud83d"}, "'instruction' holds a lone surrogate (half a character)"),
        ({"instruction": "x", "system": 3}, "'system' is not a string but int"),
        ({"prompt": "x", "completion": 3}, "'completion' is not a string but int"),
        ({"instruction": " "}, "the instruction is empty"),
        *(({"instruction": text}, f"the instruction is '{text}', {MISSING}") for text in
          ("NaN", "null", "None", "<NA>", "\\N")),
        *(({"messages": [SYSTEM, {"role": "user", "content": text}]}, f"the instruction is '{text}', {MISSING}")
          for text in ("nan", "null")),
        ({"instruction": "x", "input": "a", "context": "b"}, "both 'input' and 'context', but an instruction has one "
         "input text"),
        ({"instruction": "x", "input": "-", "inputs": "a", "passage": "b"}, "both 'inputs' and 'passage', but an "
         "instruction has one input text"),
        ({"instruction": "x", "system": "a", "system_prompt": "b"}, "both 'system' and 'system_prompt', and they "
         "differ"),
        ({"messages": [USER], "conversation": [USER]}, "both 'messages' and 'conversation', but a row is one "
         "conversation"),
        ({"messages": 3}, "'messages' is not a list of messages"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"conversations": [USER, "x"]}, "'conversations', message 2 is not an object with role and content"),
        ({"messages": [{"content": "x"}]}, f"'messages', message 1 has the role none; {ROLES}"),
        ({"messages": [{"role": 3, "content": "x"}]}, f"'messages', message 1 has the role none; {ROLES}"),
        ({"messages": [{"role": "tool", "content": "x"}]}, f"'messages', message 1 has the role 'tool'; {ROLES}"),
        ({"messages": [{"role": "x" * 50, "content": "x"}]}, f"'messages', message 1 has the role '{'x' * 39}; "
         f"{ROLES}"),
        ({"messages": [USER | {"tool_calls": [1]}]}, "'messages', message 1 calls a tool, but only texts are "
         "supported"),
        ({"messages": [USER | {"function_call": {"a": 1}}]}, "'messages', message 1 calls a tool, but only texts are "
         "supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, "x"]}]},
         "'messages', message 1 holds something other than text, such as an image"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
         "'messages', message 1 holds something other than text, such as an image"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
         "'messages', message 1 holds something other than text, such as an image"),
        ({"messages": [{"role": "user"}]}, "'messages', message 1 is not a string but NoneType"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]},
         "'messages', message 2 holds a lone surrogate (half a character)"),
        ({"messages": [SYSTEM, USER], "system": "x"},
         "'messages' begins with a system message, but the row has another one outside it"),
        ({"messages": [SYSTEM, SYSTEM, USER]}, "'messages' has a system message that is not the first"),
        ({"messages": [USER, SYSTEM, AGAIN]}, "'messages' has a system message that is not the first"),
        ({"messages": [USER, AGAIN]}, "'messages' has two consecutive turns of one role, or begins with the "
         "assistant's"),
        ({"messages": [USER, ANSWER, ANSWER, USER]}, "'messages' has two consecutive turns of one role, or begins "
         "with the assistant's"),
        ({"messages": [SYSTEM, ANSWER, USER]}, "'messages' has two consecutive turns of one role, or begins with the "
         "assistant's"),
        ({"messages": [ANSWER]}, "'messages' does not end with a turn of the user, or with an answer to one"),
        ({"messages": [SYSTEM]}, "'messages' does not end with a turn of the user, or with an answer to one"),
        ({"messages": [USER, ANSWER, ANSWER]}, "'messages' does not end with a turn of the user, or with an answer to "
         "one"),
        ({"messages": [{"role": "user", "content": " "}]}, "the instruction is empty"),
        ({"instruction": "x", "reference": "\ud83d"}, "'reference' holds a lone surrogate (half a character)"),
        ({"instruction": "x", "reference": {1, 2}}, "'reference' is not a JSON value (Object of type set is not JSON "
         "serializable)"),
    ],
)  # fmt: skip
def test_everything_that_is_said_of_a_malformed_row(row: Any, why: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_row(row)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("text", "none"),
    [
        ("-", True),
        (" --- ", True),
        ("----", False),
        ("(empty)", True),
        ("<Empty>", True),
        ("empty", False),
        (" Empty ", False),
        ("\\N", True),
        (" \\N ", True),
        ("NA", True),
        ("Na", False),
        ("no input" + "." * 52, True),
        ("no input" + "." * 53, False),
        ("", False),
        ("...", False),
    ],
)
def test_what_says_that_there_is_no_input(text: str, none: bool) -> None:
    assert says_no_input(text) is none
