"""What each answer becomes, in full: a reply with every field, or an error in words and with what follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Batch

from lion_ray.gateway.batch.lines import InJournal, NotDone, Output, read_line, request_line
from lion_ray.gateway.batch.verdict import Verdict, verdict_of
from lion_ray.gateway.calls import TokenChoice
from lion_ray.gateway.inside import error_inside
from lion_ray.gateway.limits import ReportedLimit
from lion_ray.gateway.reply import Reply, parse_reply, read_reply
from lion_ray.gateway.sse import is_stream, joined
from lion_ray.gateway.usage import UNKNOWN, Bounds, Settled, Usage, bounds, read_usage
from lion_ray.gateway.wire import (
    Elsewhere,
    RateLimited,
    Refused,
    Rejected,
    Transient,
    TransportError,
)


def same(found: BaseException, expected: BaseException) -> None:
    assert (type(found), vars(found), found.args) == (type(expected), vars(expected), expected.args)


def choice(content: Any = "x", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"content": content}, "finish_reason": finish, **more}


# -- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        ({"choices": [choice()], "model": "m"}, Reply("x", "stop", "m")),
        ([{"choices": [choice()], "model": "m"}], Reply("x", "stop", "m")),
        ({"choices": [choice(), choice("y")]}, Reply("x", "stop", "")),
        ({"choices": [choice()], "model": "m" * 300}, Reply("x", "stop", "m" * 200)),
        ({"choices": [choice(finish="f" * 300)]}, Reply("x", "f" * 200, "")),
        ({"choices": [choice(finish=None)]}, Reply("x", "unknown", "")),
        ({"choices": [choice(finish={"type": "stop", "other": 1})]}, Reply("x", "stop", "")),
        ({"choices": [choice(finish={"other": "stop"})]}, Reply("x", "unknown", "")),
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, Reply("x", "length", "")),
        ({"choices": [{"finish_reason": "content_filter"}]}, Reply("", "content_filter", "")),
        ({"choices": [{"finish_reason": "length"}]}, Reply("", "length", "")),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, Reply("", "content_filter", "")),
        ({"prompt_feedback": {}, "model": "m"}, Reply("", "content_filter", "m")),
        ({"choices": [{"message": {"refusal": " no ", "content": None}}]}, Reply("no", "refusal", "")),
        ({"choices": [{"message": {"refusal": "no", "content": "yes"}}]}, Reply("yes", "refusal", "")),
        ({"choices": [{"message": {"refusal": " ", "content": "yes"}}]}, Reply("yes", "unknown", "")),
        (
            {"choices": [choice([{"type": "thinking", "text": "t"}, {"type": "text", "text": "a"}, "s", {"text":
             "b"}])]},
            Reply("ab", "stop", ""),
        ),
        ({"choices": [choice([{"type": "reasoning", "text": "t"}, {"text": None}])]}, Reply("", "stop", "")),
        ({"choices": [choice(3)]}, Reply("", "stop", "")),
        (
            {"choices": [choice()], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            Reply("x", "stop", "", Usage(3, 4)),
        ),
    ],
)  # fmt: skip
def test_every_field_of_a_reply(body: Any, reply: Reply) -> None:
    assert parse_reply(json.dumps(body).encode()) == reply
    assert read_reply(body) == reply


def test_a_reply_s_headers_tell_its_limits() -> None:
    body = {"choices": [choice()]}
    headers = {"x-ratelimit-limit-tokens": "9", "x-ratelimit-remaining-tokens": "8"}
    limits = {"tokens": ReportedLimit(9.0, 8.0, None)}
    assert parse_reply(json.dumps(body).encode(), headers) == Reply("x", "stop", "", limits=limits)
    assert read_reply(body, headers) == Reply("x", "stop", "", limits=limits)
    assert read_reply(body, {}) == Reply("x", "stop", "", limits=None)


GARBLED = "garbled answer"


@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b"", None, Transient(GARBLED, "HTTP 200, but not JSON: ")),
        (b"no\n\xff", None, Transient(GARBLED, "HTTP 200, but not JSON: no \ufffd")),
        (b"<HTML>so", None, Elsewhere("HTTP 200 with a web page: <HTML>so")),
        (b" <!doctype html>", {}, Elsewhere("HTTP 200 with a web page: <!doctype html>")),
        (b"so", {"content-type": "Text/HTML; charset=x"}, Elsewhere("HTTP 200 with a web page: so")),
        (b"so", {"content-type": "text/plain"}, Transient(GARBLED, "HTTP 200, but not JSON: so")),
        (b'data: {"x', None, Transient(GARBLED, 'HTTP 200, but a stream that was cut off: data: {"x')),
        (b"3", None, Transient(GARBLED, "HTTP 200, but no choices: 3")),
        (b"[1, 2]", None, Transient(GARBLED, "HTTP 200, but no choices: [1, 2]")),
        (b'{"x": 1}', None, Transient(GARBLED, 'HTTP 200, but no choices: {"x": 1}')),
        (b'{"choices": [], "message": "so"}', None, Transient(GARBLED, "HTTP 200, but no choices: so")),
        (b'{"choices": [{"finish_reason": "odd"}]}', None,
         Transient(GARBLED, 'HTTP 200, but no choices: {"choices": [{"finish_reason": "odd"}]}')),
        (b'{"choices": [{"finish_reason": "error", "message": {"content": "x"}}]}', None,
         Transient(GARBLED, "broken off by the endpoint: finish_reason 'error'")),
    ],
)  # fmt: skip
def test_every_body_without_an_answer(data: bytes, headers: Any, expected: TransportError) -> None:
    with pytest.raises(TransportError) as caught:
        parse_reply(data, headers)
    same(caught.value, expected)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def logs(*tokens: Any) -> dict[str, Any]:
    return {"content": list(tokens)}


def one(token: str, logprob: Any = -0.5, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, **more}


@pytest.mark.parametrize(
    ("logprobs", "kept"),
    [
        (None, None),
        ({"content": None}, None),
        (logs(), ()),
        (logs(one("so")), (TokenChoice(0, "so", (("so", -0.5),)),)),
        (logs(one("so"), one("no")), (TokenChoice(0, "so", (("so", -0.5),)),)),
        (
            logs(one("so", top_logprobs=[one("no", -0.1), one("so", -0.5)]), one(" 8."), one("b)"), one("88a")),
            (
                TokenChoice(0, "so", (("no", -0.1), ("so", -0.5))),
                TokenChoice(2, " 8.", ((" 8.", -0.5),)),
                TokenChoice(5, "b)", (("b)", -0.5),)),
            ),
        ),
        (logs(one("é", bytes=[195, 169]), one("8")),
         (TokenChoice(0, "é", (("é", -0.5),)), TokenChoice(1, "8", (("8", -0.5),)))),
        (logs(one("so", float("-inf"))), None),
        (logs(one("so", "x")), None),
        (logs(one("so", top_logprobs=[{}])), None),
        (logs(one("so"), {}), None),
        (logs(one("so"), 3), None),
        (logs(one("so"), one("8", "x")), None),
    ],
)  # fmt: skip
def test_every_log_probability_that_is_kept(logprobs: Any, kept: Any) -> None:
    text = "é8" if kept and kept[0].token == "é" else "so 8.b)88a"
    assert read_reply({"choices": [choice(text, logprobs=logprobs)]}).logprobs == kept


# -- streams ----------------------------------------------------------------------------------------------------------


def events(*bodies: Any, between: str = "\n\n") -> bytes:
    return (between.join(f"data: {body if isinstance(body, str) else json.dumps(body)}" for body in bodies)).encode()


def delta(finish: Any = None, logprobs: Any = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish, "logprobs": logprobs}]}


def whole(finish: Any, tokens: Any = None, **message: Any) -> dict[str, Any]:
    logprobs = None if tokens is None else {"content": tokens}
    return {"choices": [{"message": message, "finish_reason": finish, "logprobs": logprobs}]}


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (events(delta(role="assistant", content="a"), delta("stop", role="assistant", content="b")),
         whole("stop", role="assistant", content="ab")),
        (events(delta(content="a"), "[DONE]"), whole(None, content="a")),
        (events(delta(content="a"), "[DONE]", between="\r\n"), whole(None, content="a")),
        (events(delta(content="a"), "[DONE]", delta(content="b")), whole(None, content="a")),
        (events(delta(content="a"), " [DONE] "), whole(None, content="a")),
        (events(delta(content="a")), None),
        (events("[DONE]"), None),
        (events(delta("stop")), None),
        (events(delta("stop", content=["a", {"type": "text", "text": "b"}]), delta(content=["c"])),
         whole("stop", content=[{"type": "text", "text": part} for part in "abc"])),
        (events(delta(content=["a"]), delta("stop", content="b", other=3)),
         whole("stop", content=[{"type": "text", "text": "a"}])),
        (events({"model": "m", "usage": {"a": 1}}, {"model": "", "usage": None}, delta("stop", content="a"), {
         "model": "n"}),
         {"model": "n", "usage": {"a": 1}} | whole("stop", content="a")),
        (events(3, delta("stop", content="a"), {"choices": []}, {"choices": [3]}, {"choices": 3}), whole(
         "stop", content="a")),
        (events({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}), whole("stop", content="a")),
        (events(delta(content="a"), {"error": {"code": 500}}, delta("stop")), {"error": {"code": 500}}),
        (events(delta(content="a"), {"choices": [{"error": "x"}]}, delta("stop")), {"error": "x"}),
        (b'event: x\nid: 1\ndata:{"choices": [{"delta":\ndata: {"content": "a"}, "finish_reason": "stop"}]}\n',
         whole("stop", content="a")),
        (b': ping\r\rdata: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\r\r', whole(
         "stop", content="a")),
        (events("{oops", delta("stop", content="a")), whole("stop", content="a")),
        (events("", delta("stop", content="a")), whole("stop", content="a")),
    ],
)  # fmt: skip
def test_every_stream_as_one_body(data: bytes, body: Any) -> None:
    assert joined(data) == body


def test_the_log_probabilities_of_a_stream_are_one_list() -> None:
    parts = [delta(None, {"content": [1]}, content="a"), delta(None, {"content": 3}, content="b")]
    found = joined(events(*parts, delta("stop", {"content": [2, 3]}), delta(None, "odd")))
    assert found == whole("stop", [1, 2, 3], content="ab")


@pytest.mark.parametrize(
    ("data", "stream"),
    [
        (b"data: x", True),
        (b"\n\n: ping", True),
        *((name + b":", True) for name in (b"event", b"id", b"retry")),
        (b"{}", False),
        (b"other: x", False),
        (b"", False),
    ],
)
def test_what_looks_like_a_stream(data: bytes, stream: bool) -> None:
    assert is_stream(data) is stream


# -- errors inside an answer ------------------------------------------------------------------------------------------


def within(body: dict[str, Any], of_choice: Any = None, headers: Any = None, *, whole_one: bool = False) -> Any:
    return error_inside(body, of_choice, headers, whole=whole_one)


INSIDE = "inside an HTTP 200: HTTP"


@pytest.mark.parametrize(
    ("body", "of_choice", "expected"),
    [
        ({}, None, None),
        ({"error": {"message": "odd"}}, None, None),
        ({"error": {"code": 429, "message": "so"}}, {}, RateLimited(None, f"{INSIDE} 429: so")),
        ({"error": {"code": "503", "message": "so"}}, {}, Transient("server error", f"{INSIDE} 503: so", status=503)),
        ({"error": {"status_code": 400, "message": "so"}}, {},
         Rejected("rejected by the endpoint", f"{INSIDE} 400: so", of_its_own=False)),
        ({"error": {"http_status": 599, "message": "so"}}, {}, Transient("server error", f"{INSIDE} 599: "
         f"so", status=599)),
        ({"error": {"code": 399, "message": "so"}}, {}, None),
        ({"error": {"code": 600, "message": "so"}}, {}, None),
        ({"error": {"code": "0429", "message": "so"}}, {}, None),
        ({"error": {"status": "RESOURCE_EXHAUSTED", "message": "so"}}, {}, RateLimited(None, f"{INSIDE} 429: so")),
        ({"error": {"type": "permission denied", "message": "so"}}, {}, Refused("key", f"{INSIDE} 403: so")),
        ({"error": {"type": "authentication", "message": "so"}}, {}, Refused("key", f"{INSIDE} 401: so")),
        ({"error": {"code": "model_not_found", "message": "so"}}, {}, Refused("model", f"{INSIDE} 404: "
         f"so", sure=False)),
        ({"error": {"type": "not found", "message": "so"}}, {}, Refused("address", f"{INSIDE} 404: so", sure=False)),
        ({"error": {"code": "insufficient_quota", "message": "so"}}, {}, Refused("quota", f"{INSIDE} 429: so")),
        ({"error": "Invalid request: so"}, {},
         Rejected("rejected by the endpoint", f"{INSIDE} 400: Invalid request: so", of_its_own=False)),
        ({"error": "server BUSY"}, {}, Transient("server error", f"{INSIDE} 503: server BUSY", status=503)),
        ({"error": "deadline"}, {}, Transient("server error", f"{INSIDE} 504: deadline", status=504)),
        ({"error": "api error"}, {}, Transient("server error", f"{INSIDE} 500: api error", status=500)),
        ({"error": 3}, {}, None),
        ({}, {"error": {"code": 500, "message": "own"}}, Transient("server error", f"{INSIDE} 500: own", status=500)),
        ({"error": {"code": 429}}, {"error": {"code": 500, "message": "own"}},
         Transient("server error", f"{INSIDE} 500: own", status=500)),
        # Without a choice the body itself may be the error.
        ({"code": 429, "message": "so"}, None, RateLimited(None, f"{INSIDE} 429: so")),
        ({"code": 429, "message": "so"}, {}, None),
        ({"base_resp": {"status_code": 500, "status_msg": "so"}}, None,
         Transient("server error", f"{INSIDE} 500: so", status=500)),
        ({"error": {"code": "x" * 100 + "quota", "message": "so"}}, {}, None),
    ],
)  # fmt: skip
def test_every_error_inside_an_answer(body: dict[str, Any], of_choice: Any, expected: TransportError | None) -> None:
    found = within(body, of_choice)
    if expected is None:
        assert found is None
    else:
        expected.args = (expected.detail.removeprefix("inside an HTTP 200: "),)
        same(found, expected)


def test_an_error_beside_a_whole_answer_is_ignored() -> None:
    error = {"error": {"code": 500, "message": "so"}}
    assert within(error, {}, whole_one=True) is None
    assert within({}, error, whole_one=True) is not None
    limited = within({"error": {"code": 429, "message": "so"}}, {}, {"retry-after": "7"})
    assert limited.retry_after_s == 7.0
    replies: list[Any] = [{"choices": [choice()], **error}, {"choices": [choice("", "stop")], **error}]
    for reply in replies:
        if reply["choices"][0]["message"]["content"]:
            assert read_reply(reply).text == "x"
        else:
            with pytest.raises(Transient, match="so"):
                read_reply(reply)
    with pytest.raises(Transient, match="so"):
        read_reply({"choices": [choice("x", "length")], **error})
    with pytest.raises(RateLimited) as caught:
        read_reply({"choices": [], "error": {"code": 429}}, {"retry-after": "7"})
    assert caught.value.retry_after_s == 7.0


# -- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, UNKNOWN),
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 8}, Usage(3, 4, 0, 8, 0)),
        ({"input_tokens": 3, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 7}, Usage(15)),
        ({"prompt_tokens": 3, "cache_creation_input_tokens": 5}, Usage(3)),
        ({"prompt_tokens": 3, "input_tokens": 9, "output_tokens": 2, "completion_tokens": 1}, Usage(9, 2)),
        ({"reasoning_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 6}}, Usage(reasoning=6)),
        ({"reasoning_tokens": 7, "output_tokens_details": {"reasoning_tokens": 6}}, Usage(reasoning=7)),
        ({"output_tokens_details": 3}, Usage()),
        ({"prompt_cache_hit_tokens": 4, "cached_tokens": 3}, Usage(cached=4)),
        ({"prompt_tokens_details": {"cached_tokens": 5}, "cached_tokens": 3}, Usage(cached=5)),
        ({"input_tokens_details": {"cached_tokens": 5}}, Usage(cached=5)),
        ({"prompt_tokens": True, "completion_tokens": -1, "total_tokens": 100_000_001}, Usage()),
        ({"prompt_tokens": "3", "completion_tokens": " 4.5 ",
         "total_tokens": 100_000_000}, Usage(3, 5, 0, 100_000_000)),
        ({"prompt_tokens": "x", "completion_tokens": 0, "total_tokens": [3]}, Usage(None, 0)),
        ({"prompt_tokens": float("nan")}, Usage()),
    ],
)  # fmt: skip
def test_every_count_of_a_usage(usage: Any, expected: Usage) -> None:
    assert read_usage(usage) == expected


@pytest.mark.parametrize(
    ("usage", "text_bytes", "settled"),
    [
        (Usage(), 0, Settled(200, 0, 60)),
        (Usage(90, 40), 0, Settled(90, 0, 40)),
        (Usage(90, 40, 10), 0, Settled(90, 0, 50)),
        (Usage(90, 40, 10, 130), 0, Settled(90, 0, 40)),
        (Usage(90, 40, 41, 130), 0, Settled(90, 0, 81)),
        (Usage(90, 40, 40, 130), 0, Settled(90, 0, 40)),
        (Usage(90, None, 10), 0, Settled(90, 0, 60)),
        (Usage(90, 40, 0, 150), 0, Settled(90, 0, 60)),
        (Usage(None, 40, 0, 150), 0, Settled(200, 0, 40)),
        (Usage(None, 40, 0, 241), 0, Settled(200, 0, 241)),
        (Usage(None, 40, 0, 240), 0, Settled(200, 0, 40)),
        (Usage(90, 40, 0, None, 90), 0, Settled(90, 90, 40)),
        (Usage(90, 40, 0, None, 91), 0, Settled(90, 0, 40)),
        (Usage(None, 40, 0, None, 5), 0, Settled(200, 0, 40)),
        # Fewer tokens than so many bytes can be.
        (Usage(1, 40), 0, Settled(1, 0, 40)),
        (Usage(0, 40), 0, Settled(200, 0, 40)),
        (Usage(90, 1), 128, Settled(90, 0, 1)),
        (Usage(90, 1), 129, Settled(90, 0, 60)),
    ],
)
def test_every_settlement(usage: Usage, text_bytes: int, settled: Settled) -> None:
    assert usage.settled(Bounds(128, 50), Bounds(200, 60), text_bytes) == settled


def test_known_counts_and_bounds() -> None:
    assert bounds(100, 3, 7) == Bounds(148, 7)
    assert Usage(3, 4).known() == (3, 4)
    assert Usage(3, 0).known() == (3, 0)
    assert Usage(0, 4).known() == Usage(3).known() == Usage(None, 4).known() == (0, 0)


# -- batches ----------------------------------------------------------------------------------------------------------


def line(status: Any, body: Any, **more: Any) -> bytes:
    return json.dumps({"custom_id": "k", "response": {"status_code": status, "body": body}, **more}).encode()


def not_done(detail: str, *, billed: bool = False) -> NotDone:
    return NotDone(detail, billed=billed)


NO_ANSWER = "the batch gave no readable answer to this request"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, not_done(NO_ANSWER)),
        (b"{oops", not_done(NO_ANSWER)),
        (b"[]", not_done(NO_ANSWER)),
        (b"{}", not_done("not done by the batch: no reason given")),
        (b'{"response": {"status_code": "200"}}', not_done("not done by the batch: no reason given")),
        (b'{"response": 3, "error": {"code": "x", "message": "expired"}}', not_done("not done by the batch: expired")),
        (b'{"error": "' + b"x" * 400 + b'"}', not_done("not done by the batch: " + "x" * 276 + "…")),
        (line(429, {"error": "slow"}), not_done("HTTP 429: slow")),
        (line(500, {"error": "so"}), not_done("HTTP 500: so")),
        (line(504, {"error": "so"}), not_done("HTTP 504: so", billed=True)),
        (line(200, {"x": 1}), not_done("HTTP 200, but no choices: " + line(200, {"x": 1}).decode(), billed=True)),
        (line(399, {"choices": []}), not_done(
            "HTTP 200, but no choices: " + line(399, {"choices": []}).decode(), billed=True
        )),
        (line(400, {"error": "so"}), Rejected("rejected by the endpoint", "HTTP 400: so", of_its_own=False)),
        (line(401, {"error": "so"}), Refused("key", "HTTP 401: so")),
    ],
)  # fmt: skip
def test_every_line_of_a_batch_without_an_answer(data: bytes | None, expected: TransportError) -> None:
    with pytest.raises(TransportError) as caught:
        read_line(data)
    same(caught.value, expected)


def test_a_line_of_a_batch_with_an_answer() -> None:
    assert read_line(line(200, {"choices": [choice()], "model": "m"})) == Reply("x", "stop", "m")
    assert request_line("k", {"a": 1}) == (
        b'{"custom_id":"k","method":"POST","url":"/v1/chat/completions","body":{"a":1}}\n'
    )
    assert issubclass(InJournal, Exception)


@pytest.mark.parametrize(("done", "doubtful"), [(None, {"c"}), (2, {"c"}), (3, {"c", "d"}), (9, {"c", "d", "e"})])
def test_the_lines_of_a_batch(done: int | None, doubtful: set[str]) -> None:
    output = Output()
    lines = [
        line(200, {}).replace(b'"k"', b'"a"'),
        b"",
        b"{torn",
        b'{"custom_id": "b", "response": {"status_code": 500}}',
        line(200, {"second": 1}).replace(b'"k"', b'"a"'),
        line(200, {}).replace(b'"k"', b'"other"'),
        b'{"custom_id": 3}',
        b'{"custom_id": "f", "response": 3}',
    ]
    output.write(lines[0] + b"\n" + lines[1])
    output.write(b"\n" + b"\n".join(lines[2:]) + b"\n")
    output.index(["a", "b", "c", "d", "e", "f"], done)
    assert output.answered == {"a"}
    assert output.doubtful == doubtful
    assert output.line("a") == lines[0] + b"\n"
    assert output.line("b") == lines[3] + b"\n"
    assert output.line("f") == lines[7] + b"\n"
    assert output.line("c") is output.line("other") is None
    output.close()
    with pytest.raises(ValueError):
        output.line("a")


def batch(*errors: dict[str, Any] | None) -> Batch:
    listed = [{"code": None, "line": None, "message": None, "param": None} | (error or {}) for error in errors]
    return Batch.model_validate(
        {
            "id": "b1",
            "completion_window": "24h",
            "created_at": 1,
            "endpoint": "/v1/chat/completions",
            "input_file_id": "f1",
            "object": "batch",
            "status": "failed",
            "errors": {"data": listed, "object": "list"} if errors else None,
        }
    )


def rejected(detail: str) -> Rejected:
    return Rejected("rejected by the endpoint", detail)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((), Verdict("batch b1: the endpoint does not say why")),
        (({"code": "odd", "message": "so"},), Verdict("batch b1: odd: so")),
        (
            ({"code": "a", "message": "1"}, {"code": "b", "message": "2"}, {"code": "c", "message": "3"}, {"code":
             "d"}),
            Verdict("batch b1: a: 1; b: 2; c: 3"),
        ),
        (({"message": "Enqueued token limit reached"},), Verdict("batch b1: None: Enqueued token limit "
         "reached", no_room=True)),
        (({"code": "token_limit_exceeded"},), Verdict("batch b1: token_limit_exceeded: None", no_room=True)),
        (({"code": "too_many_tasks"},), Verdict("batch b1: too_many_tasks: None", no_room=True)),
    ],
)  # fmt: skip
def test_every_verdict_on_a_batch(errors: Any, expected: Verdict) -> None:
    assert verdict_of(batch(*errors), ["k1", "k2"]) == expected


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("billing_hard_limit_reached", "quota"),
        ("billing_not_active", "quota"),
        ("insufficient_quota", "quota"),
        ("model_not_found", "model"),
    ],
)
def test_a_batch_that_is_refused(code: str, fault: Any) -> None:
    found = verdict_of(batch({"code": "odd"}, {"code": code, "line": 1, "message": "so"}), ["k1"])
    assert (found.detail, found.rejected, found.no_room) == (f"batch b1: odd: None; {code}: so", {}, False)
    assert found.refused is not None
    same(found.refused, Refused(fault, found.detail))


def test_the_lines_that_made_a_batch_fail() -> None:
    faults = [{"code": "c", "line": number, "message": "m" * 400 if number == 2 else "so"} for number in (0, 1, 2, 3)]
    found = verdict_of(batch(*faults, None), ["k1", "k2"])
    assert set(found.rejected) == {"k1", "k2"}
    assert (found.refused, found.no_room) == (None, False)
    same(found.rejected["k1"], rejected("line 1 of a batch: c: so"))
    same(found.rejected["k2"], rejected("line 2 of a batch: c: " + "m" * 277 + "…"))
