"""Interprets failed requests: statuses, headers and error bodies. `reply` parses answers; `request` builds requests.

Invariants:
- The type of TransportError is all that the client knows about a failure.
- Plain functions of bytes, statuses and headers, independent of an HTTP library, so that all transports agree.

This module opens no connection and knows no key.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import orjson

from lion_ray.core.addresses import without_secrets
from lion_ray.gateway.faults import Fault, fault_of, is_model, is_one_requests, is_quota
from lion_ray.gateway.limits import KINDS, ReportedLimit

TIMED_OUT = "timed out"
SERVER_ERROR = "server error"
GARBLED = "garbled answer"
CONNECTION_LOST = "connection lost"
UNREACHABLE = "unreachable"
TOO_LARGE = "reply too large"
REJECTED = "rejected by the endpoint"

LOST_BEHIND = frozenset({408, 502, 504, *range(520, 528), 598, 599})
"""Statuses with which a gateway reports that it lost the server behind it, which may have done the work.

RFC 9110 has 408, 502 and 504, Cloudflare 520 to 527, and other proxies 598 and 599.
"""

_DETAIL_CHARS = 300
_READ_CHARS = 10_000
"""How much of a text is read before it is shortened, so that a very long text is cheap."""
_LIMIT, _REMAINING, _RESET = "x-ratelimit-limit-", "x-ratelimit-remaining-", "x-ratelimit-reset-"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class TransportError(Exception):
    """Base of the errors of `Transport.chat`. `detail` is one line for people."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RateLimited(TransportError):  # noqa: N818 - it names an answer, not a mistake
    """The endpoint requests a pause of `retry_after_s` seconds, or None if it names no time."""

    def __init__(
        self, retry_after_s: float | None, detail: str = "", limits: Mapping[str, ReportedLimit] | None = None
    ) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.limits = limits


class Transient(TransportError):  # noqa: N818
    """A retry may succeed, after `retry_after_s` seconds if the endpoint named a time."""

    def __init__(
        self, reason: str, detail: str, retry_after_s: float | None = None, *, status: int | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.status = status

    @property
    def uncertain(self) -> bool:
        """Whether the endpoint may have done the work, and may bill it."""
        return self.reason in (TIMED_OUT, CONNECTION_LOST, GARBLED) or self.status in LOST_BEHIND


class Unreachable(Transient):
    """No connection was established."""

    def __init__(self, detail: str) -> None:
        super().__init__(UNREACHABLE, detail)


class Elsewhere(Transient):
    """A reply that is not from the API: a web page or a redirect. If the endpoint has never answered, the address is
    wrong; otherwise a gateway in between may have a fault."""

    def __init__(self, detail: str) -> None:
        super().__init__(GARBLED, detail)

    @property
    def uncertain(self) -> bool:
        return False


class Rejected(TransportError):  # noqa: N818
    """This request can never succeed; others may.

    `of_its_own`: because of its content. Otherwise the endpoint does not say why, and may reject every request.
    `answered`: the endpoint did the work, and may bill it.
    """

    def __init__(self, reason: str, detail: str, *, of_its_own: bool = True, answered: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.of_its_own = of_its_own
        self.answered = answered


class Refused(TransportError):  # noqa: N818
    """The endpoint refuses every request, because of its `fault`.

    `sure` is False if only the message's words say so, which may be about this request after all.
    """

    def __init__(self, fault: Fault, detail: str, *, sure: bool = True) -> None:
        super().__init__(detail)
        self.fault: Fault = fault
        self.sure = sure


def status_error(status: int, headers: Mapping[str, str], text: str) -> TransportError:
    """The error for a status other than 200. `headers` is case-insensitive; `text` is the body without the key."""
    try:
        body: Any = loads(text.encode("utf-8", "replace"))
    except ValueError:
        body = None
    return error_of(status, headers, body, text)


def error_of(status: int, headers: Mapping[str, str], body: Any, text: str = "") -> TransportError:
    """Like `status_error`, for a parsed body; also for an error inside another answer, with its own status."""
    if status < 400:
        where = headers.get("location")
        to = f" (redirects to {shorten(without_secrets(where))}, which is not followed)" if where else ""
        return Elsewhere(f"HTTP {status} is not an answer{to}")
    if isinstance(body, list) and body:
        body = body[0]  # Gemini's
    message = message_of(body) or shorten(text)
    error = body.get("error", body) if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    codes = {
        str(error.get(name))[:100] for name in ("code", "type", "status") if isinstance(error.get(name), str | int)
    }
    param = error.get("param")
    detail = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    lower = message.lower()
    if status in (408, 409, 425) or status >= 500:
        return Transient(SERVER_ERROR, detail, retry_after(headers), status=status)
    if status == 407:
        return Unreachable(f"{detail or status}: the HTTP proxy requires a user and a password")
    if status == 402 or (status == 429 and headers.get("retry-after") is None and is_quota(codes, message)):
        return Refused("quota", detail)
    if status in (403, 429) and is_quota(codes, ""):
        return Refused("quota", detail)
    if status == 429:
        if lower.startswith("request too large"):
            # More tokens than a whole minute's limit: waiting would not help.
            return Rejected(REJECTED, detail)
        return RateLimited(retry_after(headers), detail, reported_limits(headers))
    if status in (401, 403):
        if status == 403 and ("moderation" in lower or "flagged" in lower):
            # Some gateways use 403 to refuse one input, not a key.
            return Rejected(REJECTED, detail)
        if is_quota(codes, message):
            return Refused("quota", detail)
        return Refused("model" if is_model(codes, message) else "key", detail)
    if status in (404, 405, 410):
        return Refused("model" if "model" in lower or is_model(codes, "") else "address", detail)
    if is_one_requests(codes, message):
        return Rejected(REJECTED, detail)
    fault = fault_of(codes, message, param if isinstance(param, str) else "")
    if fault is None:
        return Rejected(REJECTED, detail, of_its_own=False)
    # An account's credit may end during a run, so earlier answers are no evidence against that.
    return Refused(fault, detail, sure=fault in ("key", "quota"))


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the endpoint asks to wait (RFC 9110, 10.2.3; milliseconds in OpenAI's retry-after-ms), or None.

    A date is relative to the answer's own Date, because the endpoint's clock may differ from ours.
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


def reported_limits(headers: Mapping[str, str]) -> dict[str, ReportedLimit] | None:
    """The rate limits in an answer's x-ratelimit-* headers (OpenAI's API reference, rate limits), or None."""
    found = {}
    for kind in KINDS:
        limit, remaining = headers.get(_LIMIT + kind), headers.get(_REMAINING + kind)
        if limit is None or remaining is None:
            continue
        most, left = _number(limit), _number(remaining)
        if most is not None and left is not None:
            found[kind] = ReportedLimit(most, left, duration(headers.get(_RESET + kind)))
    return found or None


def duration(value: str | None) -> float | None:
    """Seconds in a duration in Go's format (``6m0s``, ``1h2m3.5s``, ``12ms``) or a plain number; None for others."""
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    if re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", value) is None:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|s)", value))


def in_words(seconds: float) -> str:
    """A duration for people, in the largest unit of which it has at least two."""
    for unit, length in (("years", 365 * 86_400), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def redact(data: bytes, key: str | None) -> bytes:
    """`data` without the API key, which an endpoint may echo: plain, or escaped for JSON, HTML or URLs."""
    if not key:
        return data
    data = data.replace(key.encode(), b"***")
    escaped = not _ESCAPED_IN_JSON.isdisjoint(key) or any(mark in data for mark in _ESCAPES)
    return _escaped(key).sub(b"***", data) if escaped else data


_ESCAPED_IN_JSON = frozenset('"\\')
_ESCAPES = (b"\\u00", b"\\U00", b"\\/", b"&#", b"%", b"\\x")


@lru_cache(maxsize=16)
def _escaped(key: str) -> re.Pattern[bytes]:
    """Matches the key with any of its characters escaped; backslashes may be doubled, as for JSON inside JSON."""

    def forms(byte: int) -> bytes:
        # Each form begins with a different character, for a quick search, and repeats are bounded: a body of
        # backslashes must not take quadratic time.
        digits = b"".join(b"[%c%c]" % (d, d - 32) if d >= 97 else b"%c" % d for d in b"%02x" % byte)
        found = [
            re.escape(bytes([byte])),
            rb"\\\\{0,14}+(?:[uU]00|x)" + digits,
            rb"&#(?:[xX]0{0,8}" + digits + rb"|0{0,8}%d);?" % byte,
            rb"%(?:25){0,8}" + digits,
        ]
        if byte == ord("\\"):
            found.append(rb"\\{2,16}")
        elif byte in b"/\"'":
            found.append(rb"\\\\{0,14}+" + re.escape(bytes([byte])))
        return b"(?:" + b"|".join(found) + b")"

    return re.compile(b"".join(map(forms, key.encode())))


def redact_text(text: str, key: str | None) -> str:
    """`text` without the API key."""
    return redact(text.encode("utf-8", "replace"), key).decode("utf-8", "replace")


def shorten(text: str) -> str:
    """One line of at most 300 characters that can be stored: without lone surrogates."""
    line = " ".join(text[:_READ_CHARS].encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())
    return line if len(line) <= _DETAIL_CHARS else line[: _DETAIL_CHARS - 1] + "…"


def loads(data: bytes) -> Any:
    """Parse JSON. Raises ValueError if it is invalid or nested too deeply.

    orjson refuses lone surrogates, which some endpoints send escaped; such an answer was paid for too.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def excerpt(data: bytes) -> str:
    """One line of an unexpected body."""
    return shorten(data[:_READ_CHARS].decode("utf-8", "replace"))


def message_of(body: Any) -> str:
    """The message in an error's body, in the formats that endpoints use; "" if there is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error") or body
    if isinstance(error, dict):
        names = ("message", "detail", "msg", "error_msg", "status_msg", "error_description", "title")
        message = next((error[name] for name in names if error.get(name)), "")
        metadata = error.get("metadata")
        # OpenRouter: the message of the provider behind it.
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        if isinstance(raw, str) and raw:
            message = f"{message}: {raw}"
        error = message or (error if error is not body else "")
    if isinstance(error, str):
        return shorten(error)
    try:
        return shorten(json.dumps(error))
    except (RecursionError, ValueError):
        return "an error that is nested too deeply"


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date(value: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(value or "")
        # HTTP dates are in UTC even if they do not say so.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
