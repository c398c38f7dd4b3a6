"""What a user is promised of money and keys, at the place where it counts: in what the endpoint is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import BudgetError, EndpointError
from lion_ray.gateway.calls import Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Budget, Ledger
from tests.gateway.support import QuickTime, call
from tests.stub_api import Answer, Rule, StubAPI

Connect = Callable[..., Client]
PRICES = PricesConfig(input=1e-6, output=10_000.0)
"""The input costs next to nothing: a call's worst case is what its answer may cost, give or take a ten-thousandth."""
WORST = 0.64
"""US dollars: 64 tokens, as `support.call` allows."""


def ledger(budget: Budget) -> Ledger:
    async def do(method: Callable[..., Any], *amounts: float) -> Any:
        return method("proxy", *amounts)

    budget.opened("proxy", 0.0)
    return Ledger(PRICES, lease=partial(do, budget.lease), report=partial(do, budget.report))


async def test_nothing_is_sent_that_the_budget_could_not_pay(stub: StubAPI, connect: Connect) -> None:
    stub.answer = lambda _: Answer(" ".join(["word"] * 64))
    stub.gate.clear()
    budget = Budget(3.5 * WORST)
    client = connect({"prices": PRICES.model_dump()}, ledger=ledger(budget))
    asked = asyncio.gather(*(client.complete(call(f"Question {n}")) for n in range(20)), return_exceptions=True)
    await stub.until(lambda stats: stats["in_flight"] >= 3)
    stub.gate.set()
    outcomes = await asked
    assert len(stub.requests) == 3
    assert sum(isinstance(outcome, Completion) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, BudgetError) for outcome in outcomes) == 17
    await client.close()
    assert 3 * WORST <= budget.spent <= budget.cap  # type: ignore[operator]


@pytest.mark.parametrize("fault", ["drop", "close"])
async def test_what_a_call_of_unknown_fate_may_have_cost_is_not_spent_again(
    stub: StubAPI, connect: Connect, fault: str
) -> None:
    stub.answer = lambda _: Answer(" ".join(["word"] * 64))
    stub.rules = [Rule(fault, contains="Lost")]
    settings = {"prices": PRICES.model_dump(), "max_attempts": 1, "max_concurrency": 1}
    client = connect(settings, ledger=ledger(Budget(2.5 * WORST)))
    assert isinstance(await client.complete(call("Lost?")), Failure)
    assert client.stats.uncertain_usd == pytest.approx(WORST, rel=1e-3)
    outcomes = [await _outcome(client, f"Question {n}") for n in range(4)]
    assert [type(outcome) for outcome in outcomes] == [Completion, BudgetError, BudgetError, BudgetError]
    assert len(stub.requests) == 2


async def _outcome(client: Client, text: str) -> object:
    try:
        return await client.complete(call(text))
    except BudgetError as error:
        return error


@asynccontextmanager
async def serving(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server's base URL and the requests that came."""
    came: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        came.append(request)
        await request.read()
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", came
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_neither_key_nor_prompt_goes_where_a_redirect_points(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("LION_TEST_KEY", "sk-canary")
    time = QuickTime()
    async with serving(lambda _: web.json_response({})) as (elsewhere, came):
        to = {"Location": f"{elsewhere}/chat/completions"}
        async with serving(lambda _: web.Response(status=status, headers=to)) as (address, asked):
            config = EndpointConfig(model="m", api_key_env="LION_TEST_KEY", max_attempts=2)
            client = Client("default", config, journal, base_url=address, clock=time.clock, sleep=time.sleep)
            with pytest.raises(EndpointError, match=f"HTTP {status}"):
                await client.complete(call("A secret."))
            await client.close()
            assert asked
        assert came == []
