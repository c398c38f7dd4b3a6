"""The request for a call: applies the endpoint's configuration, and builds the JSON body with the endpoint's names.

Invariant: every configured change of a request's content is in the call that `as_sent` returns, and so in its key.

Source: OpenAI's API reference, chat completions. This module opens no connection and knows no key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from lion_ray.config import EndpointConfig
from lion_ray.gateway.calls import Call, Message
from lion_ray.gateway.faults import MAX_TOKENS_FIELDS, refuses_field
from lion_ray.gateway.wire import Refused


def as_sent(call: Call, config: EndpointConfig) -> Call:
    """The call with the endpoint's configuration applied; its key is computed from this, so it names what is bought."""
    sent: dict[str, Any] = {}
    if call.seed is not None and not config.send_seed:
        sent["seed"] = None
    if call.json_schema is not None and not config.json_schema:
        sent["json_schema"] = None
    if config.omit or config.extra_body:
        sent |= {"omit": tuple(sorted(config.omit)), "extra": config.extra_body}
    if config.system_role != "system" and any(message["role"] == "system" for message in call.messages):
        sent["messages"] = _as_role(call.messages, config.system_role)
    return dataclasses.replace(call, **sent) if sent else call


def _as_role(messages: tuple[Message, ...], role: str) -> tuple[Message, ...]:
    """Give system messages another role; as the user's they are merged into the start of the user's next turn."""
    if role != "user":
        return tuple(message | {"role": role} if message["role"] == "system" else message for message in messages)
    turns: list[Message] = []
    before: list[str] = []
    for message in messages:
        if message["role"] == "system":
            before.append(message["content"])
        elif before and message["role"] == "user":
            turns.append(message | {"content": "\n\n".join([*before, message["content"]])})
            before = []
        else:
            turns.append(message)
    if before:
        turns.append({"role": "user", "content": "\n\n".join(before)})
    return tuple(turns)


def wire_body(call: Call, config: EndpointConfig) -> dict[str, Any]:
    """The JSON body with the endpoint's field names; `call` is a result of `as_sent`."""
    body = call.body(config.model)
    body[config.max_tokens_field] = body.pop("max_tokens")
    if (schema := body.pop("json_schema", None)) is not None:
        # OpenAI allows 64 letters, digits, - and _ in a schema's name.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title", "answer")))[:64] or "answer"
        json_schema = {"name": name, "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return body


class LengthField:
    """The endpoint's name of the length limit's field: the configured one, until the endpoint refuses it."""

    def __init__(self, name: str, config: EndpointConfig, say: Callable[[str], object]) -> None:
        """For endpoint `name`; `say` logs a change of the field."""
        self._endpoint, self._say = name, say
        self._name: str = config.max_tokens_field
        self._unknown: set[str] = set()

    def rename(self, body: dict[str, Any]) -> dict[str, Any]:
        """Rename the field in the body, in place, to the current name."""
        used = _length_field_in(body)
        if used is not None and used != self._name:
            body[self._name] = body.pop(used)
        return body

    def found(self, refused: Refused, body: dict[str, Any]) -> bool:
        """Whether a refusal of this body is about the field's name, so that the other name should be tried."""
        used = _length_field_in(body)
        if refused.fault != "parameter" or used is None or not refuses_field(refused.detail, used):
            return False
        other = next(name for name in MAX_TOKENS_FIELDS if name != used)
        if other in self._unknown:
            return False
        if used not in self._unknown:
            self._unknown.add(used)
            self._name = other
            self._say(
                f"it accepts {other}, not {used}: set endpoints.{self._endpoint}.max_tokens_field: {other} to avoid "
                "refused requests"
            )
        return True


def _length_field_in(body: dict[str, Any]) -> str | None:
    return next((name for name in MAX_TOKENS_FIELDS if name in body), None)
