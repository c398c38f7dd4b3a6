"""What is sent, where to, and what is said of an endpoint: bodies, addresses, errors and the meter's lines, in full."""

from __future__ import annotations

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import EndpointError
from lion_ray.gateway.address import Address, Proxy, basic, proxy_for, read_address, socket_options
from lion_ray.gateway.body import ERROR_BYTES, Body, read_body
from lion_ray.gateway.breaker import Breaker
from lion_ray.gateway.calls import Call, Failure
from lion_ray.gateway.faults import fault_of, is_model, is_one_requests, is_quota, named_fields, refuses_field
from lion_ray.gateway.patience import Patience
from lion_ray.gateway.refusals import refusal_error, suspicion
from lion_ray.gateway.request import LengthField, as_sent, wire_body
from lion_ray.gateway.spread import REST_S, Spread
from lion_ray.gateway.stats import Latencies, ServedStats, Stats, meter_line
from lion_ray.gateway.suspects import Suspects, Suspicion, shape_of
from lion_ray.gateway.wave import Wave
from lion_ray.gateway.wire import RateLimited, Refused, Rejected, Transient, TransportError, Unreachable

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}


def config(**changes: Any) -> EndpointConfig:
    return EndpointConfig(**({"model": "m", "api_key_env": None} | changes))


# -- requests ---------------------------------------------------------------------------------------------------------


def test_what_the_configuration_changes_of_a_call() -> None:
    call = Call((SYSTEM, USER), 9, seed=3, json_schema={"type": "object"}, top_logprobs=2, role="teacher")
    assert as_sent(call, config(send_seed=True, json_schema=True)) is call
    plain = as_sent(call, config())
    assert plain == Call((SYSTEM, USER), 9, top_logprobs=2, role="teacher")
    changed = as_sent(call, config(send_seed=True, omit=("top_p", "temperature"), extra_body={"x": 1}))
    assert (changed.omit, changed.extra, changed.seed) == (("temperature", "top_p"), {"x": 1}, 3)
    assert as_sent(call, config(omit=("top_p",))).extra == {}
    assert as_sent(call, config(extra_body={"x": 1})).omit == ()
    assert as_sent(call, config(system_role="developer")).messages == ({"role": "developer", "content": "s"}, USER)
    bare = Call((USER,), 9)
    assert as_sent(bare, config(system_role="user")) is bare


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ((SYSTEM, USER, ANSWER, USER), ("s\n\nu", "a", "u")),
        ((SYSTEM, SYSTEM, USER), ("s\n\ns\n\nu",)),
        ((SYSTEM, ANSWER, USER), ("a", "s\n\nu")),
        ((USER, ANSWER, SYSTEM), ("u", "a", "s")),
        ((SYSTEM, USER, SYSTEM, USER), ("s\n\nu", "s\n\nu")),
    ],
)
def test_system_messages_as_the_users(messages: Any, merged: tuple[str, ...]) -> None:
    sent = as_sent(Call(messages, 9), config(system_role="user")).messages
    assert tuple(message["content"] for message in sent) == merged
    assert all(message["role"] in ("user", "assistant") for message in sent)


def test_a_body_with_the_endpoints_names() -> None:
    call = Call((USER,), 9, 0.5, 0.25, seed=3, json_schema={"title": "My verdict (2)!"}, top_logprobs=2)
    assert wire_body(call, config(max_tokens_field="max_completion_tokens")) == {
        "model": "m",
        "messages": [USER],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "My_verdict_2_", "schema": {"title": "My verdict (2)!"}, "strict": True},
        },
    }
    assert wire_body(Call((USER,), 9), config()) == {
        "model": "m",
        "messages": [USER],
        "max_tokens": 9,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    for title, name in (
        ({}, "answer"),
        ({"title": ""}, "answer"),
        ({"title": "x" * 70}, "x" * 64),
        ({"title": "-"}, "-"),
    ):
        body = wire_body(Call((USER,), 9, json_schema=title), config())
        assert body["response_format"]["json_schema"]["name"] == name


UNSUPPORTED = "Unsupported parameter: 'max_tokens'"


def test_the_length_limits_field_is_changed_once() -> None:
    said: list[str] = []
    field = LengthField("e", config(), said.append)
    refused = Refused("parameter", UNSUPPORTED)
    assert field.rename({"max_tokens": 9}) == {"max_tokens": 9}
    assert field.rename({"x": 1}) == {"x": 1}
    assert not field.found(Refused("key", UNSUPPORTED), {"max_tokens": 9})
    assert not field.found(refused, {"x": 1})
    assert not field.found(Refused("parameter", "max_tokens is too large"), {"max_tokens": 9})
    assert not field.found(Refused("parameter", "Unsupported parameter: 'seed'"), {"max_tokens": 9})
    assert field.found(refused, {"max_tokens": 9})
    assert said == [
        "it accepts max_completion_tokens, not max_tokens: set endpoints.e.max_tokens_field: max_completion_tokens to "
        "avoid refused requests"
    ]
    assert field.rename({"max_tokens": 9}) == {"max_completion_tokens": 9}
    assert field.found(refused, {"max_tokens": 9}), "a call that was on its way"
    assert len(said) == 1
    other = Refused("parameter", "Unsupported parameter: 'max_completion_tokens'")
    assert not field.found(other, {"max_completion_tokens": 9}), "it knows neither"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("url", "base", "query", "credentials"),
    [
        (" https://api.test/v1/ ", "https://api.test/v1", "", None),
        ("http://api.test:80", "http://api.test:80", "", None),
        ("https://api.test/v1/chat/completions/", "https://api.test/v1", "", None),
        ("https://api.test/v1//chat/completions", "https://api.test/v1", "", None),
        ("https://u%40:p%3A@api.test/v1?a=1&b=%20", "https://api.test/v1", "a=1&b=%20", ("u@", "p:")),
        ("https://u@api.test", "https://api.test", "", ("u", "")),
        ("https://:p@api.test", "https://api.test", "", ("", "p")),
        ("https://@api.test", "https://api.test", "", None),
    ],
)
@pytest.mark.usefixtures("no_proxy")
def test_every_part_of_an_address(url: str, base: str, query: str, credentials: Any) -> None:
    found = read_address(url)
    assert found == Address(base, query, credentials, None)
    assert found.chat == f"{base}/chat/completions" + (f"?{query}" if query else "")
    assert found.through == ""
    assert found.authorization == basic(credentials)
    assert found.parameters == ({"a": "1", "b": " "} if query else {})
    if credentials:
        assert repr(found) == f"Address(base='{base}', proxy=None)"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://api.test/v 1", "holds a space or a control character"),
        ("https://api.test/\x7f", "holds a space or a control character"),
        ("https://api\n.test", "holds a space or a control character"),
        ("ftp://api.test", "base_url must start with http:// or https://"),
        ("https:///v1", "base_url must start with http:// or https://"),
        ("api.test/v1", "base_url must start with http:// or https://"),
        ("https://api.test:99999", "the port is not a number from 0 to 65535"),
        ("https://api.test:x", "the port is not a number from 0 to 65535"),
    ],
)
def test_every_address_that_is_none(url: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_address(url)
    assert str(caught.value) == why


def test_every_proxy(no_proxy: pytest.MonkeyPatch) -> None:
    assert proxy_for("https", "api.test", "api.test") is None
    no_proxy.setenv("https_proxy", "http://u:p%20@proxy.test:3128/")
    assert proxy_for("https", "api.test", "api.test") == Proxy("http://proxy.test:3128", ("u", "p "))
    assert proxy_for("http", "api.test", "api.test") is None
    no_proxy.setenv("all_proxy", "other.test")
    assert proxy_for("http", "api.test", "api.test") == Proxy("http://other.test", None)
    through = read_address("http://api.test/v1").through
    assert through == " (through the proxy http://other.test)"
    for host in ("localhost", "127.0.0.1", "::1"):
        assert proxy_for("http", host, host) is None
    no_proxy.setenv("no_proxy", "api.test")
    assert proxy_for("http", "api.test", "api.test:81") is None
    no_proxy.setenv("no_proxy", "api.test:81")
    assert proxy_for("http", "api.test", "api.test:81") is None
    assert proxy_for("http", "api.test", "api.test") is not None
    no_proxy.delenv("no_proxy")
    for odd, shown in (
        ("socks5://u:p@proxy.test:1", "socks5://proxy.test:1"),
        ("http://proxy.test:x", "http://proxy.test:x"),
        ("http://:80", "http://:80"),
    ):
        no_proxy.setenv("https_proxy", odd)
        with pytest.raises(ValueError) as caught:
            proxy_for("https", "api.test", "api.test")
        assert str(caught.value) == (
            f"the environment's proxy for it (HTTPS_PROXY or ALL_PROXY) is '{shown}': only http:// and https:// "
            "proxies are supported; set one, or NO_PROXY for this host"
        )


def test_every_socket_option() -> None:
    found = {(level, name): value for level, name, value in socket_options()}
    assert found[socket.SOL_SOCKET, socket.SO_KEEPALIVE] == 1
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPALIVE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 60_000),
    ):
        if hasattr(socket, name):
            assert found[socket.IPPROTO_TCP, getattr(socket, name)] == value
    assert basic(None) is None
    assert basic(("u", "ä")) == "Basic dTrDpA=="


# -- bodies -----------------------------------------------------------------------------------------------------------


async def arriving(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def body_of(*chunks: bytes, status: int = 200, encoding: str | None = None, limit: int = 10) -> Any:
    try:
        return await read_body(arriving(*chunks), status, encoding, limit)
    except TransportError as error:
        return error


def is_error(found: Any, expected: TransportError) -> None:
    assert (type(found), vars(found)) == (type(expected), vars(expected))


async def test_how_large_a_body_may_be() -> None:
    large = Rejected("reply too large", "more than 10 bytes (endpoints.NAME.max_reply_bytes)", answered=True)
    assert await body_of(b"12345", b"", b"67890") == b"1234567890"
    is_error(await body_of(b"12345", b"678901"), large)
    packed = gzip.compress(b"x" * 100_000, mtime=0)
    is_error(await body_of(packed, encoding="gzip", limit=10_000), Rejected(
        "reply too large", "more than 10000 bytes (endpoints.NAME.max_reply_bytes)", answered=True
    ))  # fmt: skip
    assert await body_of(packed, encoding="gzip", limit=100_000) == b"x" * 100_000
    assert await body_of(b"12345", b"678901", status=500) == b"12345"
    assert await body_of(b"x" * ERROR_BYTES, b"x", status=404, limit=10**9) == b"x" * ERROR_BYTES
    assert ERROR_BYTES == 1_048_576


async def test_every_packing_of_a_body() -> None:
    text = b"{so it is}" * 5
    raw = zlib.compressobj(wbits=-15)
    deflated = raw.compress(text) + raw.flush()
    packed = gzip.compress(text, mtime=0)
    for encoding, data in (
        (None, text),
        (" Identity ", text),
        ("GZIP", packed),
        ("x-gzip", packed + packed[:0]),
        ("gzip", text),
        ("deflate", zlib.compress(text)),
        ("deflate", deflated),
        ("deflate", zlib.compress(text) + b"\0\0"),
        ("gzip", packed + b"\0\0"),
        *(("deflate", first + text) for first in (b"{", b"[", b"d", b"<", b":")),
    ):
        wanted = text if not data.endswith(text) else data
        assert await body_of(data, encoding=encoding, limit=1000) == wanted
    assert await body_of(packed + packed, encoding="gzip", limit=1000) == text * 2
    assert await body_of(*(packed[n : n + 1] for n in range(len(packed))), encoding="gzip", limit=1000) == text
    is_error(
        await body_of(packed[:-9], encoding="gzip", limit=1000),
        Transient("garbled answer", "cut off: a body compressed as gzip is incomplete"),
    )
    is_error(
        await body_of(text, encoding="Br" + "x" * 50),
        Transient("garbled answer", f"compressed as 'br{'x' * 38}', which was not requested"),
    )
    broken = await body_of(b"\x1f\x8bxxxx", encoding="gzip")
    assert isinstance(broken, Transient)
    assert (broken.reason, broken.detail[:18]) == ("garbled answer", "not valid gzip: Er")
    assert await body_of(b"x", status=500, encoding="br") == b""
    assert await body_of(packed[:-9], status=500, encoding="gzip", limit=1000) == text
    assert Body("gzip", 10).whole() == b""


# -- what is said of an endpoint --------------------------------------------------------------------------------------

CALL = Call((SYSTEM, USER), 9, role="teacher")


def said(fault: Any, detail: str = "so", call: Call = CALL, **changes: Any) -> str:
    error = refusal_error("e", "https://api.test", config(**changes), Refused(fault, detail), call)
    assert isinstance(error, EndpointError)
    return str(error)


@pytest.mark.parametrize(
    ("fault", "detail", "words"),
    [
        ("key", "so", "needs a key: name its environment variable in endpoints.e.api_key_env [so]"),
        ("model", "so", "has no model 'm': check endpoints.e.model [so]"),
        ("address", "so", "has no chat completions API: check endpoints.e.base_url (it often ends in /v1) [so]"),
        (
            "quota",
            "so",
            "reports that the account has no credit or is closed: top it up, then run the same command again [so]",
        ),
        (
            "system",
            "so",
            "does not accept system messages for 'm': set endpoints.e.system_role: user, which puts them at the start "
            "of the user's message [so]",
        ),
        (
            "parameter",
            "so",
            "does not accept a field of every request: add it with endpoints.e.extra_body: {FIELD: value}, or leave "
            "one "
            "out with endpoints.e.omit: [temperature, top_p] [so]",
        ),
        (
            "parameter",
            "stream must be set",
            "does not accept a field of every request: add it with endpoints.e.extra_body: {stream: value}, or leave "
            "one out with endpoints.e.omit: [temperature, top_p] [stream must be set]",
        ),
        (
            "parameter",
            "no temperature and top_p",
            "does not accept a field of every request: leave it out with endpoints.e.omit: [temperature, top_p], or "
            "set "
            "the teacher's own value [no temperature and top_p]",
        ),
        (
            "parameter",
            "not BOTH temperature and top_p",
            "does not accept a field of every request: leave it out with endpoints.e.omit: [top_p], or set the "
            "teacher's own value [not BOTH temperature and top_p]",
        ),
        (
            "parameter",
            "max_tokens is too large",
            "does not accept a field of every request: lower the teacher's max_tokens, or set "
            "endpoints.e.max_tokens_field to the field's name there [max_tokens is too large]",
        ),
        (
            "parameter",
            "no seed",
            "does not accept a field of every request: set endpoints.e.send_seed: false [no seed]",
        ),
        *(
            (
                "parameter",
                f"no {name}",
                f"does not accept a field of every request: set endpoints.e.json_schema: false [no {name}]",
            )
            for name in ("response_format", "json_schema")
        ),
    ],
)
def test_every_refusal_in_words(fault: str, detail: str, words: str) -> None:
    assert said(fault, detail) == f"endpoint e (https://api.test) {words}"


def test_refusals_that_depend_on_the_call() -> None:
    assert said("key", api_key_env="KEY") == (
        "endpoint e (https://api.test) refuses the key in KEY: check that environment variable and the key's rights "
        "[so]"
    )
    developer = Call(({"role": "developer", "content": "x"}, USER), 9)
    assert "does not accept system messages" in said("system", call=developer)
    nobody = Call((USER,), 9)
    assert "does not accept a field of every request: add it with" in said("system", call=nobody)
    assert "or set the role's own value" in said("parameter", "no top_p", call=nobody)
    assert "lower the role's max_tokens" in said("parameter", "max_completion_tokens", call=nobody)


def test_a_suspicion_in_words() -> None:
    failure = Failure("k", "rejected by the endpoint", "HTTP 400: so")
    found = suspicion("e", "https://api.test", failure)
    assert (found.failure, found.by_words) == (failure, False)
    assert str(found.error) == (
        "endpoint e (https://api.test) has answered no call, and 5 failed in the same way: check endpoints.e.model and "
        "base_url; leave out a field that it does not accept with omit, or add one that it requires with extra_body "
        "[rejected by the endpoint: HTTP 400: so]"
    )


@pytest.mark.parametrize(
    ("codes", "message", "param", "fault"),
    [
        ((), "", "", None),
        (("billing",), "Unsupported parameter: seed", "", "quota"),
        ((), "API key is invalid", "", "key"),
        ((), "The system role is not supported", "", "system"),
        ((), "The system role", "", None),
        ((), "is not supported", "temperature", "parameter"),
        ((), "is not supported", "other", None),
        ((), "so", "temperature", None),
        ((), "temperature is not supported", "", "parameter"),
        ((), "this field is not supported", "", "parameter"),
        (("unsupported_value",), "so", "", "parameter"),
        (("unknown_parameter",), "so", "", "parameter"),
        (("unknown_parameter",), "no such model", "", "model"),
        (("unknown_parameter",), "no such model with this seed", "", "parameter"),
        ((), "no such model", "", "model"),
        (("model_not_found",), "so", "", "model"),
    ],
)
def test_every_guess_at_a_fault(codes: tuple[str, ...], message: str, param: str, fault: str | None) -> None:
    assert fault_of(codes, message, param) == fault
    if not param:
        assert fault_of(codes, message) == fault


def test_the_guesses_one_by_one() -> None:
    assert is_quota(("x", "billing"), "")
    assert not is_quota((), "balance too low, try again in 3 s")
    assert is_quota(("billing",), "try again in 3 s")
    assert is_model((), "no such model")
    assert is_model(("unknown_model",), "")
    assert not is_model(("x",), "x")
    assert is_one_requests(("content_filter",), "")
    assert is_one_requests((), "prompt is too long")
    assert not is_one_requests(("x",), "x")
    assert named_fields("top_p, then max_tokens; tops", "seed") == ("max_tokens", "top_p", "seed")
    assert named_fields("nothing") == ()
    assert refuses_field("no seed", "seed")
    assert not refuses_field("seed is at most 3", "seed")
    assert not refuses_field("no top_p", "seed")


async def test_how_many_refusals_are_the_endpoints() -> None:
    def suspect(number: int, *, by_words: bool) -> Suspicion:
        return Suspicion(Failure("k", "r", f"id-{number} refused"), EndpointError("the endpoint"), by_words)

    async def outcomes(count: int, *, by_words: bool, in_flight: int, shape: bytes = b"s") -> list[Any]:
        suspects = Suspects()

        async def one(number: int) -> Any:
            with suspects.under_way(shape):
                return await suspects.judge(shape, suspect(number, by_words=by_words))

        with suspects.under_way(shape):
            tasks = [asyncio.create_task(one(number)) for number in range(count)]
            for _ in range(5):
                await asyncio.sleep(0)
            done = [task for task in tasks if task.done()]
            if in_flight:
                suspects.answered(shape)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [len(done), {type(one) for one in found}]

    assert await outcomes(1, by_words=True, in_flight=1) == [0, {Failure}]
    assert await outcomes(2, by_words=True, in_flight=1) == [2, {EndpointError}]
    assert await outcomes(4, by_words=False, in_flight=1) == [0, {Failure}]
    assert await outcomes(5, by_words=False, in_flight=1) == [5, {EndpointError}]
    # Nothing else is under way: decided by what is known.
    assert await outcomes(1, by_words=True, in_flight=0) == [0, {EndpointError}]
    assert await outcomes(4, by_words=False, in_flight=0) == [0, {Failure}]


def test_the_shape_of_a_call() -> None:
    body = {"model": "m", "messages": [USER, ANSWER, USER], "max_tokens": 9, "seed": 3, "top_p": 1}
    assert shape_of(body) == b'[{"model":"m","top_p":1},[9],true,["assistant","user"]]'
    assert shape_of(body | {"seed": 4}) == shape_of(body)
    assert shape_of({"messages": [USER], "max_completion_tokens": 9}) == b'[{},[9],false,["user"]]'


# -- pauses -----------------------------------------------------------------------------------------------------------


def test_the_breaker_step_by_step() -> None:
    now = 0.0
    breaker = Breaker(2, clock=lambda: now)
    breaker.failed("early", 0)
    breaker.failed("early", 0)
    assert (breaker.open, breaker.wait_s(), breaker.last_error, breaker.down_s) == (False, 0.0, "early", 0.0)
    breaker.succeeded()
    breaker.failed("one", 0)
    assert not breaker.open
    breaker.failed("two", 0)
    assert (breaker.open, breaker.down_s, breaker.wait_s()) == (True, 0.0, 1.0)
    now = 0.75
    assert (breaker.wait_s(), breaker.down_s, breaker.probe) == (0.25, 0.75, 0)
    now = 1.0
    assert (breaker.wait_s(), breaker.probe) == (0.0, 1)
    assert breaker.wait_s() == 0.1
    breaker.failed("another call", 0)
    assert (breaker.probe, breaker.last_error) == (1, "another call")
    breaker.abandoned(0)
    assert breaker.probe == 1
    breaker.abandoned(1)
    assert (breaker.probe, breaker.wait_s(), breaker.probe) == (0, 0.0, 2)
    breaker.failed("the first probe, late", 1)
    assert breaker.probe == 2
    for pause in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        breaker.failed("probe", breaker.probe)
        assert breaker.wait_s() == pause
        now += pause
        assert breaker.wait_s() == 0.0
    breaker.succeeded()
    assert (breaker.open, breaker.probe, breaker.down_s, breaker.wait_s()) == (False, 0, 0.0, 0.0)
    for _ in range(2):
        breaker.failed("again", 0)
    assert breaker.wait_s() == 1.0, "it begins anew"


def test_the_pauses_that_an_endpoint_asks_for() -> None:
    told: list[str] = []
    limits = config(max_retry_after_s=100, max_backoff_s=60, outage_timeout_s=1000)
    patience = Patience("e", "https://api.test", limits, told.append)
    assert patience.pause(RateLimited(7.0), 0, 1, 2.0) == 7.0
    assert patience.pause(RateLimited(None), 0, 1, 2.0) == 2.0
    assert patience.pause(RateLimited(0.0), 0, 1, 2.0) == 2.0
    assert patience.pause(RateLimited(100.0), 0, 1, 2.0) == 100.0
    assert told == []
    # Too long: in flight together they count once.
    for sent_at, now in ((2, 3), (2, 4), (5, 6), (7, 8)):
        assert patience.pause(RateLimited(240.0, "so"), sent_at, now, 2.0) == 60
    assert patience.pause(RateLimited(240.0, "so"), 7.5, 8, 90.0) == 90
    assert told == ["it asks to wait 4 minutes, too long for a rate limit: retry in 60 s"] * 3
    with pytest.raises(EndpointError) as caught:
        patience.pause(RateLimited(240.0, "so"), 9, 10, 2.0)
    assert str(caught.value) == (
        "endpoint e (https://api.test) asks repeatedly to wait 4 minutes: more than endpoints.e.max_retry_after_s "
        "(100 s); run the same command later, or raise it [so]"
    )
    patience.answered()
    assert patience.pause(RateLimited(240.0), 11, 12, 2.0) == 60


def test_an_endpoint_that_answers_429_alone() -> None:
    patience = Patience("e", "https://api.test", config(outage_timeout_s=1000), lambda _: None)
    for number in range(29):
        assert patience.pause(RateLimited(1.0), number, number, 2.0) == 1.0
    # The 30th counts, and so does how long it has been: from the first one on.
    assert patience.pause(RateLimited(1.0), 1000, 1000, 2.0) == 1.0
    with pytest.raises(EndpointError) as caught:
        patience.pause(RateLimited(1.0, "so"), 1000, 1001, 2.0)
    assert str(caught.value) == (
        "endpoint e (https://api.test) has answered every request with 429 for 17 minutes: the account's quota may be "
        "used up; run the same command later, or raise endpoints.e.outage_timeout_s [so]"
    )
    few = Patience("e", "https://api.test", config(outage_timeout_s=1000), lambda _: None)
    for number in range(29):
        assert few.pause(RateLimited(1.0), number * 1000, number * 1000, 2.0) == 1.0


async def test_a_wave_step_by_step() -> None:
    assert [Wave(proxies=proxies).width for proxies in (1, 2, 3, 9)] == [4, 2, 1, 1]
    wave = Wave(proxies=2)
    await wave.enter()
    await wave.enter()
    waiting = [asyncio.create_task(wave.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    wave.leave()
    await asyncio.sleep(0.001)
    assert [one.done() for one in waiting] == [True, False, False]
    wave.answered(surprised=False)
    assert wave.width == 3
    wave.leave()
    await asyncio.sleep(0.001)
    assert [one.done() for one in waiting] == [True, True, True]
    wave.answered(surprised=True)
    assert wave.width == 1
    later = asyncio.create_task(wave.enter())
    wave.leave()
    wave.leave()
    await asyncio.sleep(0.001)
    assert not later.done()
    later.cancel()
    wave.leave()
    await asyncio.wait_for(wave.enter(), 5)
    wide = Wave(narrow=False)
    for _ in range(9):
        await wide.enter()


class Place:
    """An address that answers, or cannot be reached."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[Any] = []
        self.closed = False
        self.release: asyncio.Event | None = None

    async def chat(self, body: dict[str, Any]) -> Any:
        self.asked.append(body)
        if self.release is not None:
            await self.release.wait()
        if self.error is not None:
            raise self.error
        return self

    async def close(self) -> None:
        self.closed = True


async def test_several_addresses_step_by_step() -> None:
    now = 0.0
    one, two, three = Place(), Place(), Place()
    spread: Any = Spread([one, two, three], clock=lambda: now)
    assert await spread.chat({"a": 1}) is one
    assert one.asked == [{"a": 1}]
    one.release = asyncio.Event()
    first = asyncio.create_task(spread.chat({}))
    await asyncio.sleep(0)
    assert await spread.chat({}) is two, "it has fewer in flight"
    one.release.set()
    await first
    one.error = Unreachable("no")
    assert await spread.chat({"b": 1}) is two
    assert two.asked[-1] == {"b": 1}
    count = len(one.asked)
    now = REST_S - 0.5
    assert await spread.chat({}) is two
    assert len(one.asked) == count, "it rests"
    now = REST_S
    one.error = None
    assert await spread.chat({}) is one
    # Any other error is not tried elsewhere; nothing stays counted as in flight.
    one.error = Transient("server error", "so")
    with pytest.raises(Transient, match="so"):
        await spread.chat({})
    one.error = None
    assert await spread.chat({}) is one
    for place in (one, two, three):
        place.error = Unreachable("no")
    with pytest.raises(Unreachable):
        await spread.chat({})
    three.error = None
    assert await spread.chat({}) is three, "all rest: each is tried"
    one.error = None
    assert await spread.chat({}) is three, "it does not rest any more"
    await spread.close()
    assert one.closed
    assert two.closed
    assert three.closed


# -- the meter --------------------------------------------------------------------------------------------------------


def test_the_meters_line() -> None:
    busy = Stats(
        sent_per_minute=1234,
        allowed_per_minute=1000.4,
        in_flight=1000,
        waiting=2000,
        in_batches=3000,
        latency_p50_s=1.25,
        paused_s=2.4,
        down_s=3.4,
        uncertain_usd=0.5,
    )
    other = Stats(sent_per_minute=6, allowed_per_minute=500, latency_p50_s=0.5, uncertain_usd=1.0)
    assert meter_line({"e": [busy, other], "f": [Stats()]}, 1234.5, 2000) == (
        "e: 1,240 of 1,500 requests/min, 1,000 in flight, 2,000 waiting, 3,000 in batches, 1.2 s median, rate limit: "
        "pausing 2 s, DOWN for 3 s, probing · f: 0 requests/min · $1,234.50 of $2,000.00 spent, $1.50 of it uncertain"
    )
    assert meter_line({"f": [Stats(uncertain_usd=0.005)]}, 0.5, None) == (
        "f: 0 requests/min · $0.50 spent, $0.01 of it uncertain"
    )
    assert meter_line({"f": [Stats(uncertain_usd=0.004)]}, 0.5, None) == "f: 0 requests/min · $0.50 spent"
    assert meter_line({"f": [Stats()]}, 0.0, None) == "f: 0 requests/min"
    assert meter_line({"f": [Stats()]}, 0.0, 3) == "f: 0 requests/min · $0.00 of $3.00 spent"
    served = Stats(served=ServedStats(1234.4, 56.6, 9, 7000, 2, 0), down_s=4)
    idle = Stats(served=ServedStats(0, 0, 0, 0, 0, 3))
    assert meter_line({"s": [served, idle]}, 0.0, None) == (
        "s: reads 1,234 and writes 57 tokens/s, 7,000 answers finished, 2 running; reads 0 and writes 0 tokens/s, 0 "
        "answers finished, 3 waiting, DOWN for 4 s, probing"
    )


def test_what_counts_as_progress() -> None:
    assert Stats(completed=1, replayed=2, failed=4).ended == 7
    counted = Stats(completed=1, replayed=2, failed=4, sent=8)
    assert counted.moves(own_server=True, now=100) == 15
    served = ServedStats(0, 0, 16, 0, 0, 0)
    for waits, own, moves in (
        ({"in_flight": 1}, True, 31),
        ({"in_flight": 1}, False, 131),
        ({"pausing": 1}, True, 131),
        ({"in_batches": 1}, True, 131),
        ({"waiting": 1}, False, 31),
    ):
        stats = Stats(completed=1, replayed=2, failed=4, sent=8, served=served, **waits)
        assert stats.moves(own_server=own, now=100) == moves


def test_quantiles_of_latencies() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    for seconds in (4.0, 1.0, 3.0, 2.0):
        latencies.add(seconds)
    assert [latencies.quantile(share) for share in (0.0, 0.25, 0.5, 0.95, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]
    for _ in range(1000):
        latencies.add(9.0)
    assert latencies.quantile(0.0) == 9.0
