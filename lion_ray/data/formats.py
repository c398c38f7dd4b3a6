"""Reads a row in any of the common formats: a conversation that ends with the user, and the reference that answers are
compared with.

Invariants:
- A row's keys decide its format, not its file's name: OpenAI's `messages`, ShareGPT's `conversations`, or one
  instruction (Alpaca, Dolly, OpenOrca, `prompt` and `completion`, plain texts).
- If a conversation ends with the assistant, that last answer becomes the row's `reference`, unless the row has a
  `reference` already; the teacher writes a new answer.
- A malformed row is never repaired, guessed at or silently dropped; `FormatError` says what is wrong with it.

This module does not know files (`sources`), pools or models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lion_ray.core.records import Message
from lion_ray.core.values import canonical

ALTERNATIVES = ("prompt", "question", "text")
"""Keys under which other formats keep the instruction; used only if a row has no `instruction`."""
INSTRUCTION_KEYS = ("instruction", *ALTERNATIVES)
INPUT_KEYS = ("input", "inputs", "context", "passage")
"""Keys under which formats (Alpaca, Dolly and others) keep the text that an instruction is about."""
SYSTEM_KEYS = ("system", "system_prompt")
"""Keys of the system message, in OpenOrca and other formats."""
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
KEYS = (*INSTRUCTION_KEYS, *INPUT_KEYS, *SYSTEM_KEYS, *CONVERSATION_KEYS, "completion", "reference")
"""All keys that are read; other keys are ignored and reported."""
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}

# What people and models write into `input` to say that there is none, after outer punctuation is stripped.
_NO_INPUT = re.compile(
    r"no[\W_]*(?:(?:further|additional|specific)\s+)?input[es]?"
    r"(?:\s+(?:(?:is|was)\s+)?(?:needed|required|necessary|provided|given|applicable|available))?"
    r"|input\s+(?:is\s+)?not\s+(?:needed|required|necessary|provided|given|applicable|available)"
    r"|none|n[/.]\s?a|not\s+applicable"
    # What pandas, JSON and databases write for a missing value.
    r"|nan|nat|null|nil|undefined|empty(?:\s+(?:string|input))?",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"nan|null|none|<na>|\\n", re.IGNORECASE)
"""Placeholders of a missing text, if they are the whole instruction."""
_OUTER_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


class FormatError(Exception):
    """A malformed row; the message says briefly what is wrong."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row that was read."""

    text: str
    """The user's last turn."""
    messages: tuple[Message, ...] = ()
    """The whole conversation; empty if it is only that turn."""
    reference: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    """(key, name under which it was read), for each key whose name differs."""
    ignored: tuple[str, ...] = field(default=())
    """Keys that were not read."""


def read_row(value: Any) -> ReadRow:
    """Read a decoded row. Raises FormatError if it is malformed."""
    if not isinstance(value, Mapping):
        raise FormatError("not a JSON object")
    named = [key for key in CONVERSATION_KEYS if value.get(key) is not None]
    if len(named) > 1:
        raise FormatError(f"both '{named[0]}' and '{named[1]}', but a row is one conversation")
    ignored = tuple(key for key in value if key not in KEYS)
    reference = _reference(value)
    if named:
        messages, answer = _turns(value, named[0])
        used = (*named, "reference")
    else:
        messages, answer = _single(value)
        used = (*KEYS,)
    text = messages[-1]["content"]
    # A key that only repeats the last turn is not reported: exports have it beside the conversation.
    ignored += tuple(
        key for key in value if key in KEYS and key not in (*used, *SYSTEM_KEYS) and value[key] not in (None, text)
    )
    if _NOTHING.fullmatch(text):
        raise FormatError(f"the instruction is '{text}', which means that it is missing")
    renamed = tuple(_renamed(value, named, took_answer=reference is None and answer is not None))
    alone = len(messages) == 1
    return ReadRow(text, () if alone else messages, answer if reference is None else reference, renamed, ignored)


def _renamed(value: Mapping[str, Any], named: Sequence[str], *, took_answer: bool) -> list[tuple[str, str]]:
    found = [(key, "system message") for key in SYSTEM_KEYS if isinstance(value.get(key), str) and value[key].strip()]
    if named:
        if named[0] != "messages":
            found.append((named[0], "messages"))
        if took_answer:
            found.append((f"the last answer of '{named[0]}'", "reference"))
        return found
    key = _instruction_key(value)
    if key != "instruction":
        found.append((key, "instruction"))
    if took_answer:
        found.append(("completion", "reference"))
    return found


# -- one instruction -------------------------------------------------------------------------------------------------


def _single(value: Mapping[str, Any]) -> tuple[tuple[Message, ...], str | None]:
    """The conversation of an instruction with its input and system message, and its completion."""
    key = _instruction_key(value)
    instruction = _text_of(value, key)
    if not instruction:
        raise FormatError("the instruction is empty")
    if _NOTHING.fullmatch(instruction):
        raise FormatError(f"the instruction is '{instruction}', which means that it is missing")
    extras = {key: _text_of(value, key) for key in INPUT_KEYS if value.get(key) is not None}
    extras = {key: extra for key, extra in extras.items() if extra and not says_no_input(extra)}
    if len(set(extras.values())) > 1:
        one, other, *_ = extras
        raise FormatError(f"both '{one}' and '{other}', but an instruction has one input text")
    text = f"{instruction}\n\n{next(iter(extras.values()))}" if extras else instruction
    user: Message = {"role": "user", "content": text}
    answer = _text_of(value, "completion") if key == "prompt" and value.get("completion") is not None else None
    return (*_system(value), user), answer or None


def _system(value: Mapping[str, Any]) -> tuple[Message, ...]:
    texts = {key: _text_of(value, key) for key in SYSTEM_KEYS if value.get(key) is not None}
    said = {key: text for key, text in texts.items() if text}
    if len(set(said.values())) > 1:
        raise FormatError("both 'system' and 'system_prompt', and they differ")
    return ({"role": "system", "content": next(iter(said.values()))},) if said else ()


def _instruction_key(value: Mapping[str, Any]) -> str:
    if value.get("instruction") is not None:
        return "instruction"
    others = [key for key in ALTERNATIVES if value.get(key) is not None]
    if len(others) > 1:
        raise FormatError(f"no 'instruction', but both '{others[0]}' and '{others[1]}'")
    if not others:
        raise FormatError("no 'instruction'")
    return others[0]


# -- a conversation --------------------------------------------------------------------------------------------------


def _turns(value: Mapping[str, Any], key: str) -> tuple[tuple[Message, ...], str | None]:
    """The conversation up to the user's last turn, and the assistant's answer to that (None if there is none)."""
    listed = value[key]
    if not isinstance(listed, list | tuple) or not listed:
        raise FormatError(f"'{key}' is not a list of messages")
    turns = [_message(one, f"'{key}', message {number}") for number, one in enumerate(listed, 1)]
    if turns[0]["role"] == "system":
        if _system(value):
            raise FormatError(f"'{key}' begins with a system message, but the row has another one outside it")
    else:
        turns = [*_system(value), *turns]
    answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    expected = "user"
    for number, turn in enumerate(turns, 1):
        if turn["role"] == "system":
            if number > 1:
                raise FormatError(f"'{key}' has a system message that is not the first")
            continue
        if turn["role"] != expected:
            raise FormatError(f"'{key}' has two consecutive turns of one role, or begins with the assistant's")
        expected = "assistant" if expected == "user" else "user"
    if not turns or turns[-1]["role"] != "user":
        raise FormatError(f"'{key}' does not end with a turn of the user, or with an answer to one")
    if not turns[-1]["content"]:
        raise FormatError("the instruction is empty")
    return tuple(turns), answer or None


def _message(one: Any, where: str) -> Message:
    if not isinstance(one, Mapping):
        raise FormatError(f"{where} is not an object with role and content")
    said = one.get("role", one.get("from"))
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        shown = f"'{said}'"[:40] if isinstance(said, str) else "none"
        raise FormatError(f"{where} has the role {shown}; the roles are system, user and assistant")
    if one.get("tool_calls") or one.get("function_call"):
        raise FormatError(f"{where} calls a tool, but only texts are supported")
    content = one.get("content", one.get("value"))
    if isinstance(content, list | tuple):
        content = _joined(content, where)
    return {"role": role, "content": checked_text(content, where)}


def _joined(parts: Sequence[Any], where: str) -> str:
    """The text of a content in parts (OpenAI's format). Raises FormatError if a part is not text."""
    texts = [one.get("text") if isinstance(one, Mapping) and one.get("type") == "text" else None for one in parts]
    if any(not isinstance(text, str) for text in texts):
        raise FormatError(f"{where} holds something other than text, such as an image")
    return "\n".join(text for text in texts if isinstance(text, str))


# -- texts -----------------------------------------------------------------------------------------------------------


def _reference(value: Mapping[str, Any]) -> str | None:
    """The row's reference: a text unchanged, another JSON value as JSON. Returns None if it is missing or blank."""
    given = value.get("reference")
    if given is None:
        return None
    try:
        if isinstance(given, str):
            given.encode()
            return given if given.strip() else None
        return canonical(given)
    except UnicodeEncodeError:
        raise FormatError("'reference' holds a lone surrogate (half a character)") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"'reference' is not a JSON value ({' '.join(str(error).split())[:100]})") from None


def _text_of(value: Mapping[str, Any], key: str) -> str:
    return checked_text(value[key], f"'{key}'")


def checked_text(text: Any, where: str) -> str:
    """A text without white space at its ends. Raises FormatError if it is not a text or not encodable as UTF-8."""
    if not isinstance(text, str):
        raise FormatError(f"{where} is not a string but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where} holds a lone surrogate (half a character)") from None
    return text.strip()


def says_no_input(text: str) -> bool:
    """Whether an `input` only says that there is none: "No input", "<noinput>", "N/A", "none", "-" and so on."""
    # A longer text says something else, and stripping a long run of punctuation takes quadratic time.
    if len(text) > 60:
        return False
    # "NA" only in capitals: "Na" may be the question (sodium).
    bare = _OUTER_PUNCTUATION.sub("", text)
    if bare.casefold() == "empty" and text.strip() == bare:
        return False  # an ordinary word, except in brackets
    return (
        text.strip() == "\\N"
        or bare == "NA"
        or _NO_INPUT.fullmatch(bare) is not None
        or re.fullmatch(r"\s*[-–—]{1,3}\s*", text) is not None
    )
