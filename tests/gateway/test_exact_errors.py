"""What each failed request becomes, in full: its kind, its words, and everything that decides what comes next."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from multidict import CIMultiDict

from lion_ray.gateway import wire
from lion_ray.gateway.limits import ReportedLimit
from lion_ray.gateway.wire import Elsewhere, RateLimited, Refused, Rejected, Transient, TransportError, Unreachable


def fields(error: TransportError) -> tuple[Any, ...]:
    """Everything that a caller can see of an error."""
    return type(error), vars(error), error.args


def same(found: TransportError, expected: TransportError) -> None:
    assert fields(found) == fields(expected)


LIMITS = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}
TOLD = {"requests": ReportedLimit(60.0, 0.0, 1.0)}
CREDIT = "Your account's balance is too low"
KEY = "Incorrect API key provided: sk-…"
MODEL = "The model `m` does not exist"


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (200, {}, None, Elsewhere("HTTP 200 is not an answer")),
        (399, {}, None, Elsewhere("HTTP 399 is not an answer")),
        (
            302,
            {"location": "https://user:secret@there.test/v1?key=k"},
            None,
            Elsewhere("HTTP 302 is not an answer (redirects to https://there.test/v1, which is not followed)"),
        ),
        (400, {}, None, Rejected("rejected by the endpoint", "HTTP 400", of_its_own=False)),
        (
            400,
            {},
            [{"error": {"message": "no"}}, {"error": {"message": "other"}}],
            Rejected("rejected by the endpoint", "HTTP 400: no", of_its_own=False),
        ),
        *(
            (status, {"retry-after": "3"}, {"error": "busy"}, Transient(
                "server error", f"HTTP {status}: busy", 3.0, status=status
            ))
            for status in (408, 409, 425, 500, 501, 502, 529, 599)
        ),
        (500, {}, [], Transient("server error", "HTTP 500: []", status=500)),
        (500, {}, "odd", Transient("server error", 'HTTP 500: "odd"', status=500)),
        (407, {}, {"error": "who?"}, Unreachable("HTTP 407: who?: the HTTP proxy requires a user and a password")),
        (407, {}, None, Unreachable("HTTP 407: the HTTP proxy requires a user and a password")),
        (402, {}, {"error": "pay"}, Refused("quota", "HTTP 402: pay")),
        (402, {"retry-after": "1"}, {"error": "pay"}, Refused("quota", "HTTP 402: pay")),
        (429, {}, {"error": CREDIT}, Refused("quota", f"HTTP 429: {CREDIT}")),
        # It says when to come back, so its words about the quota are about a limit that renews; its code is not.
        (429, {"retry-after": "9"}, {"error": CREDIT}, RateLimited(9.0, f"HTTP 429: {CREDIT}")),
        (
            429,
            {"retry-after": "9"},
            {"error": {"message": "no", "code": "insufficient_quota"}},
            Refused("quota", "HTTP 429: no"),
        ),
        (403, {}, {"error": {"message": "no", "type": "insufficient_quota"}}, Refused("quota", "HTTP 403: no")),
        (403, {}, {"error": {"message": "no", "status": "billing"}}, Refused("quota", "HTTP 403: no")),
        (429, {}, {"error": {"message": "no", "code": 1113}}, Refused("quota", "HTTP 429: no")),
        (429, LIMITS, {"error": "slow down"}, RateLimited(None, "HTTP 429: slow down", TOLD)),
        (429, {"retry-after": "2"} | LIMITS, None, RateLimited(2.0, "HTTP 429", TOLD)),
        (
            429,
            {"retry-after": "2"},
            {"error": "Request too large for m"},
            Rejected("rejected by the endpoint", "HTTP 429: Request too large for m"),
        ),
        (
            403,
            {},
            {"error": "Flagged as violence"},
            Rejected("rejected by the endpoint", "HTTP 403: Flagged as violence"),
        ),
        (403, {}, {"error": "Moderation"}, Rejected("rejected by the endpoint", "HTTP 403: Moderation")),
        (401, {}, {"error": "flagged"}, Refused("key", "HTTP 401: flagged")),
        (401, {}, {"error": "moderation"}, Refused("key", "HTTP 401: moderation")),
        (401, {}, {"error": CREDIT}, Refused("quota", f"HTTP 401: {CREDIT}")),
        (401, {}, {"error": {"message": "no", "code": "billing"}}, Refused("quota", "HTTP 401: no")),
        (401, {}, {"error": KEY}, Refused("key", f"HTTP 401: {KEY}")),
        (403, {}, {"error": MODEL}, Refused("model", f"HTTP 403: {MODEL}")),
        (403, {}, {"error": {"message": "no", "code": "model_not_found"}}, Refused("model", "HTTP 403: no")),
        (403, {}, None, Refused("key", "HTTP 403")),
        *((status, {}, {"error": "no such MODEL"}, Refused("model", f"HTTP {status}: no such MODEL"))
          for status in (404, 405, 410)),
        *((status, {}, {"error": "nothing here"}, Refused("address", f"HTTP {status}: nothing here"))
          for status in (404, 405, 410)),
        (404, {}, {"error": {"message": "no", "code": "model_not_found"}}, Refused("model", "HTTP 404: no")),
        (404, {}, {"error": "no endpoints found for x"}, Refused("address", "HTTP 404: no endpoints found for x")),
        (413, {}, {"error": "prompt too large"}, Rejected(wire.REJECTED, "HTTP 413: prompt too "
         "large", of_its_own=False)),
        (400, {}, {"error": "prompt is too long"}, Rejected(wire.REJECTED, "HTTP 400: prompt is too long")),
        (
            400,
            {},
            {"error": {"message": "no", "code": "context_length_exceeded"}},
            Rejected("rejected by the endpoint", "HTTP 400: no"),
        ),
        (400, {}, {"error": KEY}, Refused("key", f"HTTP 400: {KEY}", sure=True)),
        (400, {}, {"error": CREDIT}, Refused("quota", f"HTTP 400: {CREDIT}", sure=True)),
        (400, {}, {"error": MODEL}, Refused("model", f"HTTP 400: {MODEL}", sure=False)),
        (
            400,
            {},
            {"error": {"message": "is not supported", "param": "temperature"}},
            Refused("parameter", "HTTP 400: is not supported", sure=False),
        ),
        (
            400,
            {},
            {"error": {"message": "is not supported", "param": ["temperature"]}},
            Rejected("rejected by the endpoint", "HTTP 400: is not supported", of_its_own=False),
        ),
        (
            400,
            {},
            {"message": "no", "code": "unsupported_parameter"},
            Refused("parameter", "HTTP 400: no", sure=False),
        ),
        (
            400,
            {},
            {"error": {"message": "no", "code": "x" * 100 + "billing", "type": None, "status": ["billing"]}},
            Rejected("rejected by the endpoint", "HTTP 400: no", of_its_own=False),
        ),
    ],
)  # fmt: skip
def test_every_error_in_full(status: int, headers: dict[str, str], body: Any, expected: TransportError) -> None:
    text = "" if body is None else json.dumps(body)
    same(wire.error_of(status, CIMultiDict(headers), body, text), expected)
    same(wire.status_error(status, CIMultiDict(headers), text), expected)


def test_a_body_that_is_no_json_is_quoted() -> None:
    same(wire.status_error(500, {}, "it  is\nbroken"), Transient("server error", "HTTP 500: it is broken", status=500))
    same(wire.status_error(404, {}, "no such model"), Refused("model", "HTTP 404: no such model"))
    same(wire.error_of(500, {}, {"error": "said"}, "text"), Transient("server error", "HTTP 500: said", status=500))
    half = wire.status_error(500, {}, '{"error": "half a pair \ud83e"}')
    assert half.detail == "HTTP 500: half a pair ?"


@pytest.mark.parametrize(
    ("error", "uncertain"),
    [
        (Transient("timed out", ""), True),
        (Transient("connection lost", ""), True),
        (Transient("garbled answer", ""), True),
        (Transient("server error", "", status=500), False),
        (Transient("server error", "", status=409), False),
        *((Transient("server error", "", status=status), True) for status in (408, 502, 504, 520, 527, 598, 599)),
        *((Transient("server error", "", status=status), False) for status in (503, 519, 528, 597)),
        (Unreachable(""), False),
        (Elsewhere(""), False),
    ],
)
def test_which_failed_requests_may_be_billed(error: Transient, uncertain: bool) -> None:
    assert error.uncertain is uncertain


def test_what_an_error_is_without_more_words() -> None:
    assert vars(Unreachable("d")) == {"detail": "d", "reason": "unreachable", "retry_after_s": None, "status": None}
    assert vars(Elsewhere("d")) == {"detail": "d", "reason": "garbled answer", "retry_after_s": None, "status": None}
    assert vars(RateLimited(None)) == {"detail": "", "retry_after_s": None, "limits": None}
    assert vars(Rejected("r", "d")) == {"detail": "d", "reason": "r", "of_its_own": True, "answered": False}
    assert vars(Refused("key", "d")) == {"detail": "d", "fault": "key", "sure": True}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, ""),
        ([], ""),
        ("text", ""),
        ({}, ""),
        ({"error": ""}, ""),
        ({"error": {}}, ""),
        ({"error": "said"}, "said"),
        ({"error": {"message": "said", "detail": "not this"}}, "said"),
        ({"error": {"message": "", "detail": "said"}}, "said"),
        *(({name: "said", "other": 1}, "said") for name in
          ("message", "detail", "msg", "error_msg", "status_msg", "error_description", "title")),
        ({"error": None, "message": "said"}, "said"),
        ({"other": "unknown"}, ""),
        ({"error": {"other": "unknown"}}, '{"other": "unknown"}'),
        ({"error": ["a", 1]}, '["a", 1]'),
        ({"error": 5}, "5"),
        ({"detail": [{"loc": "body"}]}, '[{"loc": "body"}]'),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "too hot"}}},
         "Provider returned error: too hot"),
        ({"error": {"message": "said", "metadata": {"raw": ""}}}, "said"),
        ({"error": {"message": "said", "metadata": {"raw": 3}}}, "said"),
        ({"error": {"message": "said", "metadata": "raw"}}, "said"),
        ({"error": "two\nlines"}, "two lines"),
        ({"error": {"message": {"a": "x" * 400}}}, '{"a": "' + "x" * 292 + "…"),
    ],
)  # fmt: skip
def test_the_message_in_an_errors_body(body: Any, message: str) -> None:
    assert wire.message_of(body) == message


def test_an_error_that_is_nested_too_deeply_is_named_so() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert wire.message_of({"error": deep}) == "an error that is nested too deeply"
    while deep:  # a list so deep cannot be freed at once
        deep = deep[0]
    with pytest.raises(ValueError, match=r"^nested too deeply$"):
        wire.loads(b'["\\ud800", ' + b"[" * 100_000)


def test_texts_are_shortened_exactly() -> None:
    assert wire.shorten("x" * 300) == "x" * 300
    assert wire.shorten("x" * 301) == "x" * 299 + "…"
    assert wire.shorten(" a \n\t b ") == "a b"
    assert wire.shorten("half \ud83e") == "half \ufffd"
    # Only the first 10,000 characters are read.
    assert wire.shorten(" " * 9_999 + "ab") == "a"
    assert wire.excerpt(b" " * 9_999 + b"ab") == "a"
    assert wire.excerpt(b"not \xff UTF-8\n") == "not \ufffd UTF-8"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 minutes"),
        (7_199, "120 minutes"),
        (7_200, "2 hours"),
        (2 * 86_400 - 1, "48 hours"),
        (2 * 86_400, "2 days"),
        (2 * 365 * 86_400, "2 years"),
        (10_000 * 365 * 86_400, "10,000 years"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert wire.in_words(seconds) == words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("5", 5.0),
        ("-5", 0.0),
        ("0.5", 0.5),
        ("nan", None),
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1h!", None),
        ("x1h", None),
        ("5d", None),
    ],
)
def test_a_duration_in_a_header(text: str | None, seconds: float | None) -> None:
    assert wire.duration(text) == seconds


def test_the_limits_in_an_answers_headers() -> None:
    def told(**values: str) -> dict[str, ReportedLimit] | None:
        return wire.reported_limits({f"x-ratelimit-{name.replace('_', '-')}": value for name, value in values.items()})

    assert told() is None
    assert told(limit_requests="60") is None
    assert told(remaining_requests="6") is None
    assert told(limit_requests="60", remaining_requests="many") is None
    assert told(limit_requests="inf", remaining_requests="6") is None
    assert told(limit_requests="60", remaining_requests="-6") == {"requests": ReportedLimit(60.0, 0.0, None)}
    assert told(limit_tokens="9", remaining_tokens="8") == {"tokens": ReportedLimit(9.0, 8.0, None)}
    # A kind without limits does not end the search for others.
    both = told(limit_requests="x", remaining_requests="1", limit_tokens="9", remaining_tokens="8", reset_tokens="6m0s")
    assert both == {"tokens": ReportedLimit(9.0, 8.0, 360.0)}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "0"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:30 +0100", "date": "Fri, 31 Dec 1999 22:59:00 GMT"}, 30.0),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:30 GMT"}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    assert wire.retry_after(headers) == seconds


def test_a_date_without_a_zone_is_in_utc_wherever_this_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        sent = {"date": "Fri, 31 Dec 1999 23:59:00 GMT"}
        assert wire.retry_after({"retry-after": "Fri, 31 Dec 1999 23:59:30 -0000"} | sent) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_without_the_endpoints_own_is_compared_with_this_machines() -> None:
    assert wire.retry_after({"retry-after": "Fri, 31 Dec 1999 23:59:30 GMT"}) == 0.0
    later = wire.retry_after({"retry-after": "Fri, 31 Dec 2999 23:59:30 GMT"})
    assert later is not None
    assert 900 * 365 * 86_400 < later < 1000 * 366 * 86_400


@pytest.mark.parametrize("key", ["sk-Az09", 'a/b"c\\d'])
@pytest.mark.parametrize(
    "form",
    [
        lambda key: key,
        lambda key: "".join(f"\\u{ord(char):04x}" for char in key),
        lambda key: "".join(f"\\U{ord(char):04X}" for char in key),
        lambda key: "".join(f"\\\\\\\\u{ord(char):04x}" for char in key),
        lambda key: "".join(f"\\x{ord(char):02x}" for char in key),
        lambda key: "".join(f"&#{ord(char)};" for char in key),
        lambda key: "".join(f"&#0{ord(char)}" for char in key),
        lambda key: "".join(f"&#x{ord(char):x};" for char in key),
        lambda key: "".join(f"&#X0{ord(char):X};" for char in key),
        lambda key: "".join(f"%{ord(char):02x}" for char in key),
        lambda key: "".join(f"%2525{ord(char):02X}" for char in key),
        lambda key: json.dumps(key)[1:-1],
        lambda key: json.dumps(json.dumps(key))[3:-3].replace("/", "\\\\/"),
    ],
)
def test_a_key_is_redacted_in_each_of_its_forms(key: str, form: Any) -> None:
    echoed = form(key)
    assert wire.redact_text(f"before {echoed} after", key) == "before *** after"
    assert wire.redact(f"<{echoed}>".encode(), key) == b"<***>"


def test_a_text_without_the_key_stays_as_it_is() -> None:
    for text in (b"", b"\\u0041 &#65; %41 \\x41", b"sk-other"):
        assert wire.redact(text, "sk-key") == text
        assert wire.redact(text, None) == wire.redact(text, "") == text
    assert wire.redact_text("half \ud83e sk-key", "sk-key") == "half ? ***"
