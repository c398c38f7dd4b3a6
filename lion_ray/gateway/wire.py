"""What chat completions look like on the wire: the body to send, and what a failure means; answers are `reply`'s.

Invariants:
- The kind of TransportError is the whole of the client's knowledge about what went wrong.
- Plain functions of bytes, statuses and headers that know nothing of an HTTP library, so every transport agrees.

This module opens no connection and knows no key.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from lion_ray.config import EndpointConfig
from lion_ray.gateway.calls import Call
from lion_ray.gateway.limits import KINDS, Told

TIMED_OUT = "timed out"
SERVER_ERROR = "server error"
GARBLED = "garbled answer"
CONNECTION_LOST = "connection lost"
UNREACHABLE = "unreachable"
REJECTED = "rejected by the endpoint"

Fault = Literal["key", "model", "address", "quota"]

LOST_BEHIND = frozenset({408, 502, 504, *range(520, 528), 598, 599})
"""Statuses by which a gateway says that it lost the server behind it, which may have done the work.

RFC 9110 has 408, 502 and 504, Cloudflare 520 to 527, and other proxies 598 and 599.
"""

_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_DETAIL_CHARS = 300
_LIMIT, _REMAINING, _RESET = "x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class TransportError(Exception):
    """Base of what `Transport.chat` raises. `detail` is one line for people."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RateLimited(TransportError):  # noqa: N818 - it names an answer, not a mistake
    """The endpoint asks for a pause: `retry_after_s` seconds, or None where it does not say how long."""

    def __init__(self, retry_after_s: float | None, detail: str = "", limits: Mapping[str, Told] | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.limits = limits


class Transient(TransportError):  # noqa: N818
    """The same request may succeed later; `retry_after_s` where the endpoint said when."""

    def __init__(
        self, reason: str, detail: str, retry_after_s: float | None = None, *, status: int | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.status = status

    @property
    def uncertain(self) -> bool:
        """Whether the endpoint may have done the work, and charge for it."""
        return self.reason in (TIMED_OUT, CONNECTION_LOST, GARBLED) or self.status in LOST_BEHIND


class Unreachable(Transient):
    """No connection came about."""

    def __init__(self, detail: str) -> None:
        super().__init__(UNREACHABLE, detail)


class Rejected(TransportError):  # noqa: N818
    """This request will never succeed; others may."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Refused(TransportError):  # noqa: N818
    """The endpoint refuses every request, because of its `fault`: key, model, address or quota."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = fault


def as_sent(call: Call, config: EndpointConfig) -> Call:
    """The call without what the endpoint is not sent; its key is taken from this, so it names what was bought."""
    seed = call.seed if config.send_seed else None
    json_schema = call.json_schema if config.json_schema else None
    if seed == call.seed and json_schema is call.json_schema:
        return call
    return dataclasses.replace(call, seed=seed, json_schema=json_schema)


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


def status_error(status: int, headers: Mapping[str, str], text: str) -> TransportError:
    """What a status of 400 or more means. `headers` is case-insensitive; `text` is the body, free of the key."""
    try:
        body: Any = loads(text.encode("utf-8", "replace"))
    except ValueError:
        body = None
    message = message_of(body) or shorten(text)
    error = body.get("error") if isinstance(body, dict) else None
    codes = {str(error.get("code")), str(error.get("type"))} if isinstance(error, dict) else set()
    detail = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    lower = message.lower()
    if status == 402 or (status in (403, 429) and codes & _QUOTA):
        return Refused("quota", detail)
    if status == 429:
        if lower.startswith("request too large"):
            # More tokens than a whole minute's limit: waiting would never end.
            return Rejected(REJECTED, detail)
        return RateLimited(retry_after(headers), detail, told_limits(headers))
    if status == 403 and ("moderation" in lower or "flagged" in lower):
        # Some gateways answer so to one input, not to a key.
        return Rejected(REJECTED, detail)
    if status in (401, 403):
        return Refused("key", detail)
    if status in (404, 405):
        return Refused("model" if "model" in lower or "model_not_found" in codes else "address", detail)
    if status in (408, 409, 425) or status >= 500:
        return Transient(SERVER_ERROR, detail, retry_after(headers), status=status)
    return Rejected(REJECTED, detail)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the endpoint asks to wait (RFC 9110, 10.2.3; milliseconds in OpenAI's retry-after-ms), or None.

    A date is measured from the answer's own Date, as the endpoint's clock may differ from ours.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    until = _date(value)
    if until is None:
        return None
    sent = _date(headers.get("date"))
    if sent is None:
        sent = time.time() if now is None else now
    return max(0.0, until - sent)


def told_limits(headers: Mapping[str, str]) -> dict[str, Told] | None:
    """The rate limits in an answer's x-ratelimit-* headers (OpenAI's API reference, rate limits), or None."""
    found = {}
    for kind in KINDS:
        limit, remaining = headers.get(_LIMIT + kind), headers.get(_REMAINING + kind)
        if limit is None or remaining is None:
            continue
        most, left = _number(limit), _number(remaining)
        if most is not None and left is not None:
            found[kind] = Told(most, left, duration(headers.get(_RESET + kind)))
    return found or None


def duration(value: str | None) -> float | None:
    """Seconds in a duration as Go writes it (``6m0s``, ``1h2m3.5s``, ``12ms``), or in a plain number; None for none."""
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    if re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", value) is None:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|s)", value))


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, where no proxy of the environment can reach."""
    return is_loopback_host(urlsplit(url).hostname or "")


def is_loopback_host(host: str) -> bool:
    """Whether what listens at a host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(address: str) -> str:
    """An address without a user, password or query that someone may have put into it."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def redact(data: bytes, key: str | None) -> bytes:
    """`data` without the API key, should an endpoint echo it."""
    return data.replace(key.encode(), b"***") if key else data


def redact_text(text: str, key: str | None) -> str:
    """`text` without the API key."""
    return redact(text.encode("utf-8", "replace"), key).decode("utf-8", "replace")


def shorten(text: str) -> str:
    """One line of at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _DETAIL_CHARS else line[: _DETAIL_CHARS - 1] + "…"


def loads(data: bytes) -> Any:
    """Parse JSON. orjson refuses lone surrogates, which some endpoints send escaped; the text is still paid for."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def excerpt(data: bytes) -> str:
    """One line of a body that is not what it should be."""
    return shorten(data.decode("utf-8", "replace"))


def message_of(body: Any) -> str:
    """The message in an error's body, in the shapes that endpoints use; "" where there is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return shorten(error if isinstance(error, str) else json.dumps(error))


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date(value: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except ValueError:
        return None
    # HTTP dates are in UTC, also where they do not say so.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
