"""What an endpoint is sent for a call: the call as its config has it, and the JSON body under the endpoint's names.

Invariant: whatever a config changes about what is asked is in the call that `as_sent` returns, and so in its key.

Source: OpenAI's API reference, chat completions. This module opens no connection and knows no key.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lion_ray.config import EndpointConfig
from lion_ray.gateway.calls import Call, Message


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


def wire_body(call: Call, config: EndpointConfig, max_tokens_field: str | None = None) -> dict[str, Any]:
    """The JSON body under the names the endpoint uses; `call` as `as_sent` returns it. `max_tokens_field`: where it
    was found to be another one than the config's."""
    body = call.body(config.model)
    body[max_tokens_field or config.max_tokens_field] = body.pop("max_tokens")
    if (schema := body.pop("json_schema", None)) is not None:
        # OpenAI allows 64 letters, digits, - and _ in a schema's name.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title", "answer")))[:64] or "answer"
        json_schema = {"name": name, "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return body
