"""Targets: endpoints' responses (`gateway.reply`, `.sse`, `.wire`, `.body`), and batches' results."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable

import orjson

from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.gateway.batch.lines import Output, read_line
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.body import Body
from lion_ray.gateway.reply import Reply, parse_reply
from lion_ray.gateway.wire import TransportError, message_of, redact, reported_limits, retry_after, status_error
from tests.fuzz.target import FOLDER, Draw, target

NAMES = (
    *("choices", "message", "content", "text", "usage", "prompt_tokens", "completion_tokens", "total_tokens", "error"),
    *("code", "type", "param", "delta", "index", "finish_reason", "model", "object", "logprobs", "token", "refusal"),
    *("top_logprobs", "logprob", "bytes", "prompt_tokens_details", "cached_tokens", "reasoning_content", "detail"),
    *("cost", "tool_calls", "stop", "length", "chat.completion.chunk", "assistant", "role", "output_text", "msg"),
)
HEADERS = (
    *("retry-after", "retry-after-ms", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
    *("x-ratelimit-reset-requests", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "content-type"),
    *("x-ratelimit-reset-tokens", "x-should-retry", "anthropic-ratelimit-requests-reset", "date"),
)
REPLY = {
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "8 6"},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "8", "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -2}]}]},
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}


def _headers(draw: Draw) -> dict[str, str]:
    return {draw.choice(HEADERS): draw.text() for _ in range(draw.below(3))}


def _replies() -> Iterable[bytes]:
    whole = json.dumps(REPLY).encode()
    chunk = {"choices": [{"index": 0, "delta": {"content": "8"}, "finish_reason": None}]}
    yield b"\0\0" + whole
    yield b"\0\0" + b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
    yield b"\0\0" + b'{"error": {"message": "no", "code": 429}}'
    yield b"\0\0<html><title>busy</title>"
    yield b"\1" + bytes(range(200))
    yield b"\2" + bytes(range(200, 0, -1))


@target("replies", TransportError, seeds=_replies)
def replies(data: bytes) -> None:
    draw = Draw(data)
    kind, headers = draw.below(3), _headers(draw)
    if kind == 0:
        body = draw.rest()
    elif kind == 1:
        body = json.dumps(draw.json(NAMES, 7)).encode()
    else:
        events = [json.dumps(draw.json(NAMES, 7)).encode() for _ in range(1 + draw.below(4))]
        body = b"".join(b"data: " + event + b"\n\n" for event in events)
    _check_reply(parse_reply(body, headers))


def _check_reply(reply: Reply) -> None:
    assert isinstance(reply.text, str)
    assert isinstance(reply.finish_reason, str)
    reply.text.encode()  # it must be writable
    orjson.dumps(reply.usage)


def _errors() -> Iterable[bytes]:
    yield b'\0\1\0\x01\x35{"error": {"message": "slow down", "type": "tokens"}}'
    yield b'\3\1\3\x046m0s{"detail": [{"msg": "wrong"}]}'
    yield b"\5\0<html>busy</html>"


@target("errors", seeds=_errors)
def errors(data: bytes) -> None:
    draw = Draw(data)
    status, headers = draw.choice((429, 400, 401, 402, 403, 404, 408, 413, 422, 500, 503, 529, 302)), _headers(draw)
    text = json.dumps(draw.json(NAMES)) if draw.below(2) else draw.rest().decode("utf-8", "replace")
    error = status_error(status, headers, text)
    assert isinstance(error, TransportError)
    assert "\n" not in error.detail
    assert len(error.detail) < 1000
    waits = retry_after(headers, now=0.0)
    assert waits is None or 0 <= waits < float("inf")
    reported_limits(headers)
    redact(text.encode(), "sk-0123456789")
    message_of({"error": text})


def _bodies() -> Iterable[bytes]:
    for kind, packed in enumerate((b"{}" * 9, gzip.compress(b"{}" * 9, mtime=0), zlib.compress(b"{}" * 9))):
        yield bytes([kind, 3]) + packed
    yield bytes([1, 0]) + gzip.compress(bytes(5000), mtime=0)


@target("bodies", TransportError, seeds=_bodies)
def bodies(data: bytes) -> None:
    draw = Draw(data)
    encoding = draw.choice(("", "gzip", "deflate", "br", None))
    pieces, limit = 1 + draw.below(7), 4096
    received = draw.rest()
    body = Body(encoding, limit)
    size = max(1, len(received) // pieces)
    try:
        for at in range(0, len(received), size):
            body.add(received[at : at + size])
        assert len(body.whole()) <= limit
    finally:
        assert len(body.so_far()) <= limit


KEY = "k1"
_BATCH = (*NAMES, "custom_id", "response", "status_code", "body", "request_id", KEY)


def _batch_answers() -> Iterable[bytes]:
    line = {"custom_id": KEY, "response": {"status_code": 200, "body": REPLY}, "error": None}
    yield b"\0" + json.dumps(line).encode()
    yield b"\0" + json.dumps(line | {"response": None, "error": {"code": "batch_expired"}}).encode()
    yield b"\1" + bytes(range(200))


@target("batch-answers", TransportError, seeds=_batch_answers)
def batch_answers(data: bytes) -> None:
    draw = Draw(data)
    if draw.below(2):
        response = {"status_code": draw.json(_BATCH, 0), "body": draw.json(_BATCH, 6)}
        line = {"custom_id": KEY, "response": draw.choice((response, None)), "error": draw.json(_BATCH, 3)}
        received = json.dumps(line).encode()
    else:
        received = draw.rest()
    output = Output()
    try:
        output.write(received)
        output.index([KEY], draw.choice((None, 0, 1)))
        found = output.line(KEY)
        assert found is not None or KEY not in output.answered
        _check_reply(read_line(found if found is not None else received))
    finally:
        output.close()


_RECORD = ("nonce", "address", "endpoint", "keys", "made_at", "tried_at", "input_file_id", "batch_id", "n1", "api")


def _batch_records() -> Iterable[bytes]:
    record = BatchRecord("n1", "api", "teacher", ["k1", "k2"], 1.0, 2.0, "file-1", "batch-1")
    yield b"\0" + orjson.dumps(record)
    yield b"\1" + bytes(range(60))


@target("batch-records", InfrastructureError, ConfigError, seeds=_batch_records)
def batch_records(data: bytes) -> None:
    draw = Draw(data)
    root = FOLDER.empty()
    (root / "batches").mkdir()
    if draw.below(2):
        record = orjson.loads(orjson.dumps(BatchRecord("n1", "api", "teacher", ["k1"], 1.0, 2.0)))
        for _ in range(1 + draw.below(3)):
            record[draw.choice(_RECORD)] = draw.json(_RECORD, 2)
        content = json.dumps(record).encode()
    else:
        content = draw.rest()
    (root / "batches" / "n1.json").write_bytes(content)
    (root / "batches" / "n2.json").write_bytes(orjson.dumps(BatchRecord("n2", "api", "teacher", ["k"], 3.0, 4.0)))
    for found in BatchRecords(str(root)).load("api"):
        assert isinstance(found.nonce, str)
        assert all(isinstance(key, str) for key in found.keys)
        assert isinstance(found.made_at + found.tried_at, float | int)
        assert isinstance(found.batch_id, str | None)
        assert isinstance(found.input_file_id, str | None)
