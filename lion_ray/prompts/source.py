"""Prompt sources, an extension point: how an instruction becomes a prompt for the teacher.

Invariants:
- The same row always gives the same prompt, because the row's journal key depends on it.
- The teacher is never shown a row's `reference`.
- A row's system message is appended to the template's, in one message; its earlier turns precede its last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lion_ray.config.plugins import Own
from lion_ray.config.run import TeacherConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.plugins import call_user_code, make
from lion_ray.core.records import Message, Prompt
from lion_ray.prompts.messages import load_template, teacher_messages

KEY = "teacher.source.import_path"


class PromptSource(Protocol):
    """Turns a row into chat messages. `testing.PromptSourceContract` tests an implementation."""

    def messages(self, prompt: Prompt) -> Sequence[Message]:
        """The chat messages, dicts with role and content; the last one is the user's."""


class TemplateSource:
    """The teacher's template: a built-in one, or a .yaml file."""

    def __init__(self, name: str, base_dir: Path) -> None:
        self._template = load_template(name, "teacher", base_dir)

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        return conversation(teacher_messages(self._template, prompt.text), prompt)


def conversation(rendered: tuple[Message, ...], prompt: Prompt) -> tuple[Message, ...]:
    """The template's messages for a row's last turn, combined with the rest of the row's conversation."""
    if not prompt.messages:
        return rendered
    *before, last = rendered
    *history, _ = prompt.messages
    systems = [one["content"] for one in (*before, *history) if one["role"] == "system"]
    turns = [one for one in (*before, *history) if one["role"] != "system"]
    system = [{"role": "system", "content": "\n\n".join(systems)}] if systems else []
    return (*system, *turns, last)


class _Own:
    def __init__(self, source: Any) -> None:
        self._source = source

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        found = call_user_code(self._source.messages, prompt, key=KEY)
        valid = (
            isinstance(found, Sequence)
            and found
            and all(
                isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
                for one in found
            )
        )
        if not valid:
            raise ConfigError(f"{KEY}: messages() must return a list of dicts with role and content, both text")
        return tuple({"role": one["role"], "content": one["content"]} for one in found)


def load_source(config: TeacherConfig, base_dir: Path) -> PromptSource:
    """The configured prompt source of the teacher.

    Raises ConfigError if the template cannot be used, or the user's own source cannot be imported or made.
    """
    if isinstance(config.source, Own):
        return _Own(make(config.source.import_path, config.source.options, base_dir, KEY, "messages"))
    return TemplateSource(config.prompt, base_dir)
