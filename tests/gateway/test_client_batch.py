"""Calls that a role sends through the Batch API, by the client: the same keys, the same journal, half the price."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lion_ray.config import EndpointConfig, PricesConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.calls import Account, Completion, Failure
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.ledger import Ledger
from tests.gateway.support import QuickTime, call
from tests.stub_api import StubAPI
from tests.stub_batch import BatchPlan

CALLS = [call(f"Question {n}?", batch=True, stage="answers-0") for n in range(40)]


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[StubAPI]:
    async with StubAPI(batch=BatchPlan()) as server:
        yield server


def client_of(stub: StubAPI, journal: Journal, **settings: Any) -> Client:
    time = QuickTime()
    config = EndpointConfig(model="stub-model", api_key_env=None, **settings)
    return Client("default", config, journal, run="job", base_url=stub.base_url, clock=time.clock, sleep=time.sleep)


async def test_a_batch_is_journaled_priced_and_replayed_like_live_calls(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    prices = {"input": 0, "output": 1000, "batch": 0.5}
    client = client_of(stub, journal, prices=prices)
    outcomes = await asyncio.gather(*map(client.complete, CALLS))
    answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    assert len(answers) == 40
    assert stub.stats()["batch"]["creations"] == 1
    assert all(answer.cost_usd == pytest.approx(answer.completion_tokens / 2000) for answer in answers)
    spent = journal.spending("job")[Account("job", "teacher", "answers-0")]
    assert spent.calls == 40
    assert spent.usd == pytest.approx(client.stats.spent_usd) == pytest.approx(sum(a.cost_usd or 0 for a in answers))
    await client.close()
    # The same calls, live: they are the same calls.
    again = client_of(stub, journal, prices=prices)
    live = [replace(one, batch=False) for one in CALLS]
    assert await asyncio.gather(*map(again.complete, live)) == [replace(answer, replayed=True) for answer in answers]
    assert not stub.stats()["repeated"]
    await again.close()
    await journal.close()


async def test_what_a_batch_left_undone_goes_live(stub: StubAPI, tmp_path: Path) -> None:
    assert stub.batches is not None
    stub.batches.plan.expire = range(10, 25)
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal, batch={"leftovers": "live"})
    outcomes = await asyncio.gather(*map(client.complete, CALLS))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert client.stats.sent == 15, "only what the batch had not done"
    assert not stub.stats()["repeated"]
    await client.close()
    await journal.close()


async def test_a_line_that_the_endpoint_rejects_is_one_row(stub: StubAPI, tmp_path: Path) -> None:
    assert stub.batches is not None
    stub.batches.plan.errors = {"3": 400}
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal)
    outcomes = await asyncio.gather(*map(client.complete, CALLS))
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert [failure.reason for failure in failures] == ["rejected by the endpoint"]
    await client.close()
    await journal.close()


async def test_a_closed_client_leaves_its_batch_to_the_next(stub: StubAPI, tmp_path: Path) -> None:
    assert stub.batches is not None
    stub.batches.plan.polls = 10**9
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal)
    tasks = [asyncio.create_task(client.complete(one)) for one in CALLS]
    while stub.stats()["batch"]["creations"] == 0:  # noqa: ASYNC110 - the stub's count
        await asyncio.sleep(0.001)
    await client.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    stub.batches.plan.polls = 1
    after = client_of(stub, journal)
    outcomes = await asyncio.gather(*map(after.complete, CALLS))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert stub.stats()["batch"]["creations"] == 1, "the batch of the first client was taken up"
    assert not stub.stats()["repeated"]
    await after.close()
    await journal.close()


async def test_a_batch_goes_on_without_its_callers_and_its_answers_are_kept(stub: StubAPI, tmp_path: Path) -> None:
    """Its reservation was released once, so that other calls could pass the cap (found by the simulation)."""
    assert stub.batches is not None
    stub.batches.plan.polls, stub.batches.plan.expire = 10**9, range(30, 40)
    journal = Journal.open(str(tmp_path / "journal"))
    prices = PricesConfig(input=0, output=1000, batch=0.5)
    ledger = Ledger(prices)
    batch = {"max_requests": 40, "linger_s": 600, "poll_s": 0.01}
    config = EndpointConfig(model="stub-model", api_key_env=None, batch=batch)
    client = Client("default", config, journal, run="job", base_url=stub.base_url, ledger=ledger)
    tasks = [asyncio.create_task(client.complete(one)) for one in CALLS]
    while stub.stats()["batch"]["looks"] == 0:  # noqa: ASYNC110 - the stub's count
        await asyncio.sleep(0.001)
    reserved = ledger._reserved
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert ledger._reserved == reserved > 0
    stub.batches.plan.polls = 1
    await asyncio.gather(*(flight.task for flight in client._flights.values() if flight.task), return_exceptions=True)
    assert ledger._reserved == 0
    spent = journal.spending("job")[Account("job", "teacher", "answers-0")]
    assert spent.calls == 30
    assert spent.usd == pytest.approx(ledger.spent)
    assert stub.stats()["batch"]["sizes"] == [40], "nobody wants what it left undone"
    again = await asyncio.gather(*map(client.complete, CALLS[:30]))
    assert all(isinstance(one, Completion) and one.replayed for one in again)
    await client.close()
    await journal.close()


async def test_a_call_that_no_batch_holds_yet_ends_with_its_callers(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    client = unhurried(stub, journal, len(CALLS))
    tasks = [asyncio.create_task(client.complete(one)) for one in CALLS[:-1]]
    while client.stats.in_batches < len(tasks):  # noqa: ASYNC110 - its own work
        await asyncio.sleep(0.001)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
    assert stub.stats()["batch"]["creations"] == 0
    await journal.close()


LIVE = [replace(one, batch=False) for one in CALLS]


def unhurried(stub: StubAPI, journal: Journal, calls: int) -> Client:
    """A client whose calls wait until so many are one batch."""
    batch = {"max_requests": calls, "linger_s": 600, "poll_s": 0.01}
    config = EndpointConfig(model="stub-model", api_key_env=None, batch=batch)
    return Client("default", config, journal, run="job", base_url=stub.base_url)


async def left_under_way(stub: StubAPI, journal: Journal, calls: list[Any] = CALLS) -> None:
    """A start that has bought a batch, and ended before it was over."""
    assert stub.batches is not None
    before, stub.batches.plan.polls = stub.batches.plan.polls, 10**9
    client = unhurried(stub, journal, len(calls))
    tasks = [asyncio.create_task(client.complete(one)) for one in calls]
    while stub.stats()["batch"]["looks"] == 0:  # noqa: ASYNC110 - the stub's count
        await asyncio.sleep(0.001)
    await client.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    stub.batches.plan.polls = before


def records(journal: Journal) -> list[Path]:
    return list(Path(journal.root, "batches").glob("*.json"))


@pytest.mark.parametrize("done", [40, 25, 0])
async def test_a_role_that_is_switched_to_live_buys_nothing_twice(stub: StubAPI, tmp_path: Path, done: int) -> None:
    """What the batch had done when it was cancelled is fetched, and only the rest goes live."""
    assert stub.batches is not None
    journal = Journal.open(str(tmp_path / "journal"))
    said: list[str] = []
    if done < 40:
        stub.batches.plan.expire, stub.batches.plan.cancel = range(done, 40), True
    await left_under_way(stub, journal)
    time = QuickTime()
    config = EndpointConfig(model="stub-model", api_key_env=None, prices={"input": 0, "output": 1000, "batch": 0.5})
    options: Any = {"clock": time.clock, "sleep": time.sleep, "say": said.append}
    client = Client("default", config, journal, run="job", base_url=stub.base_url, **options)
    outcomes = await asyncio.gather(*map(client.complete, LIVE))
    answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    assert len(answers) == 40
    assert (stub.stats()["batch"]["creations"], stub.stats()["batch"]["ends"]) == (1, ["cancelled"])
    assert not stub.stats()["repeated"]
    assert client.stats.sent == 40 - done
    assert sum("its calls are to be sent live now" in line for line in said) == 1
    prices = [round((one.cost_usd or 0) * 1000 / one.completion_tokens, 3) for one in answers]
    assert prices.count(0.5) == done, "at the price of a batch"
    await client.close()
    assert not records(journal), "and nothing stays open"
    await journal.close()


async def test_a_batch_that_was_over_is_fetched_by_a_role_that_is_live_now(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    await left_under_way(stub, journal)
    assert stub.batches is not None
    (batch,) = stub.batches.batches.values()
    stub.batches._finish(batch)
    client = client_of(stub, journal)
    outcomes = await asyncio.gather(*map(client.complete, LIVE), client.complete(call("Another?")))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert client.stats.sent == 1, "the one that is in no batch"
    assert not stub.stats()["repeated"]
    await client.close()
    assert not records(journal)
    await journal.close()


async def test_a_batch_that_another_role_waits_for_is_not_cancelled(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    await left_under_way(stub, journal)
    client = client_of(stub, journal)
    outcomes = await asyncio.gather(*map(client.complete, [*CALLS[:20], *LIVE[20:]]))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert (client.stats.sent, stub.stats()["batch"]["ends"]) == (0, ["completed"])
    await client.close()
    await journal.close()


async def test_an_endpoint_that_cancels_nothing_is_waited_for(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    await left_under_way(stub, journal)
    assert stub.batches is not None
    stub.batches.plan.uncancelled = True
    client = client_of(stub, journal)
    outcomes = await asyncio.gather(*map(client.complete, LIVE))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert (client.stats.sent, stub.stats()["batch"]["ends"]) == (0, ["completed"])
    await client.close()
    await journal.close()


@pytest.mark.parametrize("for_good", [False, True])
async def test_a_run_that_ends_for_good_cancels_what_it_has_under_way(
    stub: StubAPI, tmp_path: Path, for_good: bool
) -> None:
    assert stub.batches is not None
    journal = Journal.open(str(tmp_path / "journal"))
    await left_under_way(stub, journal, [call("Another run's?", batch=True)])
    stub.batches.plan.polls = 10**9
    client = unhurried(stub, journal, len(CALLS))
    tasks = [asyncio.create_task(client.complete(one)) for one in CALLS]
    while len(stub.stats()["batch"]["ends"]) < 2 or stub.stats()["batch"]["ends"][1] != "in_progress":  # noqa: ASYNC110 - the stub's count
        await asyncio.sleep(0.001)
    await client.close(for_good=for_good)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert stub.stats()["batch"]["ends"] == ["in_progress", "cancelling" if for_good else "in_progress"]
    await journal.close()


async def test_live_calls_leave_no_folder_of_batches(stub: StubAPI, tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal)
    await asyncio.gather(*map(client.complete, LIVE[:3]))
    await client.close()
    assert not Path(journal.root, "batches").exists()
    await journal.close()


DEAR = {"input": 0, "output": 1000, "batch": 0.5}
WORST = 64 * 1000 * 0.5 / 1e6
"""US dollars, of a call in a batch."""


@pytest.mark.parametrize("leftovers", ["batch", "live"])
@pytest.mark.parametrize("fault", ["garbled", "odd"])
async def test_an_answer_that_was_billed_and_cannot_be_read_counts_in_every_later_start(
    stub: StubAPI, tmp_path: Path, fault: str, leftovers: str
) -> None:
    assert stub.batches is not None
    setattr(stub.batches.plan, fault, [3, 8])
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal, prices=DEAR, batch={"leftovers": leftovers})
    outcomes = await asyncio.gather(*map(client.complete, CALLS))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert sorted(stub.stats()["repeated"].values()) == [2, 2]
    assert client.stats.uncertain_usd == pytest.approx(2 * WORST)
    await client.close()
    await journal.close()
    assert not records(journal)
    after = Journal.open(str(tmp_path / "journal"))
    [held] = after.uncertain("job")
    assert (held.account, held.calls) == (Account("job", "teacher", "answers-0"), 2)
    assert held.usd == pytest.approx(2 * WORST)
    await after.close()


async def test_one_who_is_killed_before_that_was_kept_finds_the_batch_again(
    stub: StubAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stub.batches is not None
    stub.batches.plan.garbled = [3]
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal, prices=DEAR)
    with monkeypatch.context() as patch:
        patch.setattr(journal._lost, "write", lambda data: (_ for _ in ()).throw(OSError("no power")))
        outcomes = await asyncio.gather(*map(client.complete, CALLS), return_exceptions=True)
        assert sum(isinstance(outcome, InfrastructureError) for outcome in outcomes) == 1
        assert stub.stats()["batch"]["creations"] == 1, "nothing more is bought"
        await client.close()
        assert records(journal)
        with pytest.raises(InfrastructureError, match="no power"):
            await journal.close()
    again = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, again, prices=DEAR)
    outcomes = await asyncio.gather(*map(client.complete, CALLS))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert sum(one.usd for one in again.uncertain("job")) == pytest.approx(WORST)
    await client.close()
    assert not records(again)
    await again.close()


async def test_answers_that_cannot_be_read_end_a_call_and_not_the_budget(stub: StubAPI, tmp_path: Path) -> None:
    assert stub.batches is not None
    stub.batches.plan.faulty, stub.batches.plan.odd = range(1, 100), [0]
    journal = Journal.open(str(tmp_path / "journal"))
    client = client_of(stub, journal, prices=DEAR)
    outcome = await client.complete(CALLS[0])
    assert isinstance(outcome, Failure)
    assert (outcome.reason, stub.stats()["batch"]["creations"]) == ("not done by batches", 5)
    assert sum(one.usd for one in journal.uncertain("job")) == pytest.approx(5 * WORST)
    await client.close()
    await journal.close()
