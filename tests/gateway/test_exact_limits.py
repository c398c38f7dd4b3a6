"""The rate limiter and the accounts step by step, in a time that the test moves: every figure by hand."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from lion_ray.config import EndpointConfig, LimitsConfig, PricesConfig
from lion_ray.core.errors import BudgetError
from lion_ray.gateway.calls import Call
from lion_ray.gateway.ledger import Budget, Excess, Ledger, cost
from lion_ray.gateway.limits import FIRST_CONTACT, Bucket, Limiter, Need, ReportedLimit, Ticket
from lion_ray.gateway.purse import Paid, Purse, Reserved
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.stats import Event
from lion_ray.gateway.usage import Bounds, Settled, Usage


class Time:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_bucket() -> None:
    bucket = Bucket(2.0, 4.0, 100.0)
    assert bucket.level == 4.0
    bucket.level -= 4.0
    assert bucket.wait_s(1.0) == 0.5
    assert bucket.wait_s(9.0) == 2.0, "no more than it holds"
    assert bucket.wait_s(0.00009) == 0.0
    bucket.refill(101.0)
    assert (bucket.level, bucket.wait_s(2.0), bucket.wait_s(3.0)) == (2.0, 0.0, 0.5)
    bucket.refill(109.0)
    assert bucket.level == 4.0
    bucket.pace(8.0)
    assert (bucket.rate, bucket.capacity, bucket.level) == (8.0, 2.0, 2.0)
    bucket.pace(0.5)
    assert (bucket.rate, bucket.capacity, bucket.level) == (0.5, 1.0, 1.0)
    assert bucket.taken == 0.0


def test_the_rate_of_a_limit_that_is_told() -> None:
    assert ReportedLimit(120, 60).per_second() == 2.0
    assert ReportedLimit(120, 119.5, 10_000).per_second() == 2.0, "nothing is used yet"
    assert ReportedLimit(86_400, 86_399, 1.0).per_second() == 1.0, "one used, back within a second"
    assert ReportedLimit(86_400, 86_399, 0.5).per_second() == 1440.0
    assert ReportedLimit(86_400, 86_390, 0.0).per_second() == 1440.0
    need = Need(3.0, 4.0)
    assert [need.of(kind) for kind in ("requests", "tokens", "input-tokens", "output-tokens")] == [1.0, 7.0, 3.0, 4.0]


def test_configured_limits_of_every_kind() -> None:
    time = Time()
    limits = LimitsConfig(
        requests_per_minute=240,
        tokens_per_minute=24_000,
        input_tokens_per_minute=12_000,
        output_tokens_per_minute=6_000,
        share=0.5,
    )
    limiter = Limiter(limits, clock=time, proxies=2, cautious=False)
    # A quarter of each: 1 request, 100, 50 and 25 tokens a second; a burst is a quarter of a second's.
    assert limiter.allowed_per_minute == near(60)
    need = limiter.need(40, 8)
    assert need == Need(10.0, 8.0)
    ticket = limiter.take(need)
    assert ticket == Ticket(need, 100.0, {"requests": 1.0, "tokens": 18.0, "input-tokens": 10.0, "output-tokens": 8.0})
    assert limiter.take(need) == near(1.0)
    time.now = 100.9
    assert limiter.take(need) == near(0.1)
    time.now = 101.0
    second = limiter.take(Need(100.0, 1.0))
    assert isinstance(second, Ticket)
    time.now = 102.0
    # 100 prompt tokens at 50 a second, of which 12.5 were there.
    wait = limiter.take(Need(12.5, 1.0))
    assert wait == near(1.0)
    assert limiter.sent_per_minute == 2


def test_answers_correct_the_estimate() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(input_tokens_per_minute=6000, output_tokens_per_minute=6000), clock=time)
    assert limiter.need(0, 0) == Need(1.0, 1.0)
    ticket = limiter.take(Need(20.0, 20.0))
    assert isinstance(ticket, Ticket)
    limiter.ended()
    limiter.answered(ticket, 40, 10, None)
    # 25 - 20 - 20 more prompt tokens, 25 - 20 + 10 fewer of the answer's.
    assert limiter.take(Need(1.0, 1.0)) == near(0.16)
    assert limiter.need(400, 400) == Need(near(105.0), near(390.0))
    limiter.answered(ticket, 0, 10, None)
    assert limiter.need(400, 400) == Need(near(105.0), near(390.0)), "no usage was reported"
    for _ in range(200):
        limiter.answered(ticket, 20, 0, None)
    assert limiter.need(400, 400).output_tokens == near(4.0), "never below a hundredth"
    for _ in range(200):
        limiter.answered(ticket, 20, 2000, None)
    assert limiter.need(400, 400).output_tokens == near(400.0), "never more than is allowed"


def test_the_first_contact_and_pauses() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time)
    tickets = [limiter.take(Need()) for _ in range(FIRST_CONTACT)]
    assert all(isinstance(one, Ticket) for one in tickets)
    assert limiter.take(Need()) == 0.02
    limiter.ended()
    assert isinstance(limiter.take(Need()), Ticket)
    limiter.ended()
    limiter.ended()
    assert [isinstance(limiter.take(Need()), Ticket) for _ in range(3)] == [True, True, False]
    assert isinstance(tickets[0], Ticket)
    limiter.answered(tickets[0], 0, 0, None)
    assert all(isinstance(limiter.take(Need()), Ticket) for _ in range(9))
    assert (limiter.paused_s, limiter.allowed_per_minute) == (0.0, None)
    limiter.pause(5.0)
    limiter.pause(3.0)
    assert (limiter.paused_s, limiter.take(Need())) == (5.0, 5.0)
    time.now = 104.0
    assert limiter.take(Need()) == 1.0
    time.now = 105.0
    assert isinstance(limiter.take(Need()), Ticket)
    assert limiter.paused_s == 0.0
    bold = Limiter(LimitsConfig(), clock=time, cautious=False)
    assert all(isinstance(bold.take(Need()), Ticket) for _ in range(9))
    limited = Limiter(LimitsConfig(), clock=time)
    first = limited.take(Need())
    for _ in range(FIRST_CONTACT - 1):
        limited.take(Need())
    assert isinstance(first, Ticket)
    limited.limited(first, 2.0, {"tokens": ReportedLimit(600, 600)})
    assert limited.take(Need()) == 2.0


def test_the_requests_of_the_last_minute() -> None:
    time = Time(100.9)
    limiter = Limiter(LimitsConfig(), clock=time, cautious=False)
    limiter.take(Need())
    limiter.take(Need())
    time.now = 101.1
    limiter.take(Need())
    assert limiter.sent_per_minute == 3
    time.now = 159.9
    assert limiter.sent_per_minute == 3
    time.now = 160.0
    assert limiter.sent_per_minute == 1
    limiter.take(Need())
    assert limiter.sent_per_minute == 2
    time.now = 161.0
    assert limiter.sent_per_minute == 1


def test_limits_that_answers_tell() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(requests_per_minute=60, share=0.5), clock=time, cautious=False)
    ticket = limiter.take(Need(10.0, 10.0))
    assert isinstance(ticket, Ticket)
    told = {
        "requests": ReportedLimit(600, 500),  # the configured limit is lower
        "other": ReportedLimit(60, 60),
        "input-tokens": ReportedLimit(0, 0),
        "tokens": ReportedLimit(6000, 400),  # half of it: 50 a second, 200 are left
    }
    limiter.answered(ticket, 0, 0, told)
    assert limiter.allowed_per_minute == near(30)
    time.now = 102.0
    # 200 left, less a margin of 2 % of that.
    second = limiter.take(Need(96.0, 100.0))
    assert isinstance(second, Ticket)
    assert second.taken == {"requests": 2.0, "tokens": 196.0}
    time.now = 104.0
    assert isinstance(limiter.take(Need(50.0, 50.0)), Ticket)
    # Reported late: 2 s ago 10 were left of ours; 100 came back and 100 were taken since, and the margin is 4.
    limiter.answered(second, 0, 0, {"tokens": ReportedLimit(6000, 20)})
    time.now = 106.0
    limiter.answered(second, 0, 0, {"requests": ReportedLimit(30, 30)})
    assert limiter.allowed_per_minute == near(15)
    lower = Limiter(LimitsConfig(requests_per_minute=60), clock=time, cautious=False)
    first = lower.take(Need())
    assert isinstance(first, Ticket)
    lower.limited(first, 0.0, {"requests": ReportedLimit(30, 10)})
    assert lower.allowed_per_minute == near(30)
    assert lower.take(Need()) == near(2.0), "nothing is left for sure"


def test_the_level_after_a_late_report() -> None:
    time = Time()
    limiter = Limiter(LimitsConfig(), clock=time, cautious=False)
    first = limiter.take(Need())
    assert isinstance(first, Ticket)
    limiter.answered(first, 0, 0, {"requests": ReportedLimit(60, 100)})  # 1 a second, a burst of 100
    for _ in range(10):
        assert isinstance(limiter.take(Need()), Ticket)
    marked = limiter.take(Need())
    assert isinstance(marked, Ticket)
    for _ in range(5):
        assert isinstance(limiter.take(Need()), Ticket)
    time.now = 103.0
    # 20 were left when `marked` arrived; 3 came back, 5 were sent since, and 2 are the margin.
    limiter.answered(marked, 0, 0, {"requests": ReportedLimit(60, 20)})
    count = 0
    while isinstance(limiter.take(Need()), Ticket):
        count += 1
    assert count == 16
    assert limiter.take(Need()) == near(1.0)
    # A report of more does not raise it.
    limiter.answered(marked, 0, 0, {"requests": ReportedLimit(60, 90)})
    assert limiter.take(Need()) == near(1.0)


def test_the_adaptive_rate_step_by_step() -> None:
    time = Time(0.0)
    limiter = Limiter(LimitsConfig(), clock=time, cautious=False)

    def send() -> Ticket:
        ticket = limiter.take(Need())
        assert isinstance(ticket, Ticket)
        return ticket

    tickets = []
    for number in range(40):
        time.now = number / 4
        tickets.append(send())
    for ticket in tickets[:30]:
        limiter.answered(ticket, 0, 0, None)
    time.now = 10.0
    assert limiter.allowed_per_minute is None
    limiter.limited(tickets[-1], 0.0, None)
    # 30 successes within 10 s; 97 % of that.
    assert limiter.allowed_per_minute == near(0.97 * 3 * 60)
    limiter.limited(tickets[-2], 0.0, None)
    assert limiter.allowed_per_minute == near(0.97 * 3 * 60), "of the same burst"
    for ticket in tickets[30:35]:
        limiter.answered(ticket, 0, 0, None)  # late: they count for the period before the cut
    assert limiter.allowed_per_minute == near(0.97 * 3.5 * 60)
    # Unused, the rate does not grow.
    time.now = 12.0
    send()
    assert limiter.allowed_per_minute == near(0.97 * 3.5 * 60)
    rate = 0.97 * 3.5
    wait = limiter.take(Need())
    assert wait == near(1.0 / rate)
    time.now = 12.5
    assert isinstance(limiter.take(Need()), Ticket)
    # The rate bound it: at its ceiling it grows by 1 % of it in a second.
    assert limiter.allowed_per_minute == near((rate + 0.01 * rate * 0.5) * 60)


def test_the_adaptive_rate_after_a_second_cut() -> None:
    time = Time(0.0)
    limiter = Limiter(LimitsConfig(), clock=time, cautious=False)
    first = limiter.take(Need())
    assert isinstance(first, Ticket)
    time.now = 10.0
    limiter.limited(first, 0.0, None)
    # Nothing passed: one a second at least is tried, and half of it at once.
    assert limiter.allowed_per_minute == near(30)
    time.now = 12.0
    second = limiter.take(Need())
    assert isinstance(second, Ticket)
    time.now = 14.0
    limiter.limited(second, 0.0, None)
    assert limiter.allowed_per_minute == near(15)
    for _ in range(12):
        time.now += 100
        again = limiter.take(Need())
        assert isinstance(again, Ticket)
        time.now += 1
        limiter.limited(again, 0.0, None)
    assert limiter.allowed_per_minute == near(1), "never below one a minute"


def test_growth_below_within_and_above_the_band() -> None:
    time = Time(0.0)
    limiter = Limiter(LimitsConfig(), clock=time, cautious=False)
    for number in range(100):
        time.now = number / 10
        ticket = limiter.take(Need())
        assert isinstance(ticket, Ticket)
        limiter.answered(ticket, 0, 0, None)
    time.now = 10.0
    last = limiter.take(Need())
    assert isinstance(last, Ticket)
    limiter.limited(last, 0.0, None)
    assert limiter.allowed_per_minute == near(0.97 * 10 * 60)
    time.now = 11.0
    while isinstance(one := limiter.take(Need()), Ticket):
        last = one
    # Refused again after 20 s in which 1 request a second passed: half the rate, and the ceiling is the rate before.
    time.now = 31.0
    sent = limiter.take(Need())
    assert isinstance(sent, Ticket)
    ceiling = (limiter.allowed_per_minute or 0) / 60
    limiter.limited(sent, 0.0, None)
    rate = ceiling / 2
    assert limiter.allowed_per_minute == near(rate * 60)
    while isinstance(limiter.take(Need()), Ticket):
        pass
    time.now = 31.5
    limiter.take(Need())
    growth = 0.05 * max(rate, 1.0) * 0.5
    assert (limiter.allowed_per_minute or 0) / 60 >= rate
    assert (limiter.allowed_per_minute or 0) / 60 <= rate + max(growth, 0.05 * ceiling) + 1e-9


# -- money ------------------------------------------------------------------------------------------------------------

PRICES = PricesConfig(input=2.0, output=8.0, cached_input=0.5, batch=0.5)
FREE_CACHE = PricesConfig(input=2.0, output=8.0)


def test_what_a_call_costs_by_hand() -> None:
    assert cost(PRICES, 1_000_000, 0, 0) == 2.0
    assert cost(PRICES, 0, 0, 1_000_000) == 8.0
    assert cost(PRICES, 1_000_000, 400_000, 0) == near(1.2 + 0.2)
    assert cost(PRICES, 100, 1_000_000, 0) == near(100 * 0.5e-6)
    assert cost(FREE_CACHE, 1_000_000, 400_000, 0) == 2.0
    assert cost(PRICES, 1_000_000, 0, 1_000_000, batch=True) == 5.0
    ledger = Ledger(PRICES)
    assert ledger.worst(Bounds(1_000_000, 1_000_000)) == 10.0
    assert ledger.worst(Bounds(1_000_000, 1_000_000), batch=True) == 5.0
    assert ledger.price(Settled(1_000_000, 400_000, 0)) == near(1.4)
    assert ledger.price(Settled(1_000_000, 0, 0), batch=True) == 1.0
    assert (Ledger().worst(Bounds(9, 9)), Ledger().price(Settled(9, 0, 9))) == (0.0, None)


def test_what_proxies_learn_from_each_other() -> None:
    one, two, asked = Excess(), Excess(), Bounds(100, 1000)
    assert one.learn(asked, asked, Settled(150, 0, 900))
    assert two.learn(Bounds(10, 10), Bounds(10, 10), Settled(5, 0, 30))
    assert one.raised(asked) == (150, 1000)
    assert one.raised(Bounds(200, 2000)) == (300, 2000)
    one.join(two)
    assert one.raised(asked) == (150, 1020)
    assert one.raised(Bounds(200, 2000)) == (300, 6000)
    two.join(one)
    assert two.raised(asked) == (150, 1020)
    assert two.raised(Bounds(10, 10)) == (60, 30)
    three = Excess()
    three.join(one)
    assert three.raised(asked) == (150, 1020)
    assert three.raised(Bounds(101, 1001)) == (152, 3003)
    # Equal to the reservation: nothing to learn, and not a surprise.
    four = Excess()
    assert not four.learn(asked, Bounds(100, 1500), Settled(100, 0, 1500))
    assert four.raised(Bounds(100, 1001)) == (100, 1001)
    assert four.learn(asked, asked, Settled(99, 0, 1001))
    assert not Excess().learn(asked, asked, Settled(99, 0, 999))
    five = Excess()
    five.learn(Bounds(0, 0), Bounds(0, 0), Settled(3, 0, 3))
    assert five.raised(Bounds(1, 1)) == (4, 4)


def test_a_budget_step_by_step() -> None:
    budget = Budget(10.0)
    budget.opened("a", 0.0)
    budget.opened("b", 2.0)
    assert (budget.spent, budget.leases) == (2.0, {"a": 0.0, "b": 0.0})
    assert budget.lease("a", 0.1) == near(0.16)
    assert budget.lease("a", 1.0) == 1.0
    assert budget.lease("c", 6.84) == near(6.84)
    assert budget.leases == {"a": near(1.16), "b": 0.0, "c": near(6.84)}
    assert budget.lease("b", 0.1) == 0.0, "others may return some"
    budget.report("c", 6.0, 0.84)
    assert (budget.spent, budget.leases["c"]) == (8.0, near(0.0))
    assert budget.lease("a", 1.0) is None, "nobody else holds any"
    assert budget.lease("b", 1.0) == 0.0
    assert budget.lease("b", 0.5) == 0.5
    budget.report("b", 0.75, -0.25)
    assert (budget.spent, budget.leases["b"]) == (8.75, 0.0)
    budget.report("new", 0.5, 1.0)
    assert (budget.spent, budget.leases["new"]) == (9.25, 0.0)
    budget.opened("a", 1.0)
    assert (budget.spent, budget.leases["a"]) == (9.25, 0.0)
    assert budget.lease("a", 0.75) == near(0.75)
    assert Budget(None).lease("a", 5.0) == 5.0
    assert Budget(None).spent == 0.0


class Bank:
    """A budget and what it was told."""

    def __init__(self, *granted: float | None) -> None:
        self.granted, self.asked, self.told, self.slept = list(granted), [], [], []  # type: ignore[var-annotated]

    async def lease(self, wanted: float) -> float | None:
        self.asked.append(wanted)
        return self.granted.pop(0)

    async def report(self, spent: float, returned: float) -> None:
        self.told.append((spent, returned))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def ledger(self, prices: PricesConfig | None = PRICES) -> Ledger:
        return Ledger(prices, lease=self.lease, report=self.report, sleep=self.sleep)


async def test_a_ledger_step_by_step() -> None:
    bank = Bank(3.0, 2.0)
    ledger = bank.ledger()
    assert ledger.capped
    assert not bank.ledger(None).capped
    assert not Ledger(PRICES).capped
    await ledger.reserve(0.0)
    assert bank.asked == []
    await ledger.reserve(1.0)
    await ledger.reserve(2.0)
    assert bank.asked == [1.0]
    await ledger.reserve(0.5)
    assert bank.asked == [1.0, 0.5]
    await ledger.settle(1.0, 0.004)
    assert (ledger.spent, ledger.uncertain, bank.told) == (0.004, 0.0, [])
    await ledger.settle(2.0, 0.002)
    assert bank.told == [(near(0.006), 0.0)]
    ledger.lose(0.5)
    assert (near(ledger.spent), ledger.uncertain) == (0.006, 0.5)
    await ledger.rest()
    # 1.5 of the last lease, and what the two calls did not cost.
    assert bank.told[1:] == [(0.5, near(1.5 + 0.996 + 1.998))]
    await ledger.rest()
    assert len(bank.told) == 2
    await ledger.close()
    assert bank.told[2:] == [(0.0, near(0.0))]


async def test_a_ledger_owes_what_was_billed_beyond_a_reservation() -> None:
    bank = Bank(1.0)
    ledger = bank.ledger()
    await ledger.reserve(1.0)
    await ledger.settle(1.0, 1.5)
    assert bank.told == [(1.5, near(-0.5))]
    assert ledger.spent == 1.5
    quiet = Ledger(PRICES)
    await quiet.reserve(3.0)
    await quiet.settle(3.0, 1.0)
    await quiet.close()
    assert (quiet.spent, quiet.uncertain) == (1.0, 0.0)


async def test_a_budget_without_room_is_told_with_the_call_s_price() -> None:
    bank = Bank(0.5, 0.0, None)
    ledger = bank.ledger()
    with pytest.raises(BudgetError) as caught:
        await ledger.reserve(1.25)
    assert str(caught.value) == "the budget has no room for another call, which may cost up to $1.2500"
    # What was held is returned before it waits for others, and before it gives up.
    assert bank.asked == [1.25, 0.75, 1.25]
    assert bank.told == [(0.0, 0.5), (0.0, 0.0)]
    assert bank.slept == [0.5]


async def test_money_that_is_in_flight_is_waited_for() -> None:
    bank = Bank(1.0, None, None)
    ledger = bank.ledger()
    await ledger.reserve(1.0)
    waiting = asyncio.create_task(ledger.reserve(0.75))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await ledger.settle(1.0, 0.001)
    await asyncio.wait_for(waiting, 5)
    assert bank.told == [(0.001, 0.0)]
    assert ledger.spent == 0.001


# -- the purse --------------------------------------------------------------------------------------------------------

CALL = Call(({"role": "user", "content": "u"},), 1000, role="teacher")


def purse(ledger: Ledger, **changes: Any) -> tuple[Purse, list[Event], list[str]]:
    events: list[Event] = []
    said: list[str] = []
    config = EndpointConfig(model="m", api_key_env=None, **changes)
    return Purse("e", config, ledger, events.append, said.append), events, said


async def test_what_is_reserved_for_a_call() -> None:
    bank = Bank(*([1.0] * 9))
    held, _, _ = purse(bank.ledger())
    reserved = await held.take(CALL, 84)
    assert reserved == Reserved(Bounds(100, 1000), Bounds(100, 1000), near(0.0082), False)
    batch = await held.take(CALL, 84, batch=True)
    assert batch == Reserved(Bounds(100, 1000), Bounds(100, 1000), near(0.0041), True)
    assert held.fits(reserved)
    await held.settle(reserved, 0.005)
    assert held.ledger.spent == 0.005
    await held.settle(batch)
    assert held.ledger.spent == 0.005
    # Four at once before the first answer, as long as a cap holds; batches do not count.
    for _ in range(4):
        await held.take(CALL, 84)
    await held.take(CALL, 84, batch=True)
    fifth = asyncio.create_task(held.take(CALL, 84))
    await asyncio.sleep(0.001)
    assert not fifth.done()
    await held.settle(reserved)
    await asyncio.wait_for(fifth, 5)


async def test_a_call_that_cannot_be_paid_leaves_its_place() -> None:
    bank = Bank(*([None] * 9))
    held, _, _ = purse(bank.ledger(), proxies=4)
    for _ in range(3):
        with pytest.raises(BudgetError):
            await asyncio.wait_for(held.take(CALL, 84), 5)


async def test_what_an_answer_costs_and_teaches() -> None:
    bank = Bank(*([1.0] * 9))
    held, events, said = purse(bank.ledger())
    reserved = await held.take(CALL, 84)
    assert held.paid("k", CALL, Reply("x", "stop", "m", Usage(90, 400, cached=50)), reserved) == Paid(
        90, 400, 50, near((40 * 2 + 50 * 0.5 + 400 * 8) / 1e6)
    )
    assert held.paid("k", CALL, Reply("x", "stop", "m"), reserved) == Paid(0, 0, 0, near(0.0082))
    assert held.paid("k", CALL, Reply("x", "stop", "m", Usage(90, None, total=100)), reserved) == Paid(
        90, 1000, 0, near((90 * 2 + 1000 * 8) / 1e6)
    )
    assert (events, said) == ([], [])
    assert held.paid("k", CALL, Reply("x", "stop", "m", Usage(90, 123_000)), reserved).completion_tokens == 123_000
    assert events == [Event("surprised", "k", "teacher")]
    assert said == [
        "an answer used 90 prompt and 123,000 completion tokens, but at most 100 and 1,000 were expected; from now on "
        "such a call reserves $0.9842"
    ]
    assert not held.fits(reserved)
    await held.settle(reserved)
    assert (await held.take(CALL, 84)).most == Bounds(100, 123_000)
    free, told, words = purse(Ledger())
    got = await free.take(CALL, 84)
    assert free.paid("k", CALL, Reply("x", "stop", "m", Usage(90, 123_000)), got).usd is None
    assert (told, words) == ([], [])
    cheap = Reserved(Bounds(100, 1000), Bounds(100, 1000), 0.0, True)
    assert held.paid("k", CALL, Reply("x", "stop", "m", Usage(90, 400)), cheap).usd == near((90 * 2 + 400 * 8) / 2e6)


async def test_what_a_lost_attempt_leaves() -> None:
    kept: list[float] = []

    async def keep(usd: float) -> None:
        kept.append(usd)

    bank = Bank(*([1.0] * 9))
    held, _, _ = purse(bank.ledger(), proxies=4)
    reserved = await held.take(CALL, 84)
    await held.lose(reserved, keep)
    assert (kept, held.ledger.uncertain, held.ledger.spent) == ([near(0.0082)], near(0.0082), 0.0)
    await asyncio.wait_for(held.take(CALL, 84), 5)
    never, _, _ = purse(Bank(*([1.0] * 9)).ledger(), proxies=4, assume_billed="never")
    reserved = await never.take(CALL, 84)
    await never.lose(reserved, keep)
    assert (len(kept), never.ledger.uncertain) == (1, 0.0)
    await asyncio.wait_for(never.take(CALL, 84), 5)

    async def fail(usd: float) -> None:
        raise RuntimeError("no space")

    full, _, _ = purse(Bank(*([1.0] * 9)).ledger(), proxies=4)
    with pytest.raises(RuntimeError, match="no space"):
        await full.lose(await full.take(CALL, 84), fail)
    assert full.ledger.uncertain == near(0.0082)
    await asyncio.wait_for(full.take(CALL, 84), 5)
    assert math.isclose(full.ledger.uncertain, 0.0082)
