"""Reads the usage that an endpoint reports, and settles on a conservative count of tokens.

Invariants:
- The settled count is at least as high as every plausible reading: thoughts may be billed in addition to the answer, a
  total may exceed its parts, and a missing or absurd count is taken as what the call allowed.
- A count is a whole number from 0 to `MOST_TOKENS`, or None: texts, fractions, negative and huge numbers are rejected.

Sources: `usage` in OpenAI's chat completions and responses, Anthropic's messages, DeepSeek's and Moonshot's caches,
Perplexity's and xAI's reasoning tokens outside the answer. This module knows no prices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_TOKENS = 100_000_000
"""Ten times the longest context of any model; a larger count is invalid."""
LONGEST_TOKEN_BYTES = 128
"""The longest token (a run of spaces) of usual vocabularies; a count below a text's bytes divided by this is absurd."""
MESSAGE_OVERHEAD_TOKENS = 16
"""Approximate maximum of tokens that a chat template adds to a message."""

_NUMBER = re.compile(r"\s*[0-9]{1,18}(\.[0-9]+)?\s*")
_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
# Anthropic counts cache writes and reads separately from input_tokens.
_BESIDE_INPUT = ("cache_creation_input_tokens", "cache_read_input_tokens")
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens")


class Bounds(NamedTuple):
    """The most tokens that a call may use."""

    prompt: int
    completion: int


def bounds(text_bytes: int, messages: int, max_tokens: int) -> Bounds:
    """The bounds of a call; a token of a byte-pair encoding holds at least one byte."""
    return Bounds(text_bytes + MESSAGE_OVERHEAD_TOKENS * messages, max_tokens)


class Settled(NamedTuple):
    """The tokens that a call is settled on."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Usage:
    """An endpoint's own counts; None for a missing or invalid count."""

    prompt: int | None = None
    completion: int | None = None
    """Without thoughts, at some endpoints."""
    reasoning: int = 0
    """Thoughts: included in the completion, or in addition to it."""
    total: int | None = None
    cached: int = 0
    """Prompt tokens from the cache, which cost less."""

    def known(self) -> tuple[int, int]:
        """Prompt and completion tokens as reported; (0, 0) if either is missing."""
        return (self.prompt, self.completion) if self.prompt and self.completion is not None else (0, 0)

    def settled(self, asked: Bounds, most: Bounds, text_bytes: int = 0) -> Settled:
        """The most expensive plausible reading.

        `asked`: what the call allowed; `most`: what was reserved for it; `text_bytes`: the size of the answer.
        """
        reported, completion = self.prompt, self.completion
        if reported is not None and reported * LONGEST_TOKEN_BYTES < asked.prompt:
            reported = None
        if completion is not None and completion * LONGEST_TOKEN_BYTES < text_bytes:
            completion = None
        prompt = most.prompt if reported is None else reported
        completion = most.completion if completion is None else completion
        if self.reasoning > completion or (self.total is None and self.completion is not None):
            completion += self.reasoning
        if self.total is not None:
            beyond = reported is None and self.total > prompt + completion
            # The total exceeds the reservation without a breakdown: count all of it as completion, the expensive part.
            completion = self.total if beyond else max(completion, self.total - prompt)
        # A cached count above the prompt's is invalid.
        cached = self.cached if reported is not None and self.cached <= reported else 0
        return Settled(prompt, cached, completion)


UNKNOWN = Usage()


def read_usage(usage: Any) -> Usage:
    """Read the `usage` of a reply's body, which may be any value."""
    if not isinstance(usage, dict):
        return UNKNOWN
    prompt = _most(usage, _PROMPT)
    if prompt is not None and "prompt_tokens" not in usage:
        prompt += sum(_count(usage.get(name)) or 0 for name in _BESIDE_INPUT)
    details = list(_details(usage, _COMPLETION))
    cached = [_most(part, _CACHED) for part in (usage, *_details(usage, _PROMPT))]
    return Usage(
        prompt=prompt,
        completion=_most(usage, _COMPLETION),
        reasoning=max(_count(part.get("reasoning_tokens")) or 0 for part in (usage, *details)),
        total=_count(usage.get("total_tokens")),
        cached=max((count for count in cached if count is not None), default=0),
    )


def _details(usage: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        if isinstance(part := usage.get(f"{name}_details"), dict):
            yield part


def _most(usage: dict[str, Any], names: Sequence[str]) -> int | None:
    return max((count for name in names if (count := _count(usage.get(name))) is not None), default=None)


def _count(value: Any) -> int | None:
    """A number of tokens, rounded up. Returns None if it is invalid."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)  # some endpoints send numbers as text
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return math.ceil(value)
