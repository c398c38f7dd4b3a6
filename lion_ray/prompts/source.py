"""What the teacher is asked for an instruction, as something that can be exchanged.

Invariants:
- The same instruction is asked in the same words whenever it is asked: its journal key depends on them.
- The teacher is never shown a row's `reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lion_ray.config.plugins import Own
from lion_ray.config.run import TeacherConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.plugins import asked, make
from lion_ray.prompts.messages import Message, load_template, teacher_messages

KEY = "teacher.source.import_path"


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the teacher is to answer."""

    id: str
    text: str
    source: str = "seed"
    """seed, or the kind of row that it was generated from: hard or easy."""
    iteration: int = 0


class PromptSource(Protocol):
    """Makes an instruction into chat messages. `contract.PromptSourceContract` tests what is said here."""

    def messages(self, instruction: Instruction) -> Sequence[Message]:
        """Dicts with role and content, as chat completions take them; the last one is the user's."""


class TemplateSource:
    """The teacher's template: a built-in one, or a .yaml file."""

    def __init__(self, name: str, base_dir: Path) -> None:
        self._template = load_template(name, "teacher", base_dir)

    def messages(self, instruction: Instruction) -> tuple[Message, ...]:
        return teacher_messages(self._template, instruction.text)


class _Own:
    def __init__(self, source: Any) -> None:
        self._source = source

    def messages(self, instruction: Instruction) -> tuple[Message, ...]:
        said = asked(self._source.messages, instruction, key=KEY)
        whole = (
            isinstance(said, Sequence)
            and said
            and all(
                isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
                for one in said
            )
        )
        if not whole:
            raise ConfigError(f"{KEY}: messages() must return a list of objects with role and content, both texts")
        return tuple({"role": one["role"], "content": one["content"]} for one in said)


def load_source(config: TeacherConfig, base_dir: Path) -> PromptSource:
    """What a configuration's teacher is asked.

    Raises ConfigError where the template cannot be used, or the user's own source cannot be imported or made.
    """
    if isinstance(config.source, Own):
        return _Own(make(config.source.import_path, config.source.options, base_dir, KEY, "messages"))
    return TemplateSource(config.prompt, base_dir)
