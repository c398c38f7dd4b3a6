"""Money: prices, reservations, and a cap that holds however calls interleave."""

from __future__ import annotations

import asyncio
import random

import pytest

from lion_ray.config import PricesConfig
from lion_ray.core.errors import BudgetError
from lion_ray.gateway.ledger import Budget, Excess, Ledger, cost
from lion_ray.gateway.usage import Bounds, Settled, Usage, bounds

PRICES = PricesConfig(input=2.0, output=8.0, cached_input=0.5, batch=0.5)


def test_what_a_call_costs() -> None:
    assert cost(PRICES, 1000, 0, 500) == pytest.approx(0.002 + 0.004)
    assert cost(PRICES, 1000, 400, 500) == pytest.approx(0.0012 + 0.0002 + 0.004)
    assert cost(PRICES, 1000, 400, 500, batch=True) == pytest.approx(0.0027)
    assert cost(PRICES, 10, 5000, 0) == pytest.approx(10 * 0.5e-6), "no more can be cached than was sent"
    assert cost(PricesConfig(input=1, output=1), 1000, 400, 0) == pytest.approx(0.001)


def test_the_worst_case_is_no_less_than_any_case() -> None:
    size = len("Schreibe ein Gedicht über Öl. 写一首诗。".encode())
    assert Ledger(PRICES).worst(bounds(size, 1, 100)) >= cost(PRICES, size + 8, 0, 100)
    assert Ledger(None).worst(bounds(size, 1, 100)) == 0.0


def test_usage_that_is_not_named_counts_as_the_worst() -> None:
    ledger, asked = Ledger(PRICES), bounds(5000, 1, 800)
    assert ledger.price(Usage().settled(asked, asked)) == ledger.worst(asked)
    assert ledger.price(Settled(1000, 0, 500)) == pytest.approx(0.006)
    assert Ledger(None).price(Settled(1000, 0, 500)) is None


def test_what_one_answer_took_beyond_its_bounds_every_later_call_reserves() -> None:
    excess, asked = Excess(), Bounds(50, 100)
    assert not excess.learn(asked, asked, Settled(10, 0, 100)), "all that was allowed"
    assert excess.raised(asked) == asked
    assert excess.learn(asked, asked, Settled(10, 0, 32_000))
    assert excess.raised(asked) == (50, 32_000)
    assert not excess.learn(asked, excess.raised(asked), Settled(10, 0, 32_000))
    assert excess.raised(Bounds(50, 40)) == (50, 31_940), "thoughts do not grow with what is asked for, as far as seen"
    assert excess.raised(Bounds(50, 200)) == (50, 64_000), "they may: nothing so long was answered yet"
    excess.learn(Bounds(50, 200), excess.raised(Bounds(50, 200)), Settled(10, 0, 31_000))
    assert excess.raised(Bounds(50, 200)) == (50, 32_100)
    assert excess.learn(asked, excess.raised(asked), Settled(70, 0, 10)), "a prompt of the endpoint's own"
    assert excess.raised(Bounds(10, 100)) == (30, 32_000)


def test_an_answer_that_names_nothing_teaches_nothing() -> None:
    excess, short, long = Excess(), Bounds(50, 100), Bounds(50, 1000)
    excess.learn(short, short, Settled(10, 0, 200))
    most = excess.raised(long)
    assert most == (50, 2000)
    assert not excess.learn(long, most, Usage().settled(long, most))
    assert excess.raised(long) == most


def connected(budget: Budget, name: str) -> Ledger:
    async def lease(wanted: float) -> float | None:
        await asyncio.sleep(0)
        return budget.lease(name, wanted)

    async def report(spent: float, returned: float) -> None:
        await asyncio.sleep(0)
        budget.report(name, spent, returned)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    budget.opened(name, 0.0)
    return Ledger(PRICES, lease=lease, report=report, sleep=sleep)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("proxies", [1, 3])
async def test_the_cap_holds_and_is_used(seed: int, proxies: int) -> None:
    rng = random.Random(seed)
    budget = Budget(1.0)
    ledgers = [connected(budget, f"proxy-{n}") for n in range(proxies)]
    spent, refused = 0.0, 0

    async def buy(ledger: Ledger) -> None:
        nonlocal spent, refused
        worst = rng.uniform(0.01, 0.03)
        try:
            await ledger.reserve(worst)
        except BudgetError:
            refused += 1
            return
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        real = rng.uniform(0.1, 1.0) * worst
        spent += real
        await ledger.settle(worst, real)

    await asyncio.gather(*(buy(rng.choice(ledgers)) for _ in range(300)))
    assert spent <= 1.0 + 1e-9
    assert spent >= 1.0 - 0.031 * proxies, "what is left is less than a call's worst case"
    assert refused
    await asyncio.gather(*(ledger.close() for ledger in ledgers))
    assert budget.spent == pytest.approx(spent)
    assert all(held == pytest.approx(0.0, abs=1e-6) for held in budget.leases.values())


async def test_a_call_waits_for_what_others_give_back() -> None:
    ledger = connected(Budget(1.0), "proxy")
    await ledger.reserve(0.9)
    waiting = asyncio.create_task(ledger.reserve(0.5))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await ledger.settle(0.9, 0.1)
    await waiting


async def test_a_call_of_unknown_fate_stays_reserved() -> None:
    ledger = connected(Budget(1.0), "proxy")
    await ledger.reserve(0.9)
    ledger.lose(0.9)
    assert (ledger.uncertain, ledger.spent) == (0.9, 0.0)
    with pytest.raises(BudgetError):
        await ledger.reserve(0.5)
    await ledger.reserve(0.1)


async def test_what_an_answer_cost_beyond_its_reservation_is_owed_at_once() -> None:
    budget = Budget(1.0)
    ledger, other = connected(budget, "proxy"), connected(budget, "other")
    await ledger.reserve(0.1)
    await ledger.reserve(0.1)
    await ledger.settle(0.1, 0.7)
    assert budget.spent == pytest.approx(0.7), "told at once"
    assert budget.leases["proxy"] == pytest.approx(0.1), "the other reservation still stands"
    await other.reserve(0.2)
    with pytest.raises(BudgetError):
        await asyncio.gather(other.reserve(0.1), other.settle(0.2, 0.2), ledger.settle(0.1, 0.1))
    await asyncio.gather(ledger.close(), other.close())
    assert budget.spent == pytest.approx(1.0)
    assert budget.leases == pytest.approx({"proxy": 0.0, "other": 0.0})


def test_a_proxy_that_starts_again_frees_its_lease_and_knows_what_is_spent() -> None:
    budget = Budget(1.0)
    budget.opened("proxy", 0.0)
    assert budget.lease("proxy", 0.6)
    assert budget.lease("other", 0.6) == 0.0, "the other one may give something back"
    budget.opened("proxy", 0.3)
    assert budget.spent == 0.3
    assert budget.lease("other", 0.6)
    assert budget.lease("other", 0.6) is None
    budget.opened("proxy", 0.2)
    assert budget.spent == 0.3


async def test_without_a_cap_nothing_is_asked_for() -> None:
    ledger = Ledger(PRICES)
    await ledger.reserve(1e9)
    await ledger.settle(1e9, 5.0)
    assert ledger.spent == 5.0


async def test_a_proxy_without_calls_keeps_nothing_from_the_others() -> None:
    """What it had leased, and what it lost sight of, left another proxy waiting for calls that nobody had in flight."""
    budget = Budget(1.0)
    idle, busy = connected(budget, "idle"), connected(budget, "busy")
    await idle.reserve(0.5)
    idle.lose(0.5)
    await idle.rest()
    assert budget.spent == pytest.approx(0.5), "it may have been billed"
    await idle.reserve(0.01)
    await idle.settle(0.01, 0.0)
    await idle.rest()
    await busy.reserve(0.5)
    await busy.settle(0.5, 0.5)
    with pytest.raises(BudgetError):
        await busy.reserve(0.01)


async def test_a_lease_that_comes_after_its_call_was_cancelled_is_given_back() -> None:
    # Seed 69330 of the simulation: what was granted to a call that nobody waited for any more held up other proxies.
    budget = Budget(1.0)
    budget.opened("p", 0.0)
    granted, go_on = asyncio.Event(), asyncio.Event()

    async def lease(wanted: float) -> float | None:
        found = budget.lease("p", wanted)
        granted.set()
        await go_on.wait()
        return found

    given_back = asyncio.Event()

    async def report(spent: float, returned: float) -> None:
        budget.report("p", spent, returned)
        given_back.set()

    ledger = Ledger(PricesConfig(input=1.0, output=1.0), lease=lease, report=report)
    reserving = asyncio.create_task(ledger.reserve(0.25))
    await granted.wait()
    reserving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reserving
    assert budget.leases["p"] >= 0.25
    go_on.set()
    await given_back.wait()
    assert (budget.leases["p"], budget.spent) == (0.0, 0.0)


async def test_what_was_spent_is_told_although_whoever_tells_it_is_cancelled() -> None:
    told: list[float] = []
    began, go_on = asyncio.Event(), asyncio.Event()

    async def lease(wanted: float) -> float | None:
        return wanted

    async def report(spent: float, returned: float) -> None:
        began.set()
        await go_on.wait()
        told.append(spent)

    ledger = Ledger(PricesConfig(input=1.0, output=1.0), lease=lease, report=report)
    await ledger.reserve(0.25)
    settling = asyncio.create_task(ledger.settle(0.25, 0.2))
    await began.wait()
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    go_on.set()
    await ledger.close()
    assert told[0] == 0.2
