"""Replies that no service should send, by both transports: each is a row or one line, and costs little."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError
from lion_ray.gateway.address import read_address
from lion_ray.gateway.batch.api import BatchAPI
from lion_ray.gateway.calls import Account, Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal.record import decode_record, encode_record
from lion_ray.gateway.openai_transport import openai_client
from lion_ray.gateway.wire import TransportError
from tests.gateway.support import QuickTime, call
from tests.raw_api import chat, raw_api

Connect = Callable[..., Client]
DEEP = "[" * 100_000
NESTED = "[" * 900 + "]" * 900
HUGE = "9" * 400


def body(**fields: Any) -> str:
    """A good answer with odd fields, as the text that some server might write."""
    whole = chat()[1] | fields
    return json.dumps(whole)


ODD = {
    "nested without an end": DEEP,
    "an answer that is nested": body(choices=[{"message": json.loads(NESTED), "finish_reason": "stop"}]),
    "nested beside an answer": body().replace('"model"', f'"extra": {NESTED}, "model"', 1),
    "deep and half a pair": body().replace("The Loire.", "\\ud83e").replace('"model"', f'"x": {NESTED}, "model"', 1),
    "half a pair in every text": json.dumps(
        {
            "model": "\ud83e",
            "choices": [{"message": {"content": "The \ud83e Loire."}, "finish_reason": "\ud83e"}],
            "usage": {"\ud83e": 1},
        }
    ),
    "NUL in every text": body(model="m\0", choices=[{"message": {"content": "a\0b"}, "finish_reason": "st\0op"}]),
    "integers of any size": body(created=1).replace('"created": 1', f'"created": {HUGE}'),
    "a text of digits that no integer holds": body(created=1).replace('"created": 1', f'"created": {HUGE * 20}'),
    "log-probabilities that are no numbers": body(
        choices=[
            {
                "message": {"content": "\ud83e 8"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "8", "logprob": float("nan"), "top_logprobs": []}]},
            }
        ]
    ),
    "log-probabilities of any size": body(
        choices=[
            {
                "message": {"content": "8"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "8", "logprob": 7, "top_logprobs": []}]},
            }
        ]
    ).replace('"logprob": 7', f'"logprob": {HUGE}'),
    "names without an end": body(
        model="m" * 10**6, choices=[{"message": {"content": "x"}, "finish_reason": "y" * 10**6}]
    ),
    "an error that is nested": '{"error": ' + NESTED + "}",
    "an error that is nested in a message": '{"error": {"message": ' + NESTED + ', "code": ' + HUGE + "}}",
    "choices of another kind": body(choices={"0": {}}),
    "a choice of another kind": body(choices=[[[]]]),
    "a message of another kind": body(choices=[{"message": "The Loire.", "finish_reason": ["stop"]}]),
    "parts of another kind": body(choices=[{"message": {"content": [1, None, {"text": 3}]}, "finish_reason": "stop"}]),
    "not UTF-8": "\udcff",
    "a number": HUGE,
}


@pytest.mark.parametrize("odd", ODD)
async def test_an_odd_body_is_an_answer_or_a_row(connect: Connect, odd: str) -> None:
    data = ODD[odd].encode("utf-8", "surrogateescape") if odd == "not UTF-8" else ODD[odd]
    time = QuickTime()

    def answer(n: int, asked: dict[str, Any], request: web.Request) -> Any:
        return (200, data) if "odd" in asked["messages"][0]["content"] else chat()

    async with raw_api(answer) as api:
        client = connect({"max_attempts": 2}, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        assert isinstance(await client.complete(call("fine")), Completion)
        outcome = await client.complete(call("odd", top_logprobs=5))
    if isinstance(outcome, Failure):
        outcome.detail.encode()
        assert len(outcome.detail) < 500
    else:
        # It was journaled, or it would not be here; and it can be read again.
        again = decode_record(encode_record(outcome, Account()).rstrip(b"\n"))
        assert again is not None
        assert again.text == outcome.text
        assert len(outcome.model) + len(outcome.finish_reason) <= 400


async def _endless(
    request: web.Request, status: int = 200, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers or {})
    await response.prepare(request)
    try:
        while True:
            await response.write(b"x" * 2**16)
    except (ConnectionError, RuntimeError):
        return response  # the client has had enough


@pytest.mark.parametrize("kind", ["endless", "packed"])
async def test_a_reply_without_a_bound_costs_no_more_than_the_bound(connect: Connect, kind: str) -> None:
    limit = 2**20
    whole = body(choices=[{"message": {"content": "x" * 60_000_000}, "finish_reason": "stop"}]).encode()
    packed = gzip.compress(whole, 1)
    assert len(packed) < limit

    def answer(n: int, asked: dict[str, Any], request: web.Request) -> Any:
        if "odd" not in asked["messages"][0]["content"]:
            return chat()
        if kind == "endless":
            return _endless(request)
        return 200, packed, {"Content-Encoding": "gzip"}

    async with raw_api(answer) as api:
        client = connect({"max_reply_bytes": limit, "prices": {"input": 1, "output": 1}}, base_url=api.base_url)
        assert isinstance(await client.complete(call("fine")), Completion)
        tracemalloc.start()
        try:
            outcome = await client.complete(call("odd"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Asked once: it would be as large again. It may have been billed.
        assert api.requests == 2
    assert isinstance(outcome, Failure)
    assert outcome.reason == "reply too large"
    assert client.stats.uncertain_usd > 0
    assert peak < 16 * limit


@pytest.mark.parametrize(("status", "expected"), [(429, Completion), (503, Completion), (400, Failure)])
async def test_an_error_without_an_end_is_an_error(connect: Connect, status: int, expected: type) -> None:
    time = QuickTime()

    def answer(n: int, asked: dict[str, Any], request: web.Request) -> Any:
        return _endless(request, status) if n == 2 else chat()

    async with raw_api(answer) as api:
        client = connect(base_url=api.base_url, clock=time.clock, sleep=time.sleep)
        assert isinstance(await client.complete(call("fine")), Completion)
        assert isinstance(await client.complete(call("odd")), expected)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_what_is_packed_is_unpacked(connect: Connect, encoding: str) -> None:
    pack: Any = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding]
    answer = (200, pack(body().encode()), {"Content-Encoding": encoding})
    async with raw_api(lambda *_: answer) as api:
        outcome = await connect(base_url=api.base_url).complete(call("fine"))
        assert api.headers[0]["Accept-Encoding"] == "gzip, deflate"
    assert isinstance(outcome, Completion)
    assert outcome.text == "The Loire."


# --- nothing goes to another origin


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(connect: Connect, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("LION_TEST_KEY", "sk-redirected")
    time = QuickTime()
    async with raw_api(lambda *_: chat("from elsewhere")) as elsewhere:
        to = elsewhere.base_url + "/chat/completions"
        async with raw_api(lambda *_: (status, b"", {"Location": to})) as api:
            settings = {"api_key_env": "LION_TEST_KEY"}
            client = connect(settings, base_url=api.base_url, clock=time.clock, sleep=time.sleep)
            with pytest.raises(EndpointError, match="not followed") as caught:
                await client.complete(call("secret prompt"))
        assert elsewhere.requests == 0
    assert to in str(caught.value)
    assert "base_url" in str(caught.value)


@pytest.mark.parametrize("status", [307, 308])
async def test_no_batch_is_sent_after_a_redirect(status: int) -> None:
    async with raw_api(lambda *_: (200, {"id": "file-1"})) as elsewhere:
        to = elsewhere.base_url + "/files"
        async with raw_api(lambda *_: (status, b"", {"Location": to})) as api:
            config = EndpointConfig(model="m", api_key_env=None)
            client = openai_client(config, read_address(api.base_url), None)
            with pytest.raises(TransportError, match="not followed"):
                await BatchAPI(client, 10, keyed=False).upload("input.jsonl", b'{"secret": "prompt"}\n')
            await client.close()
        assert elsewhere.requests == 0
