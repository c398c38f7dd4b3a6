"""What is the endpoint's fault is told once, with what to set; what passes is waited for; over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from lion_ray.core.errors import EndpointError
from lion_ray.gateway.calls import Call, Completion, Failure, refusal
from lion_ray.gateway.client import Client
from tests.gateway.support import QuickTime
from tests.raw_api import chat, error, raw_api

Connect = Callable[..., Client]


@pytest.fixture(params=["aiohttp"])
def transport(request: pytest.FixtureRequest) -> str:
    """What a status or a body means is no transport's business; one is enough, and the quicker one."""
    return str(request.param)


def asked(n: int, system: str | None = None, **fields: Any) -> Call:
    said = ({"role": "system", "content": system},) if system else ()
    return Call(messages=(*said, {"role": "user", "content": f"Question {n}?"}), max_tokens=64, **fields)


async def ends(client: Client, *calls: Call) -> list[Any]:
    """Outcomes, or the errors that ended them."""

    async def one(call: Call) -> Any:
        try:
            return await client.complete(call)
        except EndpointError as told:
            return told

    return await asyncio.gather(*map(one, calls))


def only_error(found: list[Any]) -> str:
    assert all(isinstance(one, EndpointError) for one in found), found
    assert len({str(one) for one in found}) == 1
    return str(found[0])


# --- settings that requests need


@pytest.mark.parametrize(("first", "other"), [("max_tokens", "max_completion_tokens")[::step] for step in (1, -1)])
async def test_the_length_limits_other_name_is_found(connect: Connect, first: str, other: str) -> None:
    def answer(n: int, body: dict[str, Any], request: Any) -> Any:
        if first in body:
            return error(
                400, f"Unsupported parameter: '{first}' is not supported with this model. Use '{other}' instead."
            )
        return chat()

    said: list[str] = []
    async with raw_api(answer) as api:
        client = connect({"max_tokens_field": first, "max_attempts": 1}, base_url=api.base_url, say=said.append)
        found = await ends(client, *(asked(n) for n in range(20)))
        assert all(isinstance(one, Completion) for one in found)
        assert client.stats.retried == 0
        # Only the requests that were out together met it.
        assert sum(first in body for body in api.bodies) <= 4
        assert api.bodies[-1][other] == 64
    assert [f"endpoints.default.max_tokens_field: {other}" in line for line in said] == [True]


async def test_an_endpoint_that_knows_neither_name_is_told_of(connect: Connect) -> None:
    def answer(n: int, body: dict[str, Any], request: Any) -> Any:
        return error(400, f"Unknown parameter: '{next(name for name in body if name.startswith('max_'))}'.")

    async with raw_api(answer) as api:
        told = only_error(await ends(connect(base_url=api.base_url), *(asked(n) for n in range(9))))
    assert "max_tokens_field" in told


@pytest.mark.parametrize(
    ("refusal", "remedy", "settings"),
    [
        ("'temperature' does not support 0.7 with this model.", "omit: [temperature]", {"omit": ["temperature"]}),
        ("`temperature` and `top_p` cannot both be specified", "omit: [top_p]", {"omit": ["top_p"]}),
        (
            "parameter.enable_thinking must be set to false",
            "extra_body: {enable_thinking: value}",
            {"extra_body": {"enable_thinking": False}},
        ),
        ("System role not supported", "system_role: user", {"system_role": "user"}),
    ],
)
async def test_a_field_that_is_not_taken_is_told_once_and_can_be_set(
    connect: Connect, refusal: str, remedy: str, settings: dict[str, Any]
) -> None:
    def answer(n: int, body: dict[str, Any], request: Any) -> Any:
        fine = {
            "omit": settings.get("omit") and not body.keys() & set(settings["omit"]),
            "extra_body": body.get("enable_thinking") is False,
            "system_role": body["messages"][0]["role"] != "system",
        }
        return chat() if fine[next(iter(settings))] else error(400, refusal, "invalid_request_error")

    calls = [asked(n, "Be brief.", temperature=0.7) for n in range(30)]
    async with raw_api(answer) as api:
        told = only_error(await ends(connect(base_url=api.base_url), *calls))
        assert f"endpoints.default.{remedy}" in told
        assert refusal in told
        client = connect(settings, base_url=api.base_url)
        found = await ends(client, *calls)
    assert all(isinstance(one, Completion) for one in found)
    # What was sent is what the key names: an answer under other settings is another one.
    changed = await ends(
        connect(base_url=api.base_url, settings={"max_attempts": 1}), asked(0, "Be brief.", temperature=0.7)
    )
    assert not isinstance(changed[0], Completion)


async def test_a_system_message_joins_what_the_user_says(connect: Connect) -> None:
    turns = [("system", "One."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    call = Call(messages=tuple({"role": role, "content": text} for role, text in turns), max_tokens=8)
    alone = Call(messages=({"role": "system", "content": "Only this."},), max_tokens=8)
    async with raw_api(lambda *_: chat()) as api:
        for role in ("user", "developer"):
            await ends(connect({"system_role": role}, base_url=api.base_url), call, alone)
        sent = [[(turn["role"], turn["content"]) for turn in body["messages"]] for body in api.bodies]
    assert sorted(sent[:2]) == [[("user", "One.\n\na"), ("assistant", "b"), ("user", "c")], [("user", "Only this.")]]
    assert sorted(sent[2:]) == [[("developer", "One."), *turns[1:]], [("developer", "Only this.")]]


@pytest.mark.parametrize("message", ["Model Not Exist", "m-1 is not a valid model ID", "Invalid model: m-1"])
async def test_an_unknown_model_told_as_a_400(connect: Connect, message: str) -> None:
    async with raw_api(lambda *_: error(400, message)) as api:
        told = only_error(await ends(connect(base_url=api.base_url), *(asked(n) for n in range(30))))
    assert "check endpoints.default.model" in told


async def test_one_word_about_what_nobody_foresaw(connect: Connect) -> None:
    def answer(n: int, body: dict[str, Any], request: Any) -> Any:
        return error(400, f"E{n}: the stars do not allow it (request {n:08x})")

    async with raw_api(answer) as api:
        found = await ends(connect(base_url=api.base_url), *(asked(n) for n in range(30)))
    assert all(isinstance(one, EndpointError) for one in found)
    assert "the stars do not allow it" in str(found[0])
    assert "extra_body" in str(found[0])


@pytest.mark.parametrize("message", ["the stars do not allow it", "Your question about 'temperature is not supported'"])
async def test_where_others_are_answered_the_same_words_cost_one_row(connect: Connect, message: str) -> None:
    def answer(n: int, body: dict[str, Any], request: Any) -> Any:
        return error(400, message) if "Question 3" in body["messages"][0]["content"] else chat()

    async with raw_api(answer) as api:
        found = await ends(connect({"max_concurrency": 2}, base_url=api.base_url), *(asked(n) for n in range(8)))
    assert [isinstance(one, Failure) for one in found] == [n == 3 for n in range(8)]


# --- an address that is wrong


PAGE = "<!doctype html><title>My chat</title>"


@pytest.mark.parametrize(
    "answer",
    [
        (200, PAGE, {"Content-Type": "text/html"}),
        (200, "\n<HTML><body>hello</body>", {}),
        (200, "Welcome", {"Content-Type": "text/html; charset=utf-8"}),
        (204, b"", {}),
        (304, b"", {}),
        (308, b"", {"Location": "https://elsewhere.example/v1"}),
    ],
)
async def test_something_that_is_no_api_is_told_after_two_looks(connect: Connect, answer: Any) -> None:
    time = QuickTime()
    async with raw_api(lambda *_: answer) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        told = only_error(await ends(client, *(asked(n) for n in range(3))))
        assert api.requests <= 6
    assert "check endpoints.default.base_url" in told
    assert client.stats.uncertain_usd == 0


async def test_a_page_in_the_middle_is_a_gateway_in_trouble(connect: Connect) -> None:
    time = QuickTime()
    answers = {2: (200, PAGE), 3: (204, b""), 4: (302, b"", {"Location": "/login"})}
    async with raw_api(lambda n, *_: answers.get(n, chat())) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        assert isinstance(await client.complete(asked(1)), Completion)
        assert isinstance(await client.complete(asked(2)), Completion)
        assert api.requests == 5


# --- accounts and pauses


@pytest.mark.parametrize("status", [400, 402, 403, 429])
async def test_an_account_that_is_spent_in_the_middle_ends_the_run(connect: Connect, status: int) -> None:
    spent = error(status, "Your credit balance is too low, please check your plan and billing details.")
    async with raw_api(lambda n, *_: chat() if n < 5 else spent) as api:
        client = connect({"max_concurrency": 1}, base_url=api.base_url)
        found = await ends(client, *(asked(n) for n in range(6)))
    assert [type(one) for one in found] == [Completion] * 4 + [EndpointError] * 2
    assert "account has no credit" in str(found[-1])


async def test_429_without_an_end_ends(connect: Connect) -> None:
    time = QuickTime()
    async with raw_api(lambda *_: error(429, "Nope.")) as api:
        client = connect({"outage_timeout_s": 1800}, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        told = only_error(await ends(client, asked(1), asked(2)))
    assert "every request with 429" in told
    assert 1800 < time.now < 3600


async def test_long_pauses_that_the_endpoint_names_are_waited_for(connect: Connect) -> None:
    time = QuickTime()
    limit = error(429, "daily limit", headers={"Retry-After": "7200"})
    async with raw_api(lambda n, *_: limit if n <= 11 else chat()) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        assert isinstance(await client.complete(asked(1)), Completion)
    assert 11 * 7200 <= time.now < 11 * 7200 + 600


@pytest.mark.parametrize("value", ["1000000000", "Wed, 21 Oct 2099 07:28:00 GMT"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_of_years_is_not_slept(connect: Connect, status: int, value: str) -> None:
    time = QuickTime()
    said: list[str] = []
    late = error(status, "later", headers={"Retry-After": value})
    async with raw_api(lambda n, *_: late if n == 1 else chat()) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep, say=said.append)
        assert isinstance(await client.complete(asked(1)), Completion)
    assert time.now < 3600
    assert [("years" in line) for line in said] == [True] * (status == 429)


async def test_an_endpoint_that_insists_on_it_is_told_of(connect: Connect) -> None:
    time = QuickTime()
    late = error(429, "later", headers={"Retry-After": "5000"})
    async with raw_api(lambda *_: late) as api:
        settings = {"max_retry_after_s": 4000}
        client = connect(settings, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        told = only_error(await ends(client, asked(1)))
    assert "asks repeatedly to wait 83 minutes" in told
    assert "max_retry_after_s (4000 s)" in told
    assert time.now < 4000


# --- errors and answers inside a 200


@pytest.mark.parametrize(
    "told",
    [
        {"choices": None, "error": {"message": "Provider returned error", "code": 429}},
        {"error": {"message": "slow down", "code": "429"}},
        {"error": {"message": "slow down", "type": "rate_limit_error"}},
        {"error": {"message": "slow", "status": "RESOURCE_EXHAUSTED"}},
        [{"error": {"message": "slow", "code": 429}}],
        {"object": "error", "message": "slow down", "code": 429},
        {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        {"error_code": 18, "error_msg": "Open api qps request limit reached"},
        {"error": "Too many requests"},
        {"choices": [{"message": {"content": "The Loi"}, "finish_reason": "error", "error": {"code": 429}}]},
    ],
)
async def test_a_rate_limit_inside_a_200_is_one(connect: Connect, told: Any) -> None:
    time = QuickTime()
    settings = {"prices": {"input": 1, "output": 2}, "max_attempts": 1}
    async with raw_api(lambda n, *_: (200, told) if n <= 5 else chat()) as api:
        client = connect(settings, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        assert isinstance(await client.complete(asked(1)), Completion)
    assert (client.stats.rate_limited, client.stats.uncertain_usd) == (5, 0)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"error": {"message": "bad key", "code": 401}}, "needs a key"),
        ({"error": {"message": "no such model", "code": 404}}, "endpoints.default.model"),
        ({"error": {"message": "Insufficient credits", "code": 402}}, "account has no credit"),
    ],
)
async def test_a_refusal_inside_a_200_is_one(connect: Connect, told: Any, message: str) -> None:
    async with raw_api(lambda *_: (200, told)) as api:
        assert message in only_error(await ends(connect(base_url=api.base_url), *(asked(n) for n in range(5))))


async def test_an_answer_stands_beside_an_error_that_is_not_its_own(connect: Connect) -> None:
    status, body = chat()
    async with raw_api(lambda *_: (status, body | {"error": {"message": "a warning", "code": 429}})) as api:
        assert isinstance(await connect(base_url=api.base_url).complete(asked(1)), Completion)


@pytest.mark.parametrize("finish", ["error", "network_error", "abort"])
async def test_a_text_that_the_endpoint_broke_off_is_asked_again(connect: Connect, finish: str) -> None:
    time = QuickTime()
    async with raw_api(lambda n, *_: chat("The Loi", finish) if n < 3 else chat()) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        answer = await client.complete(asked(1))
    assert isinstance(answer, Completion)
    assert answer.text == "The Loire."


BLOCKED: list[Any] = [
    {"choices": [{"index": 0, "finish_reason": "content_filter: PROHIBITED_CONTENT"}]},
    {"choices": [{"index": 0, "message": None, "finish_reason": "SAFETY"}]},
    {"promptFeedback": {"blockReason": "SAFETY"}},
    {"choices": [{"message": {"content": None, "refusal": "I can't help with that."}, "finish_reason": "stop"}]},
    {"choices": [{"message": {"content": "Sorry, no.", "refusal": "Sorry, no."}, "finish_reason": "stop"}]},
]


@pytest.mark.parametrize("body", BLOCKED)
async def test_what_was_withheld_or_refused_is_asked_once_and_is_no_answer(connect: Connect, body: Any) -> None:
    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    async with raw_api(lambda *_: (200, body | usage)) as api:
        client = connect({"prices": {"input": 1, "output": 10}}, base_url=api.base_url)
        answer = await client.complete(asked(1))
        assert (api.requests, client.stats.uncertain_usd) == (1, 0)
    assert isinstance(answer, Completion)
    assert refusal(answer) in ("refused by the model", "withheld by the endpoint's content filter")
    assert answer.prompt_tokens == 5


async def test_a_finish_reason_of_its_own_can_be_explained(connect: Connect) -> None:
    said: list[str] = []
    async with raw_api(lambda n, *_: chat(finish="fin" if n < 3 else None)) as api:
        calls = [asked(n) for n in range(4)]
        client = connect({"max_concurrency": 1}, base_url=api.base_url, say=said.append)
        found = await ends(client, *calls)
        assert [one.finish_reason for one in found] == ["fin", "fin", "unknown", "unknown"]
        assert len(said) == 2
        assert "endpoints.default.finish_reasons: {fin: stop}" in said[0]
        settings = {"finish_reasons": {"fin": "stop", "unknown": "length"}}
        found = await ends(connect(settings, base_url=api.base_url), *calls)
    assert [(one.replayed, one.finish_reason) for one in found] == [(True, "stop")] * 2 + [(True, "length")] * 2


# --- a stream that was not asked for


def events(*chunks: Any, end: str = "\n\n") -> str:
    return "".join(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}{end}" for chunk in chunks)


def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


PIECES = (piece(role="assistant", content=""), piece(content="The "), piece(content="Loire."), piece("stop"))
USAGE = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}


@pytest.mark.parametrize(
    "stream",
    [
        events(*PIECES, USAGE, "[DONE]"),
        events(*PIECES, USAGE, "[DONE]", end="\r\n\r\n"),
        events(*PIECES, USAGE, "[DONE]", end="\n"),
        ": keep-alive\n\n" + events(*PIECES, USAGE),
        "event: message\nid: 1\n" + events(*PIECES, USAGE, "[DONE]"),
        events({"choices": [{"message": {"content": "The Loire."}, "finish_reason": "stop"}], "usage": USAGE["usage"]}),
    ],
)
async def test_a_stream_is_joined(connect: Connect, stream: str) -> None:
    async with raw_api(lambda *_: (200, stream, {"Content-Type": "text/event-stream"})) as api:
        answer = await connect(base_url=api.base_url).complete(asked(1))
        assert api.requests == 1
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason, answer.prompt_tokens) == ("The Loire.", "stop", 10)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (events(*PIECES[:2]), "garbled answer"),
        (events(*PIECES[:2]) + 'data: {"choices": [{"del', "garbled answer"),
        (": nothing\n\n", "garbled answer"),
        (events("[DONE]"), "garbled answer"),
        (events(*PIECES[:2], {"error": {"message": "upstream", "code": 502}}), "server error"),
        ("data: " + "[" * 100_000 + "\n\n", "garbled answer"),
    ],
)
async def test_half_a_stream_is_no_answer(connect: Connect, stream: str, reason: str) -> None:
    time = QuickTime()
    async with raw_api(lambda *_: (200, stream, {"Content-Type": "text/event-stream"})) as api:
        client = connect({"max_attempts": 2}, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        outcome = await client.complete(asked(1))
    assert isinstance(outcome, Failure)
    assert outcome.reason == reason
