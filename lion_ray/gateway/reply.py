"""The reply in a chat completion's body.

Invariant: an answer was paid for, so only a body without one is refused; odd accounts and log-probabilities are left
out, never a reason to throw it away.

This module opens no connection and knows no key. What an endpoint's accounts mean is `usage`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lion_ray.gateway.calls import TokenChoice
from lion_ray.gateway.limits import Told
from lion_ray.gateway.usage import UNKNOWN, Usage, read_usage
from lion_ray.gateway.wire import GARBLED, Transient, excerpt, loads, message_of, told_limits

_TELLING = re.compile(r"\W*([0-9]+|[A-Za-z])\W*")
"""A token from which a score or a lettered answer is read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion as the endpoint gave it."""

    text: str
    finish_reason: str
    model: str
    usage: Usage = UNKNOWN
    """The tokens that it says this took."""
    limits: Mapping[str, Told] | None = None
    """The endpoint's rate limits by kind (see `limits.KINDS`), where its headers told them."""
    logprobs: tuple[TokenChoice, ...] | None = None
    """As `Completion` has them."""


def parse_reply(data: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """The reply in a body that came with HTTP 200. Raises Transient(GARBLED) where there is none."""
    try:
        body = loads(data)
    except ValueError:
        raise Transient(GARBLED, f"HTTP 200, but not JSON: {excerpt(data)}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(body, dict) or not isinstance(choice, dict) or not isinstance(message, dict):
        # Some gateways report errors this way: {"error": {"message": ...}} with status 200.
        raise Transient(GARBLED, f"HTTP 200, but no choices: {message_of(body) or excerpt(data)}")
    text = _text(message.get("content"))
    return Reply(
        text=text,
        finish_reason=_text(choice.get("finish_reason")) or "unknown",
        model=_text(body.get("model")),
        usage=read_usage(body.get("usage")),
        limits=None if headers is None else told_limits(headers),
        logprobs=_logprobs(choice.get("logprobs"), text),
    )


def _text(content: object) -> str:
    """A string as it can be stored; a message's content may also be null or a list of parts."""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    # A lone surrogate cannot be stored as UTF-8.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(given: Any, text: str) -> tuple[TokenChoice, ...] | None:
    """A choice's ``logprobs`` (OpenAI's API reference, chat completions), of the tokens that `Completion` keeps.

    None where there are none, or they are not in the form they should have: the answer itself is paid for.
    """
    listed = given.get("content") if isinstance(given, dict) else None
    if not isinstance(listed, list):
        return None
    kept, before, data = [], 0, text.encode()
    try:
        for place, one in enumerate(listed):
            if place == 0 or _TELLING.fullmatch(one["token"]):
                others = [(_text(other["token"]), float(other["logprob"])) for other in one.get("top_logprobs") or ()]
                if one["token"] not in dict(others):
                    others.append((one["token"], float(one["logprob"])))
                others.sort(key=lambda other: -other[1])
                offset = len(data[:before].decode("utf-8", "ignore"))
                kept.append(TokenChoice(offset, _text(one["token"]), tuple(others)))
            # A token may be a part of a character, so only bytes can be counted.
            before += len(one.get("bytes") or one["token"].encode())
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return tuple(kept)
