"""An endpoint that goes down and comes back, over real HTTP, in a time that sleeping moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from lion_ray.core.errors import EndpointError
from lion_ray.gateway.calls import Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.sender import DOWN
from tests.gateway.support import QuickTime, call
from tests.stub_api import Rule, StubAPI

Connect = Callable[..., Client]


class Outage(QuickTime):
    """Brings the stub back once its clients have slept for so long."""

    def __init__(self, stub: StubAPI, seconds: float) -> None:
        super().__init__()
        self._stub, self._seconds = stub, seconds
        self._port = urlsplit(stub.base_url).port or 0
        self._began: float | None = None
        self._back = False

    async def begin(self) -> None:
        await self._stub.stop()
        self._began = self.now

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if self._began is not None and not self._back and self.now - self._began >= self._seconds:
            self._back = True
            await self._stub.start(self._port)


@pytest.mark.parametrize("length_s", [30, 1800])
async def test_an_outage_costs_time_and_no_row(stub: StubAPI, connect: Connect, length_s: float) -> None:
    time = Outage(stub, length_s)
    settings = {"max_concurrency": 4, "breaker_failures": 4, "max_attempts": 3}
    client = connect(settings, clock=time.clock, sleep=time.sleep)
    assert isinstance(await client.complete(call("Here?")), Completion)
    await time.begin()
    outcomes = await asyncio.gather(*(client.complete(call(f"Question {n}")) for n in range(20)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert client.stats.down_s == 0
    assert client.stats.failed == 0
    # Doubling pauses, a minute at most: an outage of half an hour is probed some forty times, not thousands.
    assert client.stats.sent - 21 <= 12 + length_s / 30
    assert time.now <= 1.2 * length_s + 90


async def test_an_outage_without_end_stops_the_run_and_says_so(stub: StubAPI, connect: Connect) -> None:
    time = QuickTime()
    settings = {"breaker_failures": 2, "outage_timeout_s": 600, "max_attempts": 5}
    client = connect(settings, clock=time.clock, sleep=time.sleep)
    assert isinstance(await client.complete(call("Here?")), Completion)
    await stub.stop()
    with pytest.raises(EndpointError, match=r"has been down for 1[01] min .*unreachable.* run the same command"):
        await client.complete(call("Still here?"))
    assert client.stats.down_s >= 600


async def test_rows_that_always_fail_do_not_stall_the_rest_of_a_run(stub: StubAPI, connect: Connect) -> None:
    # At the end of a stage only the poisonous rows are left; the endpoint then looks as if it were down.
    stub.rules = [Rule("500", contains="poison")]
    time = QuickTime()
    settings = {"breaker_failures": 3, "max_attempts": 4}
    client = connect(settings, clock=time.clock, sleep=time.sleep)
    fine = [client.complete(call(f"Question {n}")) for n in range(10)]
    bad = [client.complete(call(f"poison {n}")) for n in range(5)]
    outcomes = await asyncio.gather(*fine, *bad)
    assert all(isinstance(outcome, Completion) for outcome in outcomes[:10])
    assert [outcome.reason for outcome in outcomes[10:] if isinstance(outcome, Failure)] == ["server error"] * 5
    assert time.now < 3600


async def test_who_can_ask_someone_else_does_not_wait(stub: StubAPI, connect: Connect) -> None:
    time = QuickTime()
    client = connect({"breaker_failures": 2}, clock=time.clock, sleep=time.sleep)
    assert isinstance(await client.complete(call("Here?")), Completion)
    await stub.stop()
    outcome = await client.complete(call("Still here?"), patient=False)
    assert isinstance(outcome, Failure)
    assert outcome.reason == DOWN
    assert time.now < 10


async def test_the_time_to_the_first_byte(stub: StubAPI, connect: Connect) -> None:
    stub.rules = [Rule("hang", times=1)]
    time = QuickTime()
    # On a machine that takes longer than that for an answer, another attempt is a quicker one.
    settings = {"first_byte_timeout_s": 0.5, "timeout_s": 6000, "max_attempts": 1000}
    client = connect(settings, clock=time.clock, sleep=time.sleep)
    assert isinstance(await client.complete(call("Hello?")), Completion)
    assert client.stats.retried >= 1
