"""Row filters: which of the teacher's answers the student learns from.

Invariants:
- A filter keeps a row or returns a short reason that can be counted. A dropped row is `filtered`, which never counts as
  a failure.
- A filter's decision depends on the row alone, so a resumed stage decides the same.

This module sees rows as texts. `imitation.training.data` decides what depends on token ids.
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
from lion_ray.core.plugins import call_user_code, make

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
    """seed, or the kind of row from which it was generated: hard or easy."""
    iteration: int = 0
    finish_reason: str | None = None
    """As the endpoint gave it; None counts as complete."""
    model: str | None = None


class RowFilter(Protocol):
    """Keeps a row, or gives a reason to drop it."""

    def reason(self, row: AnsweredRow) -> str | None:
        """Returns None to keep the row, else the reason to drop it, without details of this row."""


class Empty:
    """Drops empty answers."""

    def reason(self, row: AnsweredRow) -> str | None:
        return None if row.answer.strip() else EMPTY_ANSWER


class CutOff:
    """Drops answers that were cut off."""

    def reason(self, row: AnsweredRow) -> str | None:
        complete = row.finish_reason is None or ending(row.finish_reason) is Ending.COMPLETE
        return None if complete else CUT_OFF


@dataclass(frozen=True, slots=True)
class Length:
    """Keeps answers whose number of words is within the limits."""

    config: LengthFilterConfig

    def reason(self, row: AnsweredRow) -> str | None:
        words = len(row.answer.split())
        if words < self.config.min_words:
            return f"fewer than {self.config.min_words} words"
        if self.config.max_words is not None and words > self.config.max_words:
            return f"more than {self.config.max_words} words"
        return None


class Pattern:
    """Drops answers that match a regular expression."""

    def __init__(self, config: PatternFilterConfig) -> None:
        self._shown = config.pattern[:60]
        self._pattern = re.compile(config.pattern, re.IGNORECASE if config.ignore_case else 0)

    def reason(self, row: AnsweredRow) -> str | None:
        return f"matches {self._shown!r}" if self._pattern.search(row.answer) else None


@dataclass(frozen=True, slots=True)
class _Own:
    """A user's filter. Errors, including a return value of the wrong type, name its configuration key."""

    filter: Any
    key: str

    def reason(self, row: AnsweredRow) -> str | None:
        found = call_user_code(self.filter.reason, row, key=self.key)
        if found is not None and not (isinstance(found, str) and found.strip()):
            raise ConfigError(f"{self.key}: reason() returned {type(found).__name__}, not None or a text")
        return found


def load_filters(configs: Sequence[FilterConfig], base_dir: Path) -> list[RowFilter]:
    """The filters that a configuration names, in their order.

    Raises ConfigError if a user's filter cannot be imported or constructed.
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
    """The reason of the first filter that drops the row. Returns None if all filters keep it."""
    return next((reason for one in filters if (reason := one.reason(row)) is not None), None)
