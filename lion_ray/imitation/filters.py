"""Which of the teacher's answers the student learns from: reasons to leave one out.

Invariants:
- A filter keeps a row or gives a reason in a few words that can be counted; what it drops is `filtered`, which is no
  failure, however many they are.
- What a filter says of a row depends on the row alone, so a resumed stage says the same.

Knows rows as texts; what only token ids can tell (`imitation.training.data`) is decided there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lion_ray.config.plugins import FilterConfig, LengthFilterConfig, Own, PatternFilterConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.plugins import asked, make

KEY = "imitation.filters"
EMPTY_ANSWER = "empty answer"
CUT_OFF = "answer cut off"


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """An instruction with the teacher's answer to it."""

    id: str
    instruction: str
    answer: str
    reference: str | None = None
    source: str = "seed"
    """seed, or the kind of row that it was generated from: hard or easy."""
    iteration: int = 0
    finish_reason: str | None = None
    """As the endpoint gave it; None counts as complete."""
    model: str | None = None


class RowFilter(Protocol):
    """Keeps a row, or says why not."""

    def reason(self, row: AnsweredRow) -> str | None:
        """None to keep it; else why not, in words without this row's own details."""


class Empty:
    """Nothing to learn from."""

    def reason(self, row: AnsweredRow) -> str | None:
        return None if row.answer.strip() else EMPTY_ANSWER


class CutOff:
    """The answer ended before its writer was done."""

    def reason(self, row: AnsweredRow) -> str | None:
        complete = row.finish_reason is None or ending(row.finish_reason) is Ending.COMPLETE
        return None if complete else CUT_OFF


@dataclass(frozen=True, slots=True)
class Length:
    """Answers of so many words."""

    config: LengthFilterConfig

    def reason(self, row: AnsweredRow) -> str | None:
        words = len(row.answer.split())
        if words < self.config.min_words:
            return f"fewer than {self.config.min_words} words"
        if self.config.max_words is not None and words > self.config.max_words:
            return f"more than {self.config.max_words} words"
        return None


class Pattern:
    """Answers in which an expression matches."""

    def __init__(self, config: PatternFilterConfig) -> None:
        self._shown = config.pattern[:60]
        self._pattern = re.compile(config.pattern, re.IGNORECASE if config.ignore_case else 0)

    def reason(self, row: AnsweredRow) -> str | None:
        return f"matches {self._shown!r}" if self._pattern.search(row.answer) else None


@dataclass(frozen=True, slots=True)
class _Own:
    """The user's own; what it raises or returns besides a text is told by its key."""

    filter: Any
    key: str

    def reason(self, row: AnsweredRow) -> str | None:
        said = asked(self.filter.reason, row, key=self.key)
        if said is not None and not (isinstance(said, str) and said.strip()):
            raise ConfigError(f"{self.key}: reason() returned {type(said).__name__}; wanted None, or why not as text")
        return said


def load_filters(configs: Sequence[FilterConfig], base_dir: Path) -> list[RowFilter]:
    """The filters that a configuration names, in their order.

    Raises ConfigError where the user's own cannot be imported or made.
    """
    found: list[RowFilter] = []
    for number, config in enumerate(configs):
        if isinstance(config, Own):
            key = f"{KEY}.{number}.import_path"
            found.append(_Own(make(config.import_path, config.options, base_dir, key, "reason"), key))
        elif isinstance(config, LengthFilterConfig):
            found.append(Length(config))
        else:
            found.append(Pattern(config))
    return found


def first_reason(filters: Sequence[RowFilter], row: AnsweredRow) -> str | None:
    """Why a row is left out, by the first filter that says so; None where all keep it."""
    return next((reason for one in filters if (reason := one.reason(row)) is not None), None)
