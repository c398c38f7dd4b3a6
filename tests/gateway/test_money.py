"""Ways in which what an endpoint bills and what it says part: a cap is passed by no more than what was out at the time
of the first surprise. The figures are printed (`pytest -s`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import BudgetError, EndpointError, InfrastructureError
from lion_ray.gateway.calls import Account, Call, Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Budget, Ledger, cost
from lion_ray.gateway.usage import UNKNOWN, bounds
from lion_ray.gateway.wave import FIRST_WAVE
from tests.gateway.support import ManualTime
from tests.stub_api import Rule, StubAPI

PRICES = PricesConfig(input=1.0, output=10.0, cached_input=0.1, batch=0.5)
CAP = 0.05
PROMPT, ANSWER = 30, 100
HONEST = cost(PRICES, PROMPT, 0, ANSWER)
RESERVED = Ledger(PRICES).worst(bounds(len("Question number 100"), 1, ANSWER))


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[StubAPI]:
    async with StubAPI() as server:
        yield server


@dataclass
class Run:
    """A run that the same command starts as often as it likes."""

    stub: StubAPI
    folder: Path
    cap: float = CAP
    settings: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    budget: Budget = field(default_factory=lambda: Budget(None))
    journaled: float = 0.0
    uncertain: float = 0.0

    async def start(self, calls: list[Call], *, clients: int = 1, **options: Any) -> list[Any]:
        """The outcomes, and exceptions, of a start that comes to its end."""
        journal = Journal.open(str(self.folder / "journal"))
        self.budget = Budget(self.cap)
        opened = [self._client(journal, f"endpoint-{n}", options) for n in range(clients)]
        asked = (opened[n % clients].complete(call) for n, call in enumerate(calls))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in opened))
        self.journaled = sum(one.usd for one in journal.spending("run").values())
        self.uncertain = sum(one.usd for one in journal.uncertain("run"))
        await journal.close()
        return list(outcomes)

    def _client(self, journal: Journal, name: str, options: dict[str, Any]) -> Client:
        known = {"model": "m", "api_key_env": None, "prices": PRICES.model_dump(), "max_backoff_s": 0.001}
        config = EndpointConfig(**(known | {"max_attempts": 3, "breaker_failures": 10**6} | self.settings))
        never = [name] if config.assume_billed == "never" else []
        spent = sum(one.usd for one in journal.spending("run", never_billed=never).values())
        self.budget.opened(name, spent)

        async def do(method: Callable[..., Any], *amounts: float) -> Any:
            return method(name, *amounts)

        ledger = Ledger(config.prices, lease=partial(do, self.budget.lease), report=partial(do, self.budget.report))
        base = self.stub.base_url
        return Client(name, config, journal, run="run", base_url=base, ledger=ledger, say=self.said.append, **options)


def questions(count: int, first: int = 100, max_tokens: int = ANSWER) -> list[Call]:
    numbers = range(first, first + count)
    return [Call(({"role": "user", "content": f"Question number {n}"},), max_tokens, role="teacher") for n in numbers]


def billed(stub: StubAPI, each: float = HONEST) -> float:
    """Every request that came in is billed."""
    return each * len(stub.requests)


def told(title: str, amount: float, cap: float = CAP, in_flight: float = 0.0) -> None:
    print(f"{title}: billed ${amount:.4f} under a cap of ${cap:.2f}; beyond it at most ${in_flight:.4f} was out")


USAGES: dict[str, Any] = {
    "honest": {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "total_tokens": PROMPT + ANSWER},
    "none": None,
    "nulls": {"prompt_tokens": None, "completion_tokens": None},
    "the prompt alone": {"prompt_tokens": PROMPT},
    "the completion alone": {"completion_tokens": ANSWER},
    "the total alone": {"total_tokens": PROMPT + ANSWER},
    "text": {"prompt_tokens": "30", "completion_tokens": "100"},
    "words": {"prompt_tokens": "thirty", "completion_tokens": "hundred"},
    "fractions": {"prompt_tokens": 29.5, "completion_tokens": 100.0},
    "other names": {"input_tokens": PROMPT, "output_tokens": ANSWER},
    "a negative completion": {"prompt_tokens": PROMPT, "completion_tokens": -100},
    "a negative prompt": {"prompt_tokens": -3000, "completion_tokens": ANSWER},
    "a negative total": {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "total_tokens": -5},
    "zeros": {"prompt_tokens": 0, "completion_tokens": 0},
    "no completion": {"prompt_tokens": PROMPT, "completion_tokens": 0},
    "more than all of it cached": {
        "prompt_tokens": PROMPT,
        "completion_tokens": ANSWER,
        "prompt_tokens_details": {"cached_tokens": 10**9},
    },
    "less than nothing cached": {
        "prompt_tokens": PROMPT,
        "completion_tokens": ANSWER,
        "prompt_tokens_details": {"cached_tokens": -10},
    },
    "absurdly much": {"prompt_tokens": 2**63, "completion_tokens": 10**30},
    "a list": [PROMPT, ANSWER],
}


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("usage", USAGES.values(), ids=USAGES)
async def test_whatever_usage_is_named_the_cap_holds(stub: StubAPI, tmp_path: Path, usage: Any, clients: int) -> None:
    stub.usage = lambda body: usage
    run = Run(stub, tmp_path)
    outcomes = await run.start(questions(70), clients=clients)
    told("usage", billed(stub))
    assert billed(stub) <= CAP
    assert billed(stub) > CAP - (1 + clients) * RESERVED, "and it is used"
    assert {type(outcome) for outcome in outcomes} == {Completion, BudgetError}
    answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    assert all(HONEST <= answer.cost_usd <= RESERVED for answer in answers if answer.cost_usd is not None)
    assert sum(answer.cost_usd or 0.0 for answer in answers) == pytest.approx(run.journaled)
    assert run.budget.spent == pytest.approx(run.journaled)
    assert run.journaled <= CAP


THOUGHTS: dict[str, Any] = {
    "in the completion": {"prompt_tokens": PROMPT, "completion_tokens": 32_000},
    "in the total": {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "total_tokens": PROMPT + 32_000},
    "in the details": {
        "prompt_tokens": PROMPT,
        "completion_tokens": ANSWER,
        "completion_tokens_details": {"reasoning_tokens": 31_900},
    },
    "in the total alone": {"total_tokens": PROMPT + 32_000},
}


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("usage", THOUGHTS.values(), ids=THOUGHTS)
async def test_thoughts_beyond_max_tokens_surprise_once(
    stub: StubAPI, tmp_path: Path, usage: Any, clients: int
) -> None:
    stub.usage = lambda body: usage
    run, each = Run(stub, tmp_path), cost(PRICES, PROMPT, 0, 32_000)
    outcomes = await run.start(questions(60), clients=clients)
    out = FIRST_WAVE * clients * each
    told(f"thoughts, {clients} clients", billed(stub, each), in_flight=out)
    assert stub.stats()["max_in_flight"] <= FIRST_WAVE * clients
    assert len(stub.requests) <= FIRST_WAVE * clients, "nothing was sent after the first surprise"
    assert run.journaled >= billed(stub, each) * 0.999, "what is known is what was billed"
    assert sum(isinstance(outcome, BudgetError) for outcome in outcomes) == 60 - len(stub.requests)
    # A client that is so late that the budget is spent before it asks meets no surprise.
    assert 1 <= sum("from now on such a call reserves $0.32" in line for line in run.said) <= clients
    again = await run.start(questions(60), clients=clients)
    assert sum(isinstance(one, Completion) and one.replayed for one in again) == len(stub.requests), "no more is bought"


async def test_the_proxies_of_one_endpoint_share_the_first_wave(stub: StubAPI, tmp_path: Path) -> None:
    stub.usage = lambda body: THOUGHTS["in the completion"]
    await Run(stub, tmp_path, settings={"proxies": 4}).start(questions(60), clients=4)
    assert len(stub.requests) <= FIRST_WAVE


@pytest.mark.parametrize("cap", [0.14, 0.60])
async def test_a_surprise_that_comes_late_is_as_large_as_what_was_out(
    stub: StubAPI, tmp_path: Path, cap: float
) -> None:
    width, late = 16, cost(PRICES, PROMPT, 0, 1000)
    thinks = asyncio.Event()

    def usage(_: Any) -> dict[str, int]:
        if len(stub.requests) >= 100 and not thinks.is_set():
            stub.gate.clear()  # so that as many are out as may be when the first surprise comes
        return {"prompt_tokens": PROMPT, "completion_tokens": 1000 if thinks.is_set() else ANSWER}

    stub.usage = usage
    run = Run(stub, tmp_path, cap=cap, settings={"max_concurrency": width})
    start = asyncio.create_task(run.start(questions(220)))
    await stub.until(lambda stats: not stub.gate.is_set() and stats["in_flight"] == width)
    before = len(stub.requests) - width
    thinks.set()
    stub.gate.set()
    await start
    told("a late surprise", run.journaled, cap, width * late)
    if cap > 0.5:
        assert cap - 2 * late < run.journaled <= cap, "there was room for what was out, and the cap holds"
    else:
        assert run.journaled == pytest.approx(before * HONEST + width * late), "nothing was sent after it"


async def test_where_each_answer_is_longer_than_any_before_one_call_at_a_time_goes(
    stub: StubAPI, tmp_path: Path
) -> None:
    stub.usage = lambda body: {"prompt_tokens": PROMPT, "completion_tokens": int(200 * 1.5 ** len(stub.requests))}
    run = Run(stub, tmp_path)
    await run.start(questions(60))
    last = cost(PRICES, PROMPT, 0, int(200 * 1.5 ** len(stub.requests)))
    told("ever longer answers", run.journaled, in_flight=last)
    assert CAP - last < run.journaled <= CAP + last


async def test_an_excess_that_grows_with_max_tokens(stub: StubAPI, tmp_path: Path) -> None:
    stub.usage = lambda body: {"prompt_tokens": PROMPT, "completion_tokens": 5 * body["max_tokens"]}
    run = Run(stub, tmp_path, cap=0.25)
    await run.start([*questions(20, 100, max_tokens=20), *questions(20, 200, max_tokens=2000)])
    told("five times max_tokens", run.journaled, cap=0.25)
    assert 0.2 < run.journaled <= 0.25


async def test_a_call_that_waits_for_its_turn_is_held_back_by_a_surprise(stub: StubAPI, tmp_path: Path) -> None:
    stub.usage = lambda body: THOUGHTS["in the completion"]
    time = ManualTime()
    # A burst of one: the second call has its money, and waits for the rate limit.
    run = Run(stub, tmp_path, settings={"limits": {"requests_per_minute": 60}})
    start = asyncio.create_task(run.start(questions(2), clock=time.clock, sleep=time.sleep))
    await stub.until(lambda stats: stats["completed"] == 1)
    await time.until_asleep(1)
    while not run.said:  # noqa: ASYNC110 - the answer is on its way through the client
        await asyncio.sleep(0.001)
    time.advance(60.0)
    outcomes = await start
    assert [type(outcome) for outcome in outcomes] == [Completion, BudgetError]
    assert len(stub.requests) == 1


LOST = ["502", "504", "520", "524", "598", "close", "drop", "garbage", "hang"]


@pytest.mark.parametrize("fault", LOST)
async def test_calls_that_may_have_been_billed_count_in_every_later_start(
    stub: StubAPI, tmp_path: Path, fault: str
) -> None:
    cap = 0.02
    stub.rules = [Rule(fault)]
    run = Run(stub, tmp_path, cap=cap, settings={"timeout_s": 0.1} if fault == "hang" else {})
    for _ in range(4):
        outcomes = await run.start(questions(30))
        assert {type(outcome) for outcome in outcomes} <= {Failure, BudgetError}
    told(f"{fault}, four starts", billed(stub), cap)
    # On a slow machine a time-out can be over before the request has arrived.
    sent = round(run.uncertain / RESERVED)
    assert sent == len(stub.requests) or (fault == "hang" and sent > len(stub.requests))
    assert billed(stub) <= cap
    assert cap - 2 * RESERVED < run.uncertain == run.journaled <= cap
    stub.rules, run.settings = [], {}  # an answer may take longer here than the time-out that a request hung for
    run.cap = 10.0
    assert all(isinstance(outcome, Completion) for outcome in await run.start(questions(30))), "a higher cap goes on"
    assert run.journaled > run.uncertain == pytest.approx(sent * RESERVED)


@pytest.mark.parametrize("fault", ["500", "503", "529"])
async def test_an_endpoint_that_says_itself_that_it_failed_bills_nothing(
    stub: StubAPI, tmp_path: Path, fault: str
) -> None:
    stub.rules = [Rule(fault)]
    run = Run(stub, tmp_path, cap=0.01)
    # Five calls of a kind that failed alike, and none was answered: the endpoint's own fault.
    assert {type(outcome) for outcome in await run.start(questions(30))} == {EndpointError}
    assert (run.uncertain, run.budget.spent) == (0.0, 0.0)


async def test_where_it_never_bills_them_they_count_for_nothing(stub: StubAPI, tmp_path: Path) -> None:
    stub.rules = [Rule("504")]
    run = Run(stub, tmp_path, cap=0.01)
    assert BudgetError in {type(outcome) for outcome in await run.start(questions(30))}
    held = run.uncertain
    run.settings["assume_billed"] = "never"
    assert {type(outcome) for outcome in await run.start(questions(30))} == {EndpointError}
    assert run.uncertain == held, "what an earlier start held is still told"
    stub.rules, stub.usage = [], lambda body: USAGES["honest"]
    outcomes = await run.start(questions(30))
    assert sum(isinstance(outcome, Completion) for outcome in outcomes) == 9, "the whole cap"


async def test_uncertain_calls_have_an_account_and_survive_a_compaction(tmp_path: Path) -> None:
    one, other = Account("run", "teacher", "answers-0"), Account("run", "referee", "iteration-1/verdicts")
    for _ in range(2):
        journal = Journal.open(str(tmp_path))
        await asyncio.gather(
            journal.lose(one, "a", 0.25),
            journal.lose(one, "a", 0.25),
            journal.lose(other, "b", 0.5),
            journal.lose(Account("another", "teacher", "answers-0"), "a", 7.0),
        )
        await journal.close()
    journal = Journal.open(str(tmp_path))
    assert {account: spent.usd for account, spent in journal.spending("run").items()} == {one: 1.0, other: 1.0}
    assert {account: spent.usd for account, spent in journal.spending("run", never_billed=["a"]).items()} == {
        other: 1.0
    }
    assert sum(spent.calls for spent in journal.spending("run").values()) == 0, "none was bought for sure"
    assert sorted((u.endpoint, u.calls) for u in journal.uncertain("run")) == [("a", 2), ("a", 2), ("b", 1), ("b", 1)]
    await journal.close()


async def test_what_cannot_be_remembered_is_not_spent(stub: StubAPI, tmp_path: Path) -> None:
    stub.rules = [Rule("504")]
    run = Run(stub, tmp_path)
    journal = Journal.open(str(tmp_path / "journal"))
    run.budget = Budget(CAP)
    client = run._client(journal, "endpoint", {})
    (tmp_path / "journal" / "uncertain").write_text("a file in the folder's place")
    outcomes = await asyncio.gather(*map(client.complete, questions(30)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {InfrastructureError}
    assert len(stub.requests) <= FIRST_WAVE, "nothing more was sent"
    await client.close()
    with pytest.raises(InfrastructureError, match="uncertain, cannot be read"):
        journal.spending("run")
    with pytest.raises(InfrastructureError, match="what may have been billed cannot be recorded"):
        await journal.close()


async def test_what_could_not_be_recorded_is_recorded_at_the_end(tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path))
    blocked = tmp_path / "uncertain"
    blocked.write_text("a file in the folder's place")
    with pytest.raises(InfrastructureError, match="what may have been billed cannot be recorded"):
        await journal.lose(Account("run", "teacher", "answers-0"), "a", 0.25)
    blocked.unlink()
    await journal.close()
    journal = Journal.open(str(tmp_path))
    assert sum(one.usd for one in journal.spending("run").values()) == 0.25
    await journal.close()


class Unflushed(Journal):
    """Its records cannot be flushed to the disk."""

    def _sync(self, fd: int) -> None:
        raise OSError(28, "No space left on device")


async def test_an_answer_that_cannot_be_stored_counts_in_every_later_start(stub: StubAPI, tmp_path: Path) -> None:
    """Even if nobody waits for it any more, and no later call tells that something is wrong (seed 11088)."""
    run = Run(stub, tmp_path)
    journal = Unflushed.open(str(tmp_path / "journal"))
    run.budget = Budget(CAP)
    client = run._client(journal, "endpoint", {})
    with pytest.raises(InfrastructureError, match="No space left on device"):
        await client.complete(*questions(1))
    with pytest.raises(InfrastructureError, match="No space left on device"):
        await client.complete(questions(2)[1])
    assert len(stub.requests) == 1
    await client.close()
    await journal.close()
    journal = Journal.open(str(tmp_path / "journal"))
    (lost,) = journal.uncertain("run")
    (record,) = journal.spending("run", never_billed=["endpoint"]).values()  # unflushed, but no power was lost
    assert (lost.endpoint, lost.calls) == ("endpoint", 1)
    assert lost.usd == pytest.approx(record.usd)
    assert lost.usd > 0
    await journal.close()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version": 2, "uncertain": []}', b'{"version": 1, "uncertain": [[1]]}']
)
async def test_a_record_that_cannot_be_read_is_told_and_not_passed_over(tmp_path: Path, data: bytes) -> None:
    journal = Journal.open(str(tmp_path))
    (tmp_path / "uncertain").mkdir()
    (tmp_path / "uncertain" / "x.json").write_bytes(data)
    with pytest.raises(InfrastructureError, match=r"uncertain/x\.json cannot be read"):
        journal.spending("run")
    await journal.close()


def test_the_figures_of_this_file() -> None:
    assert pytest.approx(0.00103) == HONEST
    assert pytest.approx(0.001035) == RESERVED
    asked = bounds(19, 1, ANSWER)
    assert Ledger(PRICES).price(UNKNOWN.settled(asked, asked)) == RESERVED
