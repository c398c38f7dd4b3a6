"""A client step by step: what it counts, tells and says, with a transport that answers by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import EndpointError, InfrastructureError
from lion_ray.gateway.calls import Account, Call, Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.http import AiohttpTransport
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.spending import Spent
from lion_ray.gateway.ledger import Excess, Ledger
from lion_ray.gateway.openai_transport import OpenAITransport
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.spread import Spread
from lion_ray.gateway.stats import Event, Stats
from lion_ray.gateway.usage import Bounds, Settled, Usage
from lion_ray.gateway.wire import RateLimited, Rejected, Transient

CALL = Call(({"role": "user", "content": "u" * 60},), 1000, role="teacher", stage="answers")
KEY = CALL.key("m")
PRICES = {"input": 1.0, "output": 2.0}


class Bench:
    """A client with everything around it."""

    def __init__(self, journal: Journal, *script: Any, **changes: Any) -> None:
        self.script, self.now = list(script), 0.0
        self.asked = self.closed = 0
        self.begun = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.events: list[Event] = []
        self.said: list[str] = []
        self.journal = journal
        options: dict[str, Any] = {name: changes.pop(name) for name in ("run", "weights", "ledger") if name in changes}
        self.client = Client(
            "e",
            EndpointConfig(**({"model": "m", "api_key_env": None, "max_attempts": 1, "prices": PRICES} | changes)),
            journal,
            transport=self,
            on_event=self.events.append,
            say=self.said.append,
            clock=lambda: self.now,
            sleep=self.sleep,
            **({"run": "r"} | options),
        )

    async def chat(self, body: dict[str, Any]) -> Reply:
        self.asked += 1
        self.begun.set()
        self.now += 2.0
        if self.gate is not None:
            await self.gate.wait()
        result = self.script.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        self.closed += 1

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


GOOD = Reply("so", "stop", "m-1", Usage(50, 500))
ANSWER = Completion(KEY, "so", "stop", "m-1", "e", 50, 500, seconds=2.0, cost_usd=0.00105)


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(str(tmp_path / "journal"))
    yield opened
    await opened.close()


async def test_a_call_is_bought_once_and_then_replayed(journal: Journal) -> None:
    bench = Bench(journal, GOOD)
    assert await bench.client.complete(CALL) == ANSWER
    replayed = await bench.client.complete(CALL)
    assert isinstance(replayed, Completion)
    assert (replayed.replayed, replayed.text, bench.asked) == (True, "so", 1)
    assert bench.events == [
        Event("completed", KEY, "teacher", "stop", 2.0, 50, 500, 0.00105),
        Event("replayed", KEY, "teacher"),
    ]
    await asyncio.sleep(0.01)
    assert bench.client.stats == Stats(
        sent=1,
        completed=1,
        replayed=1,
        prompt_tokens=50,
        completion_tokens=500,
        spent_usd=pytest.approx(0.00105),  # type: ignore[arg-type]
        sent_per_minute=1,
        latency_p50_s=2.0,
        latency_p95_s=2.0,
    )
    assert journal.spending("r") == {Account("r", "teacher", "answers"): Spent(1, 50, 500, 0.00105)}
    await bench.client.close()
    assert bench.closed == 1
    with pytest.raises(InfrastructureError) as caught:
        await bench.client.complete(CALL)
    assert str(caught.value) == "the client of endpoint e was closed before this call was answered"


async def test_callers_of_one_call_share_its_purchase(journal: Journal) -> None:
    bench = Bench(journal, GOOD)
    bench.gate = asyncio.Event()
    calls = [asyncio.create_task(bench.client.complete(CALL)) for _ in range(3)]
    await asyncio.wait_for(bench.begun.wait(), 20)
    assert (bench.client.stats.in_flight, bench.client.stats.waiting) == (1, 0)
    bench.gate.set()
    outcomes = await asyncio.gather(*calls)
    assert [one.replayed for one in outcomes if isinstance(one, Completion)] == [False, True, True]
    assert (bench.asked, bench.client.stats.replayed, bench.client.stats.completed) == (1, 2, 1)
    await bench.client.close()


async def test_failures_are_told_and_counted(journal: Journal) -> None:
    bench = Bench(journal, Rejected("rejected by the endpoint", "no"), Transient("timed out", "late"))
    assert await bench.client.complete(CALL) == Failure(KEY, "rejected by the endpoint", "no")
    assert await bench.client.complete(CALL) == Failure(KEY, "timed out", "late (attempt 1 of 1)")
    assert bench.events == [
        Event("failed", KEY, "teacher", "rejected by the endpoint: no"),
        Event("failed", KEY, "teacher", "timed out: late (attempt 1 of 1)"),
    ]
    worst = (60 + 16) / 1e6 + 1000 * 2 / 1e6
    stats = bench.client.stats
    assert (stats.failed, stats.completed, stats.sent) == (2, 0, 2)
    assert stats.uncertain_usd == pytest.approx(worst)
    (doubt,) = journal.uncertain("r")
    assert (doubt.account, doubt.endpoint, doubt.calls) == (Account("r", "teacher", "answers"), "e", 1)
    assert doubt.usd == pytest.approx(worst)
    odd = await bench.client.complete(Call(({"role": "user", "content": "\ud800"},), 9, role="referee"))
    assert isinstance(odd, Failure)
    assert (odd.key, odd.reason) == ("", "not valid text")
    assert odd.detail
    assert bench.events[-1] == Event("failed", "", "referee", f"not valid text: {odd.detail}")
    await bench.client.close()


async def test_the_meaning_of_finish_reasons(journal: Journal) -> None:
    odd = [
        Reply("so", reason, "m", Usage(1, 1)) for reason in ("own", *(f"odd{number}" for number in range(6)), "odd0")
    ]
    bench = Bench(journal, *odd, finish_reasons={"own": "stop"})
    calls = [Call(CALL.messages, 100, ordinal=number) for number in range(8)]
    reasons = [await bench.client.complete(call) for call in calls]
    assert [one.finish_reason for one in reasons if isinstance(one, Completion)] == [
        "stop",
        *(f"odd{number}" for number in range(6)),
        "odd0",
    ]
    assert bench.said[0] == (
        "endpoint e: an answer has the unknown finish_reason 'odd0' and counts as truncated; if such answers are "
        "complete, set endpoints.e.finish_reasons: {odd0: stop}"
    )
    assert len(bench.said) == 5, "each once, and no more than five"
    again = await bench.client.complete(calls[0])
    assert isinstance(again, Completion)
    assert again.finish_reason == "stop", "from the journal too, where its own name stands"
    assert (await journal.get(calls[0].key("m"))).finish_reason == "own"  # type: ignore[union-attr]
    await bench.client.close()


async def test_weights_and_settings_are_part_of_the_key(journal: Journal) -> None:
    bench = Bench(journal, GOOD, GOOD, weights="w", omit=("top_p",), send_seed=True)
    found = await bench.client.complete(Call(CALL.messages, 100, seed=3))
    assert isinstance(found, Completion)
    assert found.key == Call(CALL.messages, 100, seed=3, omit=("top_p",), extra={}).key("m", "w")
    await bench.client.close()


async def test_pauses_and_excess_reach_the_sender(journal: Journal) -> None:
    bench = Bench(journal, RateLimited(3.0, "slow"), GOOD)
    bench.client.pause(7.0)
    assert bench.client.stats.paused_s == 7.0
    assert await bench.client.complete(CALL) is not None
    assert bench.now == 7.0 + 2.0 + 3.0 + 2.0
    assert (bench.client.stats.rate_limited, bench.client.stats.pausing) == (1, 0)
    seen = Excess()
    seen.learn(Bounds(10, 10), Bounds(10, 10), Settled(10, 0, 30))
    bench.client.expect(seen)
    assert bench.client.excess.raised(Bounds(10, 10)) == (10, 30)
    await bench.client.close()
    shared = Ledger(PricesConfig(input=1.0, output=1.0))
    assert Bench(journal, ledger=shared).client.excess is shared.excess


async def test_a_caller_that_leaves(journal: Journal) -> None:
    bench = Bench(journal, GOOD)
    bench.gate = asyncio.Event()
    call = asyncio.create_task(bench.client.complete(CALL))
    await asyncio.wait_for(bench.begun.wait(), 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    bench.gate.set()
    await bench.client.close()
    stored = await journal.get(KEY)
    assert stored is not None, "it was paid for"
    assert stored.text == "so"
    # Before it is sent, nobody pays.
    other = Bench(journal, GOOD)
    other.client.pause(5.0)
    other.client._sender._sleep = lambda seconds: asyncio.sleep(3600)
    unsent = asyncio.create_task(other.client.complete(Call(CALL.messages, 101)))
    await asyncio.sleep(0.05)
    assert other.client.stats.waiting == 1
    unsent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unsent
    await asyncio.sleep(0.01)
    assert (other.asked, other.client.stats.waiting) == (0, 0)
    waiting = asyncio.create_task(other.client.complete(Call(CALL.messages, 102)))
    await asyncio.sleep(0.05)
    await other.client.close()
    with pytest.raises(InfrastructureError) as caught:
        await waiting
    assert str(caught.value) == "the client of endpoint e was closed before this call was answered"


def made(journal: Journal, base_url: str | None = None, **changes: Any) -> Client:
    config = EndpointConfig(**({"model": "m", "api_key_env": None} | changes))
    return Client("e", config, journal, base_url=base_url)


async def test_which_transport_is_made(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert made(journal).address == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://env.test/v1")
    assert made(journal).address == "https://env.test/v1"
    own = made(journal, base_url=None, **{})
    assert isinstance(own._transport, AiohttpTransport)
    config: dict[str, Any] = {"more_urls": ("https://two.test/v1",)}
    several = Client(
        "e", EndpointConfig(model="m", api_key_env=None, base_url="https://one.test/v1", **config), journal
    )
    assert (several.address, type(several._transport)) == ("https://one.test/v1", Spread)
    served = Client(
        "e",
        EndpointConfig(model="m", api_key_env=None, base_url="https://one.test/v1", **config),
        journal,
        base_url="http://127.0.0.1:1/v1",
    )
    assert (served.address, type(served._transport)) == ("http://127.0.0.1:1/v1", AiohttpTransport)
    package = made(journal, transport="openai")
    assert isinstance(package._transport, OpenAITransport)
    for client in (own, several, served, package):
        await client.close()


def refused(journal: Journal, base_url: str, **changes: Any) -> str:
    with pytest.raises(EndpointError) as caught:
        made(journal, base_url, **changes)
    return str(caught.value)


async def test_clients_that_cannot_be_made(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXACT_KEY", raising=False)
    assert refused(journal, "ftp://u:secret@api.test/v1") == (
        "endpoint e: 'ftp://api.test/v1' is not a valid address: base_url must start with http:// or https://"
    )
    assert refused(journal, "https://api.test/v1", api_key_env="EXACT_KEY") == (
        "endpoint e (https://api.test/v1) needs a key: set the environment variable EXACT_KEY"
    )
    for odd in ("two words", "schlüssel", "a\x01b"):
        monkeypatch.setenv("EXACT_KEY", odd)
        assert refused(journal, "https://api.test/v1", api_key_env="EXACT_KEY") == (
            "endpoint e (https://api.test/v1): EXACT_KEY holds characters that no key has, such as a space"
        )
    monkeypatch.setenv("EXACT_KEY", " key\n")
    await made(journal, "https://api.test/v1", api_key_env="EXACT_KEY").close()
    assert refused(journal, "https://u:secret@api.test/v1", api_key_env="EXACT_KEY") == (
        "endpoint e (https://api.test/v1): base_url holds a user or a password and EXACT_KEY holds a key, but only one "
        "can be sent; remove the user and password from base_url, or set endpoints.e.api_key_env to null"
    )
    await made(journal, "https://u:secret@api.test/v1").close()
    with pytest.raises(ValueError) as caught:
        made(journal, serve={"model": "x"})
    assert str(caught.value) == "endpoint e is served by the run: base_url is required"
