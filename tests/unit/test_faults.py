"""Whose fault a refusal is, in the words of the services; and how it is found out where the words do not tell."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from multidict import CIMultiDict

from lion_ray.core.errors import EndpointError
from lion_ray.gateway import wire
from lion_ray.gateway.calls import Failure
from lion_ray.gateway.suspects import BY_NUMBER, BY_WORDS, Suspects, Suspicion, shape_of


def error(status: int, message: str, code: Any = None, kind: Any = None, **headers: str) -> wire.TransportError:
    text = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return wire.status_error(status, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}), text)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "parameter",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'",
        ),
        (
            "parameter",
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value",
        ),
        ("parameter", "`temperature` and `top_p` cannot both be specified for this model. Please use only one."),
        ("parameter", "parameter.enable_thinking must be set to false for non-streaming calls"),
        ("parameter", "This model only support stream mode, please enable the stream parameter to access the model."),
        ("parameter", "Unrecognized request argument supplied: top_p"),
        ("parameter", "temperature: range: -1..1 is deprecated for this model"),
        ("parameter", "max_tokens: 9000 > 8192, which is the maximum allowed number of output tokens; at most 8192"),
        (
            "parameter",
            "[{'type': 'extra_forbidden', 'loc': ('body', 'top_p'), 'msg': 'Extra inputs are not permitted'}]",
        ),
        ("parameter", "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead."),
        ("system", "System role not supported"),
        ("system", "Developer instruction is not enabled for models/gemma-3-27b-it"),
        ("system", "Unsupported value: 'messages[0].role' does not support 'system' with this model."),
        ("system", "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("system", "Unexpected role 'system'. The Messages API accepts a top-level `system` parameter"),
        ("system", "messages.0.role: Input should be 'user' or 'assistant'"),
        ("model", "Model Not Exist"),
        ("model", "m-1 is not a valid model ID"),
        ("model", "The model `gpt-9` does not exist or you do not have access to it."),
        ("model", "Invalid model name passed in model=m-1. Call `/v1/models` to view available models for your key."),
        ("model", "The requested model 'm-1' is not supported."),
        ("model", "Unknown model: m-1, please check the model code"),
        ("model", "model 'm-1' not found, try pulling it first"),
        ("model", "The model `m-1` has been deprecated, learn more here"),
        (
            "quota",
            "Your credit balance is too low to access the API. Please go to Plans & Billing to purchase credits.",
        ),
        ("quota", "Insufficient Balance"),
        ("quota", "Access denied, please make sure your account is in good standing. Arrearage"),
        ("quota", "Your account has been deactivated, please contact support"),
        ("quota", "You have exceeded your monthly spending limit"),
        ("quota", "账户余额不足,请充值"),
        ("key", "API key not valid. Please pass a valid API key."),
    ],
)
def test_what_every_call_would_meet(fault: str, message: str) -> None:
    found = error(400, message, "invalid_request_error")
    assert isinstance(found, wire.Refused), found
    assert found.fault == fault
    # An account's state may change at any moment; for the rest, other calls have a say.
    assert found.sure == (fault in ("quota", "key"))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", None),
        ("'max_tokens' is too large: 2000. This model's maximum context length is 2048 tokens", None),
        ("Please reduce the length of the messages or completion.", "context_length_exceeded"),
        ("prompt is too long: 210000 tokens > 200000 maximum", None),
        ("The input token count (40000) exceeds the maximum; input length is too large", "string_above_max_length"),
        ("The response was filtered due to the prompt triggering Azure's content management policy.", None),
        ("Input data may contain inappropriate content.", "data_inspection_failed"),
        ("Your request was rejected by our safety system; the parameter was not allowed", None),
    ],
)
def test_what_one_request_holds(message: str, code: str | None) -> None:
    found = error(400, message, code)
    assert isinstance(found, wire.Rejected), found
    assert found.of_its_own


def test_a_refusal_that_says_nothing_may_be_everyones() -> None:
    found = error(400, "Bad Request")
    assert isinstance(found, wire.Rejected)
    assert not found.of_its_own


@pytest.mark.parametrize(
    ("message", "kind", "headers", "expected"),
    [
        ("You exceeded your current quota, please check your plan and billing details.", None, {}, "quota"),
        ("Your account is suspended", "exceeded_current_quota_error", {}, "quota"),
        ("You have run out of credits", None, {}, "quota"),
        ("Insufficient balance or no resource package. Please recharge.", None, {}, "quota"),
        ("anything", "insufficient_quota", {"Retry_After": "3"}, "quota"),
        # A limit that renews is waited for, whatever it calls itself.
        ("You exceeded your current quota. Please retry in 36.6s. limit: 15 per minute", None, {}, None),
        ("You exceeded your current quota, please check your plan", None, {"Retry_After": "30"}, None),
        ("Rate limit reached for m on requests per day (RPD): Limit 200, Used 200", None, {}, None),
        ("Too many requests", None, {}, None),
    ],
)
def test_429(message: str, kind: str | None, headers: dict[str, str], expected: str | None) -> None:
    found = error(429, message, None, kind, **headers)
    assert (found.fault if isinstance(found, wire.Refused) else None) == expected
    assert isinstance(found, wire.Refused | wire.RateLimited)


@pytest.mark.parametrize("status", [204, 301, 302, 304, 307, 308])
def test_what_is_no_answer_says_where_it_points(status: int) -> None:
    found = wire.status_error(status, {"location": "https://user:secret@elsewhere.example/v1?key=secret"}, "")
    assert isinstance(found, wire.Elsewhere)
    assert not found.uncertain
    assert "https://elsewhere.example/v1" in found.detail
    assert "secret" not in found.detail


DEEP = "[" * 100_000
HUGE = "9" * 5000


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        '{"error": ' + DEEP,
        '{"error": ' + "[" * 900 + "]" * 900 + "}",
        '{"error": {"message": ' + "[" * 900 + "]" * 900 + "}}",
        '{"error": {"message": "half a pair \\ud83e", "code": "\\ud83e"}}',
        '{"error": {"message": "\\u0000", "code": ' + HUGE + "}}",
        '{"error": {"message": 3, "code": {"a": 1}, "type": [1]}}',
        '[{"error": {"message": "in a list"}}]',
        "[]",
        '"text"',
        "\x00\ud83e",
    ],
)
@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 429, 500, 504])
def test_no_body_is_too_odd_for_an_error(body: str, status: int) -> None:
    found = wire.status_error(status, {}, body)
    assert len(found.detail) < 400
    found.detail.encode()  # can be stored
    assert "\n" not in found.detail


@pytest.mark.parametrize(
    "value", ["9" * 400, "1e999", "-1e999", "nan", "1_0", "\x00", "Wed, 99 Oct 99999 99:99:99 GMT"]
)
def test_headers_of_any_kind(value: str) -> None:
    for name in ("Retry-After", "retry-after-ms", "Date", "x-ratelimit-limit-requests", "x-ratelimit-reset-requests"):
        headers = CIMultiDict({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT", "x-ratelimit-remaining-requests": "1"})
        headers[name] = value
        seconds = wire.retry_after(headers)
        assert seconds is None or 0 <= seconds < 1e300
        wire.reported_limits(headers)


# --- whose fault it is, found out by the other calls


def suspicion(detail: str, *, by_words: bool) -> Suspicion:
    return Suspicion(Failure("k", "rejected", detail), EndpointError("all"), by_words)


async def outcomes(suspects: Suspects, *given: Suspicion | str | None) -> list[object]:
    """What becomes of calls that are under way together: refused, or (None) answered after the others."""
    everyone = asyncio.Event()
    arrived = 0

    async def one(what: Suspicion | str | None) -> object:
        nonlocal arrived
        with suspects.under_way(b"shape"):
            arrived += 1
            if arrived == len(given):
                everyone.set()
            await everyone.wait()
            if isinstance(what, Suspicion):
                try:
                    return await suspects.judge(b"shape", what)
                except EndpointError as error:
                    return error
            await asyncio.sleep(0)
            if what is None:
                suspects.answered(b"shape")
            return "answered"

    return list(await asyncio.wait_for(asyncio.gather(*map(one, given)), 10))


@pytest.mark.parametrize(("by_words", "needed"), [(True, BY_WORDS), (False, BY_NUMBER)])
async def test_what_comes_back_without_an_answer_is_the_endpoints(by_words: bool, needed: int) -> None:
    alike = [suspicion(f"no temperature (id {n})", by_words=by_words) for n in range(needed)]
    assert all(isinstance(one, EndpointError) for one in await outcomes(Suspects(), *alike))


async def test_where_others_are_answered_a_refusal_is_the_calls_own() -> None:
    suspects = Suspects()
    one = suspicion("it quotes 'temperature is not supported'", by_words=True)
    assert await outcomes(suspects, one, None, None) == [one.failure, "answered", "answered"]
    # And from then on at once.
    assert await outcomes(suspects, one, one, one) == [one.failure] * 3


async def test_a_call_that_is_alone_waits_for_nobody() -> None:
    words, silent = suspicion("temperature", by_words=True), suspicion("Bad Request", by_words=False)
    assert isinstance((await outcomes(Suspects(), words))[0], EndpointError)
    assert await outcomes(Suspects(), silent) == [silent.failure]
    # The others ended otherwise, in a time-out for one, and nobody is left to tell.
    assert await outcomes(Suspects(), silent, "over") == [silent.failure, "answered"]


async def test_one_after_the_other_counts_too() -> None:
    suspects = Suspects()
    ends = [(await outcomes(suspects, suspicion(f"row {n}: Bad Request", by_words=False)))[0] for n in range(BY_NUMBER)]
    assert [isinstance(end, EndpointError) for end in ends] == [False] * (BY_NUMBER - 1) + [True]


async def test_refusals_that_differ_are_rows() -> None:
    different = [suspicion(f"{word} is odd", by_words=False) for word in ("one", "two", "three", "four", "five", "six")]
    assert await outcomes(Suspects(), *different) == [one.failure for one in different]


def test_a_shape_is_all_but_what_is_said() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "top_p": 1.0}
    same = body | {"messages": [{"role": "user", "content": "b"}]}
    renamed = {name: value for name, value in same.items() if name != "max_tokens"} | {"max_completion_tokens": 3}
    assert shape_of(body) == shape_of(same) == shape_of(renamed)
    assert shape_of(body | {"seed": 1}) == shape_of(same | {"seed": 2})
    others = [body | {"seed": 1}, body | {"top_p": 0.5}, body | {"max_tokens": 4}, body | {"messages": []}]
    assert len({shape_of(one) for one in [body, *others]}) == 5
