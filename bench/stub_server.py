"""A chat completions server that is as fast as Python allows, so that a bench measures the client.

Invariants:
- An answer depends only on the request's body, and contains the body's digest.
- Requests of one connection are answered in order, one at a time.
- A request counts as bought when it is accepted, because an endpoint also bills answers that nobody waits for.

It implements only the HTTP/1.1 that a client needs to post JSON, and checks nothing. `tests/stub_api.py` simulates real
services with their faults; tests use that one.

``python -m bench.stub_server --latency-ms 50`` prints its base URL on the first line and ends when its stdin closes.
``GET /stats`` returns counts since the start or the last ``POST /reset``; ``GET /stats?bodies`` includes every body.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import re
import resource
import sys
import threading
import time
from collections import Counter
from hashlib import blake2b

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_TEXT = (
    "the short answer comes first and the reasons follow it in the order in which a careful reader would ask for them "
    "while an example that can be checked by hand stands at the end "
)
_SPACES = [at for at, character in enumerate(_TEXT) if character == " "]
_WORDS = [(_TEXT[at + 1 :] + _TEXT[:at]).encode() for at in _SPACES]
_COMPLETION = (
    b'{"id":"chatcmpl-%b","object":"chat.completion","created":1700000000,"model":"stub-0001","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b: %b."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":40,"completion_tokens":34,"total_tokens":74}}'
)
_LIMITED = (
    b'{"error":{"message":"Rate limit reached, please slow down","type":"requests","code":"rate_limit_exceeded"}}'
)
_HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"


def digest_of(body: bytes) -> str:
    """The digest by which a body is counted."""
    return blake2b(body, digest_size=12).hexdigest()


class Bucket:
    """A token bucket of size `burst`: the server's rate limit."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.per_minute, self.burst = per_minute, burst
        self.level, self._at = burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.level = min(self.burst, self.level + (now - self._at) * self.per_minute / 60)
        self._at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def headers(self) -> bytes:
        reset_ms = (self.burst - self.level) / self.per_minute * 60_000
        return (
            b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
            b"x-ratelimit-reset-requests: %dms\r\n"
        ) % (self.per_minute, self.level, reset_ms)

    def retry_after_s(self) -> int:
        """Integer seconds, as the header requires, rounded up."""
        return max(1, math.ceil((1 - self.level) / self.per_minute * 60))


class Server:
    """The state shared by all connections."""

    def __init__(self, latency_s: float = 0.0, limit: Bucket | None = None, announce_limit: bool = True) -> None:
        self.latency_s, self.limit, self._announce_limit = latency_s, limit, announce_limit
        self.reset()

    def reset(self) -> None:
        self._bodies: Counter[str] = Counter()
        self._limited = 0
        self._first_at = self._last_at = 0.0
        self._cpu_s = _cpu_s()

    def stats(self, *, bodies: bool = False) -> dict[str, object]:
        bought = self._bodies.total()
        return {
            "bought": bought,
            "distinct": len(self._bodies),
            "repeated": bought - len(self._bodies),
            "limited": self._limited,
            "seconds": self._last_at - self._first_at,
            "cpu_s": _cpu_s() - self._cpu_s,
        } | ({"bodies": self._bodies} if bodies else {})

    def answer(self, target: bytes, body: bytes) -> tuple[bytes, bool]:
        """The response, and whether to delay it by the latency."""
        if target.startswith(b"POST /v1/"):
            return self._chat(body)
        if target.startswith(b"GET /stats"):
            return _response(b"200 OK", json.dumps(self.stats(bodies=b"bodies" in target)).encode()), False
        if target.startswith(b"POST /reset"):
            self.reset()
            return _response(b"200 OK", b"{}"), False
        return _response(b"404 Not Found", b"{}"), False

    def _chat(self, body: bytes) -> tuple[bytes, bool]:
        if not self._first_at:
            self._first_at = time.monotonic()
        limit = self.limit
        if limit is not None and not limit.take():
            self._limited += 1
            headers = limit.headers() if self._announce_limit else b""
            return _response(
                b"429 Too Many Requests", _LIMITED, b"Retry-After: %d\r\n" % limit.retry_after_s() + headers
            ), False
        self._last_at = time.monotonic()
        digest = digest_of(body)
        self._bodies[digest] += 1
        headers = limit.headers() if limit is not None and self._announce_limit else b""
        name = digest.encode()
        words = _WORDS[int(digest[:4], 16) % len(_WORDS)]
        return _response(b"200 OK", _COMPLETION % (name, name, words), headers), True


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._read = b""
        self._busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._read = self._read + data if self._read else data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._read, 0, end + 2)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self._read) < stop:
                return
            target, body = self._read[: self._read.index(b"\r\n")], self._read[end + 4 : stop]
            self._read = self._read[stop:]
            response, slow = self._server.answer(target, body)
            if slow and self._server.latency_s:
                self._busy = True
                asyncio.get_running_loop().call_later(self._server.latency_s, self._late, response)
                return
            if self._transport is not None:
                self._transport.write(response)

    def _late(self, response: bytes) -> None:
        self._busy = False
        if self._transport is not None:
            self._transport.write(response)
            self._next()


def _response(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return _HEAD % (status, len(body), headers, body)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve(server: Server, port: int) -> None:
    listening = await asyncio.get_running_loop().create_server(
        lambda: Connection(server), "127.0.0.1", port, backlog=4096
    )
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    async with listening:
        await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--per-minute", type=float, help="accept this many requests per minute; the others get a 429")
    parser.add_argument("--burst", type=float, default=100.0, help="how many of them may come at once")
    parser.add_argument("--silent-limit", action="store_true", help="no x-ratelimit headers, only 429s")
    given = parser.parse_args()
    limit = None if given.per_minute is None else Bucket(given.per_minute, given.burst)
    server = Server(given.latency_ms / 1000, limit, not given.silent_limit)
    gc.disable()  # there are no reference cycles here
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    asyncio.run(_serve(server, given.port))


if __name__ == "__main__":
    main()
