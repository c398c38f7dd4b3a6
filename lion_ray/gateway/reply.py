"""Parses the reply in a chat completion's body.

Invariant: an answer was paid for, so only a body without one is refused. Invalid usage and log-probabilities are left
out; they are no reason to discard an answer.

This module opens no connection and knows no key. `usage` interprets the endpoint's usage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lion_ray.core.finish_reason import Ending, ending
from lion_ray.gateway.calls import REFUSED, TokenChoice
from lion_ray.gateway.inside import error_inside
from lion_ray.gateway.limits import ReportedLimit
from lion_ray.gateway.sse import is_stream, joined
from lion_ray.gateway.usage import UNKNOWN, Usage, read_usage
from lion_ray.gateway.wire import GARBLED, Elsewhere, Transient, excerpt, loads, message_of, reported_limits, shorten

NAME_CHARS = 200
"""The most characters of a model's name or a finish reason; the rest is cut off."""
_PAGE = re.compile(rb"(?i)\s*<(!doctype html|html|head|body|title|script)\b")

_TELLING = re.compile(r"\W*([0-9]+|[A-Za-z])\W*")
"""A token from which a score or a lettered answer is read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion as the endpoint gave it."""

    text: str
    finish_reason: str
    model: str
    usage: Usage = UNKNOWN
    """The tokens that the endpoint reports."""
    limits: Mapping[str, ReportedLimit] | None = None
    """The endpoint's rate limits by kind (see `limits.KINDS`), if its headers report them."""
    logprobs: tuple[TokenChoice, ...] | None = None
    """As `Completion` has them."""


def parse_reply(data: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """The reply in the body of an HTTP 200.

    Raises TransportError if there is none: Transient(GARBLED), Elsewhere for a web page, or for an error inside a 200
    the error of its real status.
    """
    try:
        body = loads(data)
    except ValueError:
        body = joined(data) if is_stream(data) else None
        if body is None and _is_page(data, headers):
            raise Elsewhere(f"HTTP 200 with a web page: {excerpt(data)}") from None
        if body is None:
            what = "a stream that was cut off" if is_stream(data) else "not JSON"
            raise Transient(GARBLED, f"HTTP 200, but {what}: {excerpt(data)}") from None
    return read_reply(body, headers, data)


def read_reply(body: Any, headers: Mapping[str, str] | None = None, data: bytes = b"") -> Reply:
    """Like `parse_reply`, for a parsed body; errors quote `data`."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    finish = _finish(choice.get("finish_reason")) if isinstance(choice, dict) else ""
    if isinstance(choice, dict) and not isinstance(message, dict):
        if isinstance(choice.get("text"), str):
            message = {"content": choice["text"]}
        elif ending(finish) not in (Ending.UNKNOWN, Ending.FAILED):
            message = {}  # a blocked prompt, or no tokens left for an answer: a retry would give the same
    if not isinstance(body, dict):
        raise Transient(GARBLED, f"HTTP 200, but no choices: {excerpt(data)}")
    whole = isinstance(message, dict) and ending(finish) is Ending.COMPLETE and bool(message.get("content"))
    if (error := error_inside(body, choice, headers, whole=whole)) is not None:
        raise error
    if not isinstance(choice, dict) or not isinstance(message, dict):
        if not isinstance(body.get("promptFeedback") or body.get("prompt_feedback"), dict):
            raise Transient(GARBLED, f"HTTP 200, but no choices: {message_of(body) or excerpt(data)}")
        choice, message, finish = {}, {}, Ending.FILTERED.value  # Gemini's form of a blocked prompt
    if ending(finish) is Ending.FAILED:
        raise Transient(GARBLED, f"broken off by the endpoint: finish_reason '{shorten(finish)}'")
    text = _text(message.get("content"))
    if refused := _text(message.get("refusal")).strip():
        text, finish = text or refused, REFUSED
    return Reply(
        text=text,
        finish_reason=finish or "unknown",
        model=_text(body.get("model"))[:NAME_CHARS],
        usage=read_usage(body.get("usage")),
        limits=None if headers is None else reported_limits(headers),
        logprobs=_logprobs(choice.get("logprobs"), text),
    )


def _finish(reason: Any) -> str:
    """The endpoint's finish reason; in SGLang's own format it is an object with a type."""
    if isinstance(reason, dict):
        reason = reason.get("type")
    return _text(reason)[:NAME_CHARS]


def _is_page(data: bytes, headers: Mapping[str, str] | None) -> bool:
    kind = "" if headers is None else headers.get("content-type") or ""
    return "text/html" in kind.lower() or _PAGE.match(data) is not None


def _text(content: object) -> str:
    """A message's content as a string that can be stored; it may also be null or a list of parts."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        # Leave out parts with a model's thoughts, of type ``thinking`` or ``reasoning``.
        said = [part for part in parts if not re.search("think|reason", str(part.get("type") or ""))]
        content = "".join(str(part.get("text") or "") for part in said)
    text = content if isinstance(content, str) else ""
    # A lone surrogate cannot be stored as UTF-8.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(given: Any, text: str) -> tuple[TokenChoice, ...] | None:
    """A choice's ``logprobs`` (OpenAI's API reference, chat completions) for the tokens that `Completion` keeps.

    Returns None if there are none or their format is invalid: the answer itself was paid for.
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
                if not all(math.isfinite(value) for _, value in others):
                    return None  # JSON, and so the journal, cannot hold them
                others.sort(key=lambda other: -other[1])
                offset = len(data[:before].decode("utf-8", "ignore"))
                kept.append(TokenChoice(offset, _text(one["token"]), tuple(others)))
            # Count bytes, because a token may be part of a character.
            before += len(one.get("bytes") or one["token"].encode())
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    return tuple(kept)
