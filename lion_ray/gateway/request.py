"""What an endpoint is sent for a call: the call as its config has it, and the JSON body under the endpoint's names.

Invariant: whatever a config changes about what is asked is in the call that `as_sent` returns, and so in its key.

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
    """The call as the endpoint is sent it; its key is taken from this, so it names what was bought."""
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
    """System messages under another role; as the user's they are put before what the user says next, as one turn."""
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
    """The JSON body under the names the endpoint uses; `call` as `as_sent` returns it."""
    body = call.body(config.model)
    body[config.max_tokens_field] = body.pop("max_tokens")
    if (schema := body.pop("json_schema", None)) is not None:
        # OpenAI allows 64 letters, digits, - and _ in a schema's name.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title", "answer")))[:64] or "answer"
        json_schema = {"name": name, "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return body


class LengthField:
    """The name under which an endpoint takes the length limit: the config's, until the endpoint refuses it."""

    def __init__(self, name: str, config: EndpointConfig, say: Callable[[str], object]) -> None:
        """For the endpoint called `name`; `say` tells the user what was found."""
        self._endpoint, self._say = name, say
        self._name: str = config.max_tokens_field
        self._unknown: set[str] = set()

    def rename(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body, changed in place to the name that is known now."""
        used = _length_field_in(body)
        if used is not None and used != self._name:
            body[self._name] = body.pop(used)
        return body

    def found(self, refused: Refused, body: dict[str, Any]) -> bool:
        """Whether a refusal of this body is about the name, and the other one is worth sending."""
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
                f"it takes {other}, not {used}: set endpoints.{self._endpoint}.max_tokens_field: {other} to save the "
                "refused requests"
            )
        return True


def _length_field_in(body: dict[str, Any]) -> str | None:
    return next((name for name in MAX_TOKENS_FIELDS if name in body), None)
