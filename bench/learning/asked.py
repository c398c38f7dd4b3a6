"""Parses lion-ray's prompts: the role addressed, and the texts shown to it. Pure.

Only the package's own templates are recognised. Other prompts raise `UnreadError`, so that a changed template is
noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ANSWERS = ("answer of Assistant 1", "answer of Assistant 2")
_FRAMED = re.compile(
    r"\[(?P<label>[^\[\]\n]+) begins (?P<mark>[0-9a-f]+)\]\n(?P<text>.*?)\n\[(?P=label) ends (?P=mark)\]", re.DOTALL
)
_WRITER = "You invent"
_WRITER_TURNS = "one new task"
_RARER = "rare"
"""Distinguishes the templates for easy seeds from those for hard ones."""


class UnreadError(Exception):
    """A prompt that cannot be parsed."""


@dataclass(frozen=True, slots=True)
class ToTeacher:
    """An instruction to answer."""

    instruction: str


@dataclass(frozen=True, slots=True)
class ToReferee:
    """Two answers to score."""

    instruction: str
    answers: tuple[str, str]
    form: Literal["lines", "numbers", "json"]

    def reply(self, one: float, other: float) -> str:
        """The two scores in the template's format."""
        if self.form == "json":
            return json.dumps({"explanation": "By the truth.", "assistant_1": one, "assistant_2": other})
        if self.form == "numbers":
            return f"{one} {other}"
        return f"By the truth.\nScore of the Assistant 1: {one}\nScore of the Assistant 2: {other}"


@dataclass(frozen=True, slots=True)
class ToGenerator:
    """A seed to write a new instruction from."""

    instruction: str
    kind: Literal["hard", "easy"]


@dataclass(frozen=True, slots=True)
class ToRubricator:
    """An instruction and the teacher's answer to it, to write criteria from."""

    instruction: str
    reference: str


@dataclass(frozen=True, slots=True)
class ToVerifier:
    """Answers to check against criteria."""

    instruction: str
    criteria: tuple[str, ...]
    answers: tuple[str, ...]


Asked = ToTeacher | ToReferee | ToGenerator | ToRubricator | ToVerifier


def asked(messages: Sequence[Mapping[str, str]]) -> Asked:
    """The role and the texts in lion-ray's chat messages. Raises UnreadError."""
    if not messages or messages[-1].get("role") != "user":
        raise UnreadError("the last message is not a user's")
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    last = messages[-1]["content"]
    framed = {match["label"]: match["text"] for match in _FRAMED.finditer(last)}
    if set(framed) == {"instruction", *ANSWERS}:
        return ToReferee(framed["instruction"], (framed[ANSWERS[0]], framed[ANSWERS[1]]), _form(last))
    if set(framed) == {"task"} and system.startswith(_WRITER):
        return ToGenerator(framed["task"], "easy" if _RARER in last else "hard")
    if set(framed) == {"instruction", "reference answer"}:
        return ToRubricator(framed["instruction"], framed["reference answer"])
    if set(framed) == {"instruction", "criteria", "answers"}:
        return ToVerifier(framed["instruction"], _numbered(framed["criteria"]), _numbered(framed["answers"]))
    if framed:
        raise UnreadError(f"texts in unknown frames: {', '.join(framed)}")
    if (quoted := _quoted(last)) is not None:
        shown = next((one["content"] for one in messages if one["role"] == "assistant"), "")
        return ToReferee(
            quoted["instruction"],
            (quoted[ANSWERS[0]], quoted[ANSWERS[1]]),
            "json" if shown.startswith("{") else "numbers",
        )
    if _WRITER_TURNS in system:
        return ToGenerator(last, "easy" if _RARER in system else "hard")
    if len(messages) > 2:
        raise UnreadError("several turns that are not a template's examples")
    return ToTeacher(last)


def _numbered(text: str) -> tuple[str, ...]:
    """The texts of lines such as ``1: "text"``."""
    return tuple(json.loads(line.split(": ", 1)[1]) for line in text.split("\n"))


def _form(prompt: str) -> Literal["lines", "numbers", "json"]:
    if "Score of the Assistant 1:" in prompt:
        return "lines"
    if "JSON object" in prompt:
        return "json"
    if "the grade of Assistant 1, a space" in prompt:
        return "numbers"
    raise UnreadError("a referee's prompt that asks for scores in an unknown form")


def _quoted(text: str) -> dict[str, str] | None:
    """The texts of a referee's prompt in JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and set(found) == {"instruction", *ANSWERS} else None
