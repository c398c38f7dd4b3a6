"""One endpoint at several addresses: balance, an address that is gone, and one that comes back; real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lion_ray.config import EndpointConfig
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.spread import REST_S, Spread
from lion_ray.gateway.wire import Transient, Unreachable
from tests.stub_api import StubAPI


async def test_calls_are_shared_among_addresses_and_an_address_that_is_gone_is_left_out(
    stub: StubAPI, connect: Callable[..., Client]
) -> None:
    async with StubAPI(latency_s=0.05) as other, StubAPI(latency_s=0.05) as gone:
        urls = {"base_url": stub.base_url, "more_urls": [other.base_url, gone.base_url], "max_concurrency": 6}
        await gone.stop()
        client = connect(urls, base_url=None)
        calls = [Call(({"role": "user", "content": f"question {number}"},), 20) for number in range(30)]
        for one in (stub, other):
            one.gate.clear()  # calls stay in flight, so the next one goes to the other address
        sent = asyncio.gather(*map(client.complete, calls))
        for one in (stub, other):
            await one.until(lambda stats: stats["in_flight"] >= 1)
        for one in (stub, other):
            one.gate.set()
        outcomes = await sent
        assert all(isinstance(outcome, Completion) and outcome.text for outcome in outcomes)
        shares = [len(one.requests) for one in (stub, other)]
        assert sum(shares) == 30
        assert min(shares) >= 1
        again = await asyncio.gather(*map(client.complete, calls))
        assert [outcome.key for outcome in again] == [outcome.key for outcome in outcomes]
        assert sum(len(one.requests) for one in (stub, other)) == 30, "the journal knows no addresses"


class Line:
    """An address that answers, or cannot be reached, as `up` says; the calls that it got."""

    def __init__(self, up: bool = True) -> None:
        self.up = up
        self.error: Exception | None = None
        self.got = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def chat(self, body: dict[str, Any]) -> Reply:
        self.got += 1
        await self.hold.wait()
        if self.error is not None:
            raise self.error
        if not self.up:
            raise Unreachable("refused")
        return Reply("yes", "stop", "m")

    async def close(self) -> None:
        self.up = False


async def test_the_address_with_the_fewest_calls_in_flight_gets_the_next() -> None:
    lines = [Line(), Line(), Line()]
    for line in lines:
        line.hold.clear()
    spread = Spread(lines)
    calls = [asyncio.create_task(spread.chat({})) for _ in range(7)]
    await asyncio.sleep(0)  # each task has begun
    assert [line.got for line in lines] == [3, 2, 2]
    for line in lines:
        line.hold.set()
    await asyncio.gather(*calls)


async def test_an_address_that_could_not_be_reached_rests_and_is_tried_again() -> None:
    now = 100.0
    lines = [Line(up=False), Line()]
    spread = Spread(lines, clock=lambda: now)
    await spread.chat({})
    await spread.chat({})
    assert [line.got for line in lines] == [1, 2]
    lines[0].up = True
    now += REST_S + 1
    await spread.chat({})
    assert [line.got for line in lines] == [2, 2]
    lines[0].up = lines[1].up = False
    with pytest.raises(Unreachable):
        await spread.chat({})


async def test_a_call_that_was_sent_is_not_sent_again_elsewhere() -> None:
    lines = [Line(), Line()]
    lines[0].error = Transient("connection lost", "cut off")
    with pytest.raises(Transient):
        await Spread(lines).chat({})
    assert [line.got for line in lines] == [1, 0]


def test_addresses_are_checked_like_the_first() -> None:
    with pytest.raises(ValueError, match="more_urls"):
        EndpointConfig(model="m", more_urls=("http://127.0.0.1:1/v1",))
    with pytest.raises(ValueError, match="more_urls"):
        EndpointConfig(model="m", base_url="http://a/v1", more_urls=("https://b/v1?api_key=sk-0123456789abcdef",))
