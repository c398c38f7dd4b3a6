"""A call to an endpoint, its key, and the two ways it can end.

Invariants:
- The key is the SHA-256 of the canonical request: model, messages, sampling and a sample ordinal, and nothing else.
  Not the endpoint's address, not the role, not the time: the same request is never bought twice (contract: bought
  once). Of a model that a run serves itself the name is whatever the run likes, so its weights' hash is in the key too.
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
"""The finish reason of an answer whose `refusal` field is filled (OpenAI's chat completions; Anthropic's own name)."""
ONLY_THOUGHTS = "no answer: the model's thoughts took all of max_tokens, or were all it said"

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``, as in OpenAI's chat completions API."""


def _positional(record: Any) -> tuple[Any, ...]:
    # Calls and completions travel by the hundred thousand; a frozen dataclass's own way takes 2 to 4 times as long.
    return type(record), tuple(getattr(record, name) for name in type(record).__slots__)


@dataclass(frozen=True, slots=True)
class Call:
    """One request for one chat completion."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """Sent, and part of the key, only where the endpoint's config says `send_seed`."""
    json_schema: dict[str, Any] | None = None
    """Sent, and part of the key, only where the endpoint's config says `json_schema`."""
    top_logprobs: int | None = None
    """Ask for the log-probabilities of so many alternatives to each token (0 to 20): see `Completion.logprobs`."""
    ordinal: int = 0
    """Tells wanted repetitions of one request apart (a second sample, a verdict asked again)."""
    role: str = ""
    """teacher, referee or generator: for accounts, never part of the key."""
    stage: str = ""
    """The stage of the run that asks: for accounts, never part of the key."""
    omit: tuple[str, ...] = ()
    """Fields of the request that are left out, by the endpoint's config; part of the key."""
    extra: dict[str, Any] | None = None
    """Fields that the endpoint's config adds; part of the key."""
    batch: bool = False
    """Goes through the endpoint's Batch API; never part of the key."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _positional(self)

    def body(self, model: str) -> dict[str, Any]:
        """The request as chat completions take it, without the fields' endpoint-specific names."""
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
        """64 hex digits that name this request in every journal; `weights` is the hash of a served model's."""
        named = [self.body(model), self.ordinal, weights] if weights else [self.body(model), self.ordinal]
        canonical = orjson.dumps(named, option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a call is paid for."""

    run: str = ""
    role: str = ""
    stage: str = ""


class TokenChoice(NamedTuple):
    """A token of an answer, and what else the model might have said there."""

    offset: int
    """Where it begins in the answer's text, in characters."""
    token: str
    alternatives: tuple[tuple[str, float], ...]
    """(token, natural logarithm of its probability), the likeliest first; the token itself is one of them."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an endpoint answered, and was paid for: journaled before anyone sees it. `text` may be empty."""

    key: str
    text: str
    finish_reason: str
    """stop | length | content_filter | …, as the endpoint said."""
    model: str
    """The model the endpoint says it used."""
    endpoint: str
    """The endpoint's name in the config."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    seconds: float = 0.0
    """From sending the attempt that succeeded to having its answer."""
    cost_usd: float | None = None
    replayed: bool = False
    """True where it came out of the journal and nothing was sent."""
    logprobs: tuple[TokenChoice, ...] | None = None
    """Where the call asked and the endpoint gave them: the first token, and those that are a number or one letter.

    A verdict's scores and a multiple-choice answer are read from these; all of a long verdict's would be 100 kB.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _positional(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without a completion, for a reason that lies in its data or outlasted every attempt.

    Never journaled: the next run tries it again.
    """

    key: str
    reason: str
    """Short and countable: ``rejected by the endpoint``, ``timed out``, ``server error`` …"""
    detail: str
    """What the endpoint said, shortened; never holds a key."""


Outcome = Completion | Failure


def refusal(completion: Completion) -> str | None:
    """Why a completion that was paid for is no answer; None where it is one."""
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
    """What a completion says, without what the model thought before: the journal keeps both."""
    return without_thoughts(completion.text)
