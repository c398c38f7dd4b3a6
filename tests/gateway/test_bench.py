"""The bench's stub server keeps its word, and its goals say what they should."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from bench.gateway import Findings, allowed, goals, parse
from bench.harness import Stub, stub_server
from bench.kills import Killed


async def ask(stub: Stub, *bodies: bytes) -> bytes:
    """Send all bodies at once on one connection; all that came back until the server had answered each."""
    where = urlsplit(stub.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    for body in bodies:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
    answers = b""
    for _ in bodies:
        head_read = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split()[1]) for line in head_read.splitlines() if line.lower().startswith(b"content-l"))
        answers += head_read + await reader.readexactly(length)
    writer.close()
    return answers


async def test_requests_of_one_connection_are_answered_in_order_and_by_their_bodies() -> None:
    with stub_server("--latency-ms", "1") as stub:
        first, second = await ask(stub, b"one"), await ask(stub, b"two")
        assert first != second
        assert await ask(stub, b"one", b"two", b"one") == first + second + first
        stats = await asyncio.to_thread(stub.stats, bodies=True)
    assert (stats["bought"], stats["distinct"], stats["repeated"], stats["limited"]) == (5, 2, 3, 0)
    assert sorted(stats["bodies"].values()) == [2, 3]
    assert json.loads(first.split(b"\r\n\r\n", 1)[1])["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [(), ("--silent-limit",)])
async def test_past_the_burst_there_are_429s_that_are_not_bought(options: tuple[str, ...]) -> None:
    with stub_server("--per-minute", "1", "--burst", "2", *options) as stub:
        answers = await ask(stub, b"1", b"2", b"3")
        stats = await asyncio.to_thread(stub.stats)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.count(b"HTTP/1.1 429") == 1
    assert answers.count(b"Retry-After: 60") == 1
    assert (b"x-ratelimit-remaining-requests: 1" in answers) is not bool(options)
    assert (stats["bought"], stats["limited"]) == (2, 1)


LIMIT = {"used": 0.98, "answered": 10, "calls": 10, "limited_share": 0.0}
GOOD = Findings(
    without_latency={
        "gateway": {"rows_per_s": 3000.0, "rounds_rows_per_s": [3000.0, 3100.0, 2000.0, 3000.0, 3000.0]},
        "oumi": {"rows_per_s": 1900.0},
    },
    with_latency={"gateway": {"rounds_rows_per_s": [2950.0, 3000.0, 1000.0, 2900.0, 2000.0]}},
    limits={"told": LIMIT, "silent": LIMIT},
    memory={"grown_mb": 40.0},
)
KILLED = Killed(10, 4, kills=2, answered=10, bought=12, bought_twice=2, in_flight_at_kill=[2, 4])


def missed(found: Findings, killed: Killed = KILLED, skipped: dict[str, str] | None = None) -> list[str]:
    return [goal.name for goal in goals(found, killed, skipped or {}, calls=10_000) if goal.ok is False]


def test_goals() -> None:
    assert not missed(GOOD)
    absent = {"gateway": GOOD.without_latency["gateway"], "oumi": {"reason": "cannot be built"}}
    assert missed(replace(GOOD, without_latency=absent)) == ["0 ms: rows/s at least oumi's"]
    assert not missed(replace(GOOD, without_latency=absent), skipped={"oumi": "not asked for"})
    slow = {"gateway": {"rounds_rows_per_s": [2950.0, 2900.0, 1000.0, 2800.0, 2000.0]}}
    share = "50 ms, 256 in flight: share of the rate that the latency allows"
    assert missed(replace(GOOD, with_latency=slow)) == [share]
    assert missed(replace(GOOD, with_latency={"gateway": {"reason": "it broke"}})) == [share]
    assert not missed(replace(GOOD, with_latency={"gateway": {"rounds_rows_per_s": [100.0]}})), "one run is no measure"
    assert missed(replace(GOOD, memory={"grown_mb": 101.0})) == ["memory: MB from few calls to many"]
    assert missed(GOOD, replace(KILLED, lost=1)) == ["kills: results lost"]
    assert missed(GOOD, replace(KILLED, bought_twice=7)) == ["kills: sent twice"]


def test_what_latency_allows() -> None:
    assert allowed(10_000.0, 10**9) == 256 / 0.05, "so many in flight, each as long as the latency"
    assert allowed(1000.0, 1000) == pytest.approx(1000 / 1.05), "the last answer comes a latency after its request"


def test_arguments() -> None:
    assert parse(["--quick", "--json"]).quick
    assert not parse([]).no_peers
