"""An endpoint that is down, or says to wait, is no stall: the run's watchdog beside a client, over real HTTP, on one
clock that sleeping moves. Everything else is as a run has it by default."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lion_ray.config import EndpointConfig, RunConfig
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.stats import ServedStats, Stats
from lion_ray.pipeline.watchdog import LOOKS, Watchdog
from tests.gateway.support import QuickTime, call
from tests.stub_api import Rule, StubAPI

Connect = Callable[..., Client]
STALL_S: float = RunConfig.model_fields["stall_timeout_s"].default
OUTAGE_S: float = EndpointConfig.model_fields["outage_timeout_s"].default


class BaseActor(QuickTime):
    """However long a sleep is, the watchdog looks as often as it would."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.progress = Progress(io.StringIO())
        self.stats: Callable[[], Stats] = Stats
        self.own_server = False
        self.dog = Watchdog(self.progress, RunStore(str(folder)), STALL_S, dict, self._moves)
        self._looked_at = 0.0

    async def _moves(self) -> int:
        return self.stats().moves(own_server=self.own_server, now=int(self.now * 1e9))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        await self.until(self.now + seconds)

    async def until(self, moment: float) -> None:
        """Let the clock go on to `moment`, looking on the way; raises what the watchdog does."""
        while (look_at := self._looked_at + STALL_S / LOOKS) <= moment:
            self._looked_at = self.now = max(self.now, look_at)
            await self.dog.look(self.now)
        self.now = max(self.now, moment)


@pytest.fixture
def time(tmp_path: Path) -> BaseActor:
    return BaseActor(tmp_path / "run")


async def test_an_outage_ends_a_run_when_it_has_lasted_too_long_and_no_sooner(
    stub: StubAPI, connect: Connect, time: BaseActor
) -> None:
    assert OUTAGE_S > STALL_S, "else this proves nothing"
    client = connect(clock=time.clock, sleep=time.sleep)
    time.stats = lambda: client.stats
    assert isinstance(await client.complete(call("Here?")), Completion)
    await stub.stop()
    with time.progress.stage("answering", 8, "shards"):
        asked = [client.complete(call(f"Question {n}")) for n in range(12)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EndpointError}
    assert re.search("has been down for 6[01] min", str(outcomes[0]))
    assert time.now >= OUTAGE_S


@pytest.mark.parametrize(
    ("fault", "after", "settings"),
    [
        ("429", "7200", {}),
        ("503", "7200", {}),
        ("429", "date:7200", {}),
        # A quota of six a day, say.
        ("", "", {"limits": {"requests_per_minute": 60 / 14_400}}),
    ],
    ids=["429", "503", "429 until a date", "a slow limit"],
)
async def test_an_endpoint_that_asks_for_two_hours_gets_them(
    stub: StubAPI, connect: Connect, time: BaseActor, fault: str, after: str, settings: dict[str, object]
) -> None:
    if fault:
        stub.rules = [Rule(fault, contains="Again", times=1, retry_after=after)]
    client = connect(settings, clock=time.clock, sleep=time.sleep)
    time.stats = lambda: client.stats
    with time.progress.stage("answering", 8, "shards"):
        for text in ("Here?", "Again?", "And again?"):
            assert isinstance(await client.complete(call(text)), Completion)
    assert time.now >= 7200 - 1
    assert client.stats.pausing == 0


async def test_a_run_that_waits_for_nothing_stands_still(time: BaseActor) -> None:
    time.stats = lambda: Stats(sent=3, completed=3, waiting=5)
    with (
        time.progress.stage("answering", 8, "shards"),
        pytest.raises(InfrastructureError, match="no progress for 1800 s in answering"),
    ):
        await time.until(3 * STALL_S)
    assert time.now <= 1.2 * STALL_S


async def test_an_attempt_that_is_out_ends_by_itself_but_not_at_a_server_of_ones_own(time: BaseActor) -> None:
    def written(tokens: int) -> Stats:
        return Stats(sent=1, in_flight=1, served=ServedStats(0.0, 0.0, tokens, 0, 1, 0))

    time.stats = partial(written, 0)
    with time.progress.stage("answering", 8, "shards"):
        await time.until(2 * STALL_S)
        time.own_server = True
        for tokens in range(1, 20):
            time.stats = partial(written, tokens)
            await time.until(time.now + STALL_S / 5)
        with pytest.raises(InfrastructureError, match="no progress"):
            await time.until(time.now + 2 * STALL_S)


async def test_attempts_that_end_in_errors_are_moves_too(time: BaseActor) -> None:
    with time.progress.stage("answering", 8, "shards"):
        for sent in range(1, 10):
            time.stats = partial(Stats, sent=sent)
            await time.until(time.now + STALL_S / 2)
