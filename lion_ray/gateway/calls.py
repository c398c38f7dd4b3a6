"""A call to an endpoint, its key, and its outcome: a completion or a failure.

Invariants:
- The key is the SHA-256 of the canonical request: model, messages, sampling and a sample ordinal. It does not include
  the endpoint's address, the role or the time, so the same request is never bought twice (contract: bought once). For
  a model that the run serves itself, whose name is arbitrary, the key includes the hash of the weights.
- Everything here pickles and is immutable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.thoughts import only_thoughts, without_thoughts

REFUSED = "refusal"
"""The finish reason of an answer whose `refusal` field is set (OpenAI's chat completions; the name is Anthropic's)."""
ONLY_THOUGHTS = "no answer: the model's thoughts took all of max_tokens, or were all it said"

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``, as in OpenAI's chat completions API."""


def _positional(record: Any) -> tuple[Any, ...]:
    # Hundreds of thousands of calls are pickled; a frozen dataclass's default pickling takes 2 to 4 times as long.
    return type(record), tuple(getattr(record, name) for name in type(record).__slots__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request for one chat completion."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """Sent, and part of the key, only if the endpoint's `send_seed` is set."""
    json_schema: dict[str, Any] | None = None
    """Sent, and part of the key, only if the endpoint's `json_schema` is set."""
    top_logprobs: int | None = None
    """Request log-probabilities of this many alternatives to each token (0 to 20): see `Completion.logprobs`."""
    ordinal: int = 0
    """Distinguishes intended repetitions of one request (a second sample, a verdict asked again)."""
    role: str = ""
    """teacher, referee, generator, rubricator or verifier: for accounting, never part of the key."""
    stage: str = ""
    """The stage of the run that makes the call: for accounting, never part of the key."""
    omit: tuple[str, ...] = ()
    """Request fields to leave out, by the endpoint's configuration; part of the key."""
    extra: dict[str, Any] | None = None
    """Request fields to add, by the endpoint's configuration; part of the key."""
    batch: bool = False
    """Whether the call goes through the endpoint's Batch API; never part of the key."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _positional(self)

    def body(self, model: str) -> dict[str, Any]:
        """The body of a chat completions request, before endpoint-specific field names."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(self.messages),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if self.seed is not None:
            body["seed"] = self.seed
        if self.json_schema is not None:
            body["json_schema"] = self.json_schema
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        for name in self.omit:
            body.pop(name, None)
        return body | (self.extra or {})

    def key(self, model: str, weights: str = "") -> str:
        """The request's key in every journal, 64 hex digits; `weights` is the hash of a served model's weights."""
        named = [self.body(model), self.ordinal, weights] if weights else [self.body(model), self.ordinal]
        canonical = orjson.dumps(named, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """What a call's cost is charged to."""

    run: str = ""
    role: str = ""
    stage: str = ""


class TokenChoice(NamedTuple):
    """A token of an answer, and the alternatives to it."""

    offset: int
    """Its start in the answer's text, in characters."""
    token: str
    alternatives: tuple[tuple[str, float], ...]
    """(token, natural logarithm of its probability), the most likely first; includes the token itself."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A paid answer of an endpoint, journaled before any caller gets it. `text` may be empty."""

    key: str
    text: str
    finish_reason: str
    """stop | length | content_filter | …, in the endpoint's own words."""
    model: str
    """The model that the endpoint reports."""
    endpoint: str
    """The endpoint's name in the configuration."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    seconds: float = 0.0
    """The latency of the successful attempt."""
    cost_usd: float | None = None
    replayed: bool = False
    """True if it came from the journal and no request was sent."""
    logprobs: tuple[TokenChoice, ...] | None = None
    """If requested and returned: of the first token, and of tokens that are a number or a single letter.

    A verdict's scores and a multiple-choice answer are read from these; those of all tokens would take 100 kB.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _positional(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without a completion, because of its data or because all attempts failed.

    Never journaled, so the next run tries it again.
    """

    key: str
    reason: str
    """A short category to count by: ``rejected by the endpoint``, ``timed out``, ``server error`` …"""
    detail: str
    """The endpoint's message, shortened; never holds a key."""


Outcome = Completion | Failure


def refusal(completion: Completion) -> str | None:
    """Why a paid completion is not an answer. Returns None if it is one."""
    how = ending(completion.finish_reason)
    match how:
        case Ending.FILTERED if completion.finish_reason == REFUSED:
            return "refused by the model"
        case Ending.FILTERED:
            return "withheld by the endpoint's content filter"
        case Ending.TOOL:
            return "a tool call instead of an answer"
        case Ending.FAILED:
            return "broken off by the endpoint"
    if not answer_text(completion).strip():
        thought = only_thoughts(completion.text) or (how is Ending.CUT and completion.completion_tokens)
        return ONLY_THOUGHTS if thought else "empty answer"
    return None


def answer_text(completion: Completion) -> str:
    """A completion's text without the model's thoughts; the journal keeps both."""
    return without_thoughts(completion.text)
