"""Joins an answer that arrived as a stream of server-sent events, although none was requested.

Invariant: a truncated stream is not an answer.

Sources: WHATWG's HTML standard, 9.2 (event streams); OpenAI's API reference, chat completion chunks. This module knows
no transport and no Reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lion_ray.gateway.wire import loads

_FIELD = re.compile(rb"\s*(?::|data:|event:|id:|retry:)")


def is_stream(data: bytes) -> bool:
    """Whether a body looks like an event stream."""
    return _FIELD.match(data) is not None


def joined(data: bytes) -> dict[str, Any] | None:
    """The equivalent non-streamed body; one with `error` if an event holds an error. Returns None if truncated."""
    body: dict[str, Any] = {}
    message: dict[str, Any] = {}
    tokens: list[Any] = []
    finish: Any = None
    ended = False
    for event in _events(data):
        if event is None:
            ended = True
            break
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            return {"error": event["error"]}
        for name in ("model", "usage"):
            if event.get(name):
                body[name] = event[name]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            continue
        if choice.get("error"):
            return {"error": choice["error"]}
        delta = choice.get("delta") or choice.get("message")
        for name, value in (delta if isinstance(delta, dict) else {}).items():
            if isinstance(value, str) and isinstance(message.get(name, ""), str):
                # The role is repeated in every chunk; all other texts are concatenated.
                message[name] = value if name == "role" else message.get(name, "") + value
            elif isinstance(value, list) and isinstance(message.get(name, []), list):
                message[name] = message.get(name, []) + value
        logprobs = choice.get("logprobs")
        listed = logprobs.get("content") if isinstance(logprobs, dict) else None
        tokens += listed if isinstance(listed, list) else []
        finish = choice.get("finish_reason") or finish
    if not (ended or finish) or not message:
        return None
    if isinstance(message.get("content"), list):
        message["content"] = _parts(message["content"])
    logs = {"content": tokens} if tokens else None
    return body | {"choices": [{"message": message, "finish_reason": finish, "logprobs": logs}]}


def _parts(parts: list[Any]) -> list[Any]:
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _events(data: bytes) -> Iterator[Any]:
    """Each event's JSON; None for the end marker."""
    for block in re.split(rb"(?:\r\n|\n|\r){2,}", data):
        lines = [line[5:].removeprefix(b" ") for line in re.split(rb"\r\n|\n|\r", block) if line.startswith(b"data:")]
        for one in ([b"\n".join(lines)], lines):
            if [line.strip() for line in one] == [b"[DONE]"]:
                yield None
                break
            try:
                events = [loads(line) for line in one if line.strip() not in (b"", b"[DONE]")]
            except ValueError:
                continue  # some servers put no empty lines between events: then each line is an event
            yield from events
            if any(line.strip() == b"[DONE]" for line in one):
                yield None
            break
