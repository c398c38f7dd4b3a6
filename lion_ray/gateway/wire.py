"""What a failure means: statuses, headers and errors' bodies. Answers are `reply`'s, and requests `request`'s.

Invariants:
- The kind of TransportError is the whole of the client's knowledge about what went wrong.
- Plain functions of bytes, statuses and headers that know nothing of an HTTP library, so every transport agrees.

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
from lion_ray.gateway.limits import KINDS, Told

TIMED_OUT = "timed out"
SERVER_ERROR = "server error"
GARBLED = "garbled answer"
CONNECTION_LOST = "connection lost"
UNREACHABLE = "unreachable"
TOO_LARGE = "reply too large"
REJECTED = "rejected by the endpoint"

LOST_BEHIND = frozenset({408, 502, 504, *range(520, 528), 598, 599})
"""Statuses by which a gateway says that it lost the server behind it, which may have done the work.

RFC 9110 has 408, 502 and 504, Cloudflare 520 to 527, and other proxies 598 and 599.
"""

_DETAIL_CHARS = 300
_READ_CHARS = 10_000
"""Of a text that is shortened, so that one of many megabytes costs nothing."""
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


class Elsewhere(Transient):
    """Something answered that is not the API: a web page, a redirect, nothing. Where no answer ever came, the address
    is wrong; else a gateway in between may be in trouble."""

    def __init__(self, detail: str) -> None:
        super().__init__(GARBLED, detail)

    @property
    def uncertain(self) -> bool:
        return False


class Rejected(TransportError):  # noqa: N818
    """This request will never succeed; others may.

    `of_its_own`: for what it holds. Else the endpoint does not say why, and may reject all alike. `answered`: the
    endpoint had done the work, and may charge for it.
    """

    def __init__(self, reason: str, detail: str, *, of_its_own: bool = True, answered: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.of_its_own = of_its_own
        self.answered = answered


class Refused(TransportError):  # noqa: N818
    """The endpoint refuses every request, because of its `fault`.

    `sure` is False where only a message's words say so, and they may be about this request after all.
    """

    def __init__(self, fault: Fault, detail: str, *, sure: bool = True) -> None:
        super().__init__(detail)
        self.fault: Fault = fault
        self.sure = sure


def status_error(status: int, headers: Mapping[str, str], text: str) -> TransportError:
    """What a status other than 200 means. `headers` is case-insensitive; `text` is the body, free of the key."""
    try:
        body: Any = loads(text.encode("utf-8", "replace"))
    except ValueError:
        body = None
    return error_of(status, headers, body, text)


def error_of(status: int, headers: Mapping[str, str], body: Any, text: str = "") -> TransportError:
    """As `status_error`, of a body that was parsed; also of an error inside another answer, with its own status."""
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
        return Unreachable(f"{detail or status}: the proxy on the way asks for a user and a password")
    if status == 402 or (status == 429 and headers.get("retry-after") is None and is_quota(codes, message)):
        return Refused("quota", detail)
    if status in (403, 429) and is_quota(codes, ""):
        return Refused("quota", detail)
    if status == 429:
        if lower.startswith("request too large"):
            # More tokens than a whole minute's limit: waiting would never end.
            return Rejected(REJECTED, detail)
        return RateLimited(retry_after(headers), detail, told_limits(headers))
    if status in (401, 403):
        if status == 403 and ("moderation" in lower or "flagged" in lower):
            # Some gateways answer so to one input, not to a key.
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
    # An account runs dry in the middle of a run; that answers came before says nothing about it.
    return Refused(fault, detail, sure=fault in ("key", "quota"))


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


def in_words(seconds: float) -> str:
    """A time as people say it: the largest unit of which there are two."""
    for unit, length in (("years", 365 * 86_400), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def redact(data: bytes, key: str | None) -> bytes:
    """`data` without the API key, should an endpoint echo it: as it is, or escaped as JSON, HTML or URLs allow."""
    if not key:
        return data
    data = data.replace(key.encode(), b"***")
    return _escaped(key).sub(b"***", data) if any(mark in data for mark in _ESCAPES) else data


_ESCAPES = (b"\\u00", b"\\U00", b"\\/", b"&#", b"%", b"\\x")


@lru_cache(maxsize=16)
def _escaped(key: str) -> re.Pattern[bytes]:
    """The key with any of its characters escaped; backslashes may be doubled, where JSON is quoted in JSON."""

    def forms(byte: int) -> bytes:
        # Each begins with a letter of its own, by which a search is quick, and repeats have an end: a body of nothing
        # but backslashes must not take the square of its length.
        digits = b"".join(b"[%c%c]" % (d, d - 32) if d >= 97 else b"%c" % d for d in b"%02x" % byte)
        found = [
            re.escape(bytes([byte])),
            rb"\\\\{0,14}+(?:[uU]00|x)" + digits,
            rb"&#(?:[xX]0{0,8}" + digits + rb"|0{0,8}%d);?" % byte,
            rb"%(?:25){0,8}" + digits,
        ]
        if byte in b"/\"\\'":
            found.append(rb"\\\\{0,14}+" + re.escape(bytes([byte])))
        return b"(?:" + b"|".join(found) + b")"

    return re.compile(b"".join(map(forms, key.encode())))


def redact_text(text: str, key: str | None) -> str:
    """`text` without the API key."""
    return redact(text.encode("utf-8", "replace"), key).decode("utf-8", "replace")


def shorten(text: str) -> str:
    """One line of at most 300 characters, which can be stored: no half of a surrogate pair."""
    line = " ".join(text[:_READ_CHARS].encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())
    return line if len(line) <= _DETAIL_CHARS else line[: _DETAIL_CHARS - 1] + "…"


def loads(data: bytes) -> Any:
    """Parse JSON; ValueError where it is none, or nested too deep.

    orjson refuses lone surrogates, which some endpoints send escaped; the text is still paid for.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data)
        except RecursionError:
            raise ValueError("nested too deep") from None


def excerpt(data: bytes) -> str:
    """One line of a body that is not what it should be."""
    return shorten(data[:_READ_CHARS].decode("utf-8", "replace"))


def message_of(body: Any) -> str:
    """The message in an error's body, in the shapes that endpoints use; "" where there is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error") or body
    if isinstance(error, dict):
        names = ("message", "detail", "msg", "error_msg", "status_msg", "error_description", "title")
        said = next((error[name] for name in names if error.get(name)), "")
        metadata = error.get("metadata")
        # OpenRouter: what the provider behind it said.
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        if isinstance(raw, str) and raw:
            said = f"{said}: {raw}"
        error = said or (error if error is not body else "")
    if isinstance(error, str):
        return shorten(error)
    try:
        return shorten(json.dumps(error))
    except (RecursionError, ValueError):
        return "an error that is nested too deep"


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date(value: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(value or "")
        # HTTP dates are in UTC, also where they do not say so.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
