"""Over real HTTP: a batch that fails in any way loses no call, and a process that dies at any time buys none twice."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.batch import BatchQueue, InJournal, NotDone
from lion_ray.gateway.batch.api import BatchAPI
from lion_ray.gateway.batch.lines import request_line
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.wire import Refused, Rejected, Transient
from tests.gateway.support import ManualTime, QuickTime, key
from tests.stub_api import StubAPI, fetch_stats, plain_answer, stub_process
from tests.stub_batch import BatchPlan

CANARY = "sk-canary-77c1e0ab"
SETTINGS = {"linger_s": 10.0, "poll_s": 30.0}


class World:
    """A stub with a Batch API, and queues that share a journal's folder."""

    def __init__(self, stub: StubAPI, folder: Path) -> None:
        assert stub.batches is not None
        self.stub = stub
        self.batches = stub.batches
        self.plan = stub.batches.plan
        self.folder = folder
        self.time: Any = QuickTime()
        self.said: list[str] = []
        self.queues: list[BatchQueue] = []
        self.apis: list[openai.AsyncOpenAI] = []

    def queue(self, journaled: Callable[[str], bool] | None = None, **batch: Any) -> BatchQueue:
        config = EndpointConfig(model="stub-model", batch=SETTINGS | batch)
        api = openai.AsyncOpenAI(api_key=CANARY, base_url=self.stub.base_url, max_retries=0)
        self.apis.append(api)
        self.queues.append(
            BatchQueue(
                "default",
                config,
                BatchAPI(api, config.timeout_s, keyed=True),
                str(self.folder),
                journaled=journaled,
                say=self.said.append,
                clock=self.time.clock,
                sleep=self.time.sleep,
                now=self.time.clock,
            )
        )
        return self.queues[-1]

    def drop(self) -> BatchQueue:
        """As if its process had been killed: nothing of it runs on, and nothing is tidied up."""
        queue = self.queues.pop()
        queue._gathering.close()
        for task in [*queue._tasks, *queue._closings]:
            task.cancel()
        for batch in queue._batches.values():
            batch.release()
        return queue

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted((self.folder / "batches").glob("*.json"))]

    def nothing_is_left(self) -> None:
        assert self.records == []
        assert self.stub.stats()["batch"]["files"] == 0


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with StubAPI(batch=BatchPlan(), api_key=CANARY) as stub:
        made = World(stub, tmp_path / "journal")
        yield made
        for queue in made.queues:
            await queue.close()
        for api in made.apis:
            await api.close()
    assert not any(CANARY in line for line in made.said)


def body(number: int) -> dict[str, Any]:
    return {"model": "stub-model", "messages": [{"role": "user", "content": f"Question {number}?"}], "max_tokens": 64}


async def ask(queue: BatchQueue, *numbers: int) -> list[Reply]:
    """The replies, each settled as the client does it; so is what may have been billed without one."""

    async def one_batch(number: int) -> Reply | NotDone:
        try:
            return await queue.chat(key(number), body(number))
        except NotDone as left:
            return left

    async def one(number: int) -> Reply:
        while not isinstance(reply := await one_batch(number), Reply):
            assert reply.billed
            await queue.settled(key(number), reply)
        assert reply.text == plain_answer(body(number)).text
        await queue.settled(key(number))
        return reply

    return await asyncio.gather(*map(one, numbers))


async def outcomes(queue: BatchQueue, *numbers: int) -> list[Reply | BaseException]:
    return await asyncio.gather(*(queue.chat(key(n), body(n)) for n in numbers), return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds; the loop's other work goes on meanwhile."""
    while not condition():  # noqa: ASYNC110 - what it looks at belongs to a server
        await asyncio.sleep(0.001)


@asynccontextmanager
async def under_way(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Work of a process that dies: whatever comes of it, nobody hears it."""
    task = asyncio.create_task(work)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- the whole way


async def test_calls_become_one_batch_and_come_back(world: World) -> None:
    queue = world.queue()
    replies = await ask(queue, *range(20))
    assert [reply.model for reply in replies] == ["stub-model-0001"] * 20
    assert all(reply.usage.prompt and reply.usage.completion for reply in replies)
    await queue.close()
    stats = world.stub.stats()
    assert stats["batch"]["sizes"] == [20]
    assert (stats["total"], stats["repeated"]) == (20, {})
    world.nothing_is_left()


async def test_batches_are_cut_by_requests(world: World) -> None:
    queue = world.queue(max_requests=1000)
    await ask(queue, *range(2500))
    await queue.close()
    assert sorted(world.stub.stats()["batch"]["sizes"]) == [500, 1000, 1000]
    assert world.stub.stats()["repeated"] == {}
    world.nothing_is_left()


async def test_batches_are_cut_by_bytes(world: World) -> None:
    queue = world.queue(max_bytes=100_000)
    await ask(queue, *range(2500))
    await queue.close()
    lines = [
        [request_line(line["custom_id"], line["body"]) for line in b.lines] for b in world.batches.batches.values()
    ]
    sizes = sorted(len(b"".join(batch)) for batch in lines)
    assert sum(map(len, lines)) == 2500
    assert all(99_000 < size <= 100_000 for size in sizes[1:])
    assert world.stub.stats()["repeated"] == {}


async def test_the_same_call_twice_is_one_line(world: World) -> None:
    queue = world.queue()
    replies = await outcomes(queue, 1, 1, 2)
    assert replies[0] == replies[1] != replies[2]
    # Also after it came back, until it is settled.
    assert await queue.chat(key(1), body(1)) == replies[0]
    assert world.stub.stats()["batch"]["sizes"] == [2]


async def test_a_call_that_nobody_waits_for_does_not_join(world: World) -> None:
    time = world.time = ManualTime()
    queue = world.queue()
    async with under_way(queue.chat(key(1), body(1))):
        await time.until_asleep(1)
        assert queue.stats()["waiting"] == 1
    assert queue.stats()["waiting"] == 0
    async with under_way(ask(queue, 2)) as asked:
        await until(lambda: queue.stats()["waiting"] == 1)
        while not asked.done():
            await time.until_asleep(1)
            time.advance(SETTINGS["poll_s"])
            await until(lambda: time.asleep == 1 or asked.done())
        await asked
    assert world.stub.stats()["batch"]["sizes"] == [1]
    (batch,) = world.batches.batches.values()
    assert [line["body"] for line in batch.lines] == [body(2)]


async def test_stats_say_what_is_under_way(world: World) -> None:
    world.plan.polls = 10**9
    queue = world.queue()
    async with under_way(ask(queue, *range(5))):
        await until(lambda: world.batches.looks > 1)
        stats = queue.stats()
        assert (stats["batches"], stats["waiting"], stats["under_way"]) == (1, 0, 5)
        assert (stats["total"], stats["completed"]) == (5, 0)
        assert stats["oldest_s"] >= SETTINGS["poll_s"]


async def test_closing_ends_those_who_wait(world: World) -> None:
    world.plan.polls = 10**9
    queue = world.queue()
    waiting = asyncio.gather(*(queue.chat(key(n), body(n)) for n in range(3)), return_exceptions=True)
    await until(lambda: world.batches.looks > 1)
    await queue.close()
    assert all(isinstance(outcome, InfrastructureError) for outcome in await waiting)
    with pytest.raises(InfrastructureError):
        await queue.chat(key(9), body(9))
    assert len(world.records) == 1


# --- what a batch leaves undone


FAULTS: list[dict[str, Any]] = [
    {"expire": [0, 3, 9]},
    {"expire": [0, 3, 9], "cancel": True},
    {"expire": range(10)},
    {"errors": {"0": 429, "3": 500, "9": 503}},
    {"missing": [0, 3, 9]},
    {"missing": range(10)},
]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
async def test_leftovers_go_again_in_a_new_batch(world: World, faults: dict[str, Any]) -> None:
    vars(world.plan).update(faults)
    queue = world.queue()
    await ask(queue, *range(10))
    await queue.close()
    left = len(next(iter(value for value in faults.values())))
    assert world.stub.stats()["batch"]["sizes"] == [10, left]
    assert world.stub.stats()["repeated"] == {}
    assert any(f"left {left} of its 10 calls unfinished" in line for line in world.said)
    world.nothing_is_left()


@pytest.mark.parametrize("faults", FAULTS, ids=str)
async def test_leftovers_go_back_to_their_caller_for_live_calls(world: World, faults: dict[str, Any]) -> None:
    vars(world.plan).update(faults)
    queue = world.queue(leftovers="live")
    seen = await outcomes(queue, *range(10))
    left = len(next(iter(value for value in faults.values())))
    assert sum(isinstance(outcome, NotDone) for outcome in seen) == left
    assert sum(isinstance(outcome, Reply) for outcome in seen) == 10 - left
    for number, outcome in enumerate(seen):
        if isinstance(outcome, Reply):
            await queue.settled(key(number))
    await queue.close()
    world.nothing_is_left()


async def test_a_garbled_line_is_bought_again_and_no_other(world: World) -> None:
    world.plan.garbled = [2]
    world.plan.newline = False
    queue = world.queue()
    await ask(queue, *range(6))
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [6, 1]
    assert list(world.stub.stats()["repeated"].values()) == [2]
    world.nothing_is_left()


@pytest.mark.parametrize("counted", [True, False])
async def test_which_lines_may_have_been_billed(world: World, counted: bool) -> None:
    """One is cut off, one holds no answer, one was lost behind the endpoint; one expired, one was not there at all."""
    world.plan.garbled, world.plan.odd = [0], [1]
    world.plan.errors, world.plan.expire, world.plan.missing = {"2": 504, "3": 500}, [4], [5]
    world.plan.counted = counted
    queue = world.queue(leftovers="live")
    seen = await outcomes(queue, *range(7))
    assert [getattr(one, "billed", None) for one in seen] == [True, True, True, False, False, False, None]
    await queue.settled(key(6))
    await until(lambda: not queue._closings)
    assert len(world.records) == 1, "whoever is killed now finds it again"
    for number in range(3):
        await queue.settled(key(number))
    await queue.close()
    world.nothing_is_left()


async def test_a_request_that_the_endpoint_rejects_ends_alone(world: World) -> None:
    world.plan.errors = {"1": 400}
    queue = world.queue()
    seen = await outcomes(queue, *range(3))
    assert [type(outcome) for outcome in seen] == [Reply, Rejected, Reply]
    assert "a planned 400" in str(seen[1])
    await queue.settled(key(0))
    await queue.settled(key(2))
    await queue.close()
    world.nothing_is_left()


async def test_a_call_is_given_back_after_so_many_batches(world: World) -> None:
    world.plan.faulty, world.plan.expire = range(1, 100), [0]
    (seen,) = await outcomes(world.queue(), 1)
    assert isinstance(seen, Transient)
    assert world.stub.stats()["batch"]["sizes"] == [1] * 5


# --- a batch that fails as a whole


async def test_lines_that_validation_names_are_rejected_and_the_others_go_again(world: World) -> None:
    world.plan.invalid = [1, 2]
    queue = world.queue(leftovers="live")
    seen = await outcomes(queue, *range(5))
    assert [type(outcome) for outcome in seen] == [Reply, Rejected, Rejected, Reply, Reply]
    assert world.stub.stats()["batch"]["sizes"] == [5, 3]
    assert world.stub.stats()["repeated"] == {}


@pytest.mark.parametrize(("code", "fault"), [("billing_hard_limit_reached", "quota"), ("model_not_found", "model")])
async def test_what_holds_for_every_batch_is_a_refusal(world: World, code: str, fault: str) -> None:
    world.plan.fail = code
    seen = await outcomes(world.queue(), 1, 2)
    assert [outcome.fault for outcome in seen if isinstance(outcome, Refused)] == [fault, fault]
    world.nothing_is_left()


async def test_a_batch_that_fails_for_no_told_reason_goes_again(world: World) -> None:
    world.plan.fail = "internal"
    await ask(world.queue(), 1, 2)
    assert world.stub.stats()["batch"]["ends"] == ["failed", "completed"]


async def test_batches_wait_for_room_at_the_endpoint(world: World) -> None:
    """Four batches of ten where the endpoint takes twenty lines at once."""
    world.plan.limit = 20
    world.plan.polls = 4
    queue = world.queue(max_requests=10)
    await ask(queue, *range(40))
    await queue.close()
    assert world.stub.stats()["completed"] == 40
    assert world.stub.stats()["repeated"] == {}
    assert any("no room for 10 calls" in line for line in world.said)
    world.nothing_is_left()


async def test_a_batch_that_is_too_large_by_itself_is_cut(world: World) -> None:
    world.plan.limit = 5
    await ask(world.queue(), *range(16))
    assert world.stub.stats()["completed"] == 16
    assert world.stub.stats()["repeated"] == {}


async def test_an_endpoint_that_never_has_room_is_told_after_so_many_attempts(world: World) -> None:
    world.plan.limit = 0
    seen = await outcomes(world.queue(), 1)
    assert isinstance(seen[0], Transient)
    assert "token_limit_exceeded" in seen[0].detail
    # Each wait is longer than the one before.
    pauses = [pause for pause in world.time.slept if pause >= 60]
    assert pauses == [60, 120, 240, 480, 960]


# --- faults on the way


async def test_an_upload_that_fails_once_is_repeated(world: World) -> None:
    world.plan.upload_faults = [1]
    await ask(world.queue(), 1, 2)
    assert world.stub.stats()["batch"]["uploads"] == 2
    assert world.stub.stats()["batch"]["sizes"] == [2]


async def test_looks_wait_as_the_endpoint_asks(world: World) -> None:
    world.plan.poll_faults = {"1": 429, "2": 500, "3": 429}
    await ask(world.queue(), 1, 2)
    assert world.time.slept.count(7.0) == 2
    assert world.stub.stats()["repeated"] == {}


async def test_an_outage_while_a_batch_is_under_way_gives_calls_back_and_loses_nothing(world: World) -> None:
    world.plan.poll_faults = {str(look): 503 for look in range(1, 100_000)}
    queue = world.queue()
    seen = await outcomes(queue, 1, 2)
    assert all(isinstance(outcome, Transient) for outcome in seen)
    world.plan.poll_faults = {}
    await ask(queue, 1, 2)
    assert world.stub.stats()["batch"]["sizes"] == [2]


@pytest.mark.parametrize("fault", ["500", "429", "lost"])
async def test_a_creation_that_fails_is_repeated_only_where_nothing_was_created(world: World, fault: str) -> None:
    world.plan.create_faults = {"1": fault}
    await ask(world.queue(), 1, 2)
    assert world.stub.stats()["batch"]["sizes"] == [2]
    assert world.stub.stats()["repeated"] == {}


async def test_a_creation_that_is_rejected_leaves_nothing_behind(world: World) -> None:
    world.plan.create_faults = {"1": "400"}
    seen = await outcomes(world.queue(), 1, 2)
    assert [outcome.reason for outcome in seen if isinstance(outcome, Rejected)] == [
        "batch rejected by the endpoint"
    ] * 2
    world.nothing_is_left()


async def test_a_download_that_breaks_off_is_repeated(world: World) -> None:
    world.plan.download_faults = [1]
    await ask(world.queue(), *range(50))
    assert world.stub.stats()["batch"]["downloads"] == 2
    assert world.stub.stats()["repeated"] == {}


async def test_results_that_someone_deleted_are_bought_again(world: World) -> None:
    world.plan.polls = 10**9
    queue = world.queue()
    async with under_way(outcomes(queue, 1, 2)):
        await until(lambda: world.batches.looks > 1)
        world.drop()
    world.batches.batches.clear()
    world.plan.polls = 2
    queue = world.queue()
    seen = await outcomes(queue, 1, 2)
    assert [one.billed for one in seen if isinstance(one, NotDone)] == [True, True], "they were under way"
    await queue.settled(key(1))
    await ask(queue, 2, 1)
    await queue.close()
    assert any("are retried" in line for line in world.said)
    assert world.records == []


@pytest.mark.parametrize("where", ["key", "address"])
async def test_an_endpoint_that_refuses_every_call_says_so_at_once(world: World, where: str) -> None:
    queue = world.queue()
    if where == "key":
        world.stub.api_key = "another"
    else:
        world.apis[-1].base_url = world.stub.base_url + "/wrong"
    seen = await outcomes(queue, 1)
    assert isinstance(seen[0], Refused)
    assert seen[0].fault == where
    assert CANARY not in str(seen[0]) + seen[0].detail
    assert world.records == []


# --- killed


async def test_killed_before_the_upload_nothing_was_bought(world: World) -> None:
    world.plan.upload_faults = range(1, 10**6)
    async with under_way(ask(world.queue(), 1, 2)):
        await until(lambda: world.batches.uploads > 0)
        world.drop()
    assert [record["batch_id"] for record in world.records] == [None]
    world.plan.upload_faults = []
    await ask(world.queue(), 1, 2)
    assert world.stub.stats()["batch"]["sizes"] == [2]


async def test_killed_between_intent_and_creation(world: World) -> None:
    world.plan.create_faults = {str(n): "500" for n in range(1, 10**4)}
    async with under_way(ask(world.queue(), 1, 2)):
        await until(lambda: world.batches.creations > 0)
        world.drop()
    assert [(record["batch_id"], bool(record["input_file_id"])) for record in world.records] == [(None, True)]
    world.plan.create_faults = {}
    started = world.time.now
    await ask(world.queue(), 1, 2)
    # A request may have been on its way when the process died: it was given time to arrive.
    assert world.time.now - started > 60
    assert world.stub.stats()["batch"]["sizes"] == [2]
    assert world.stub.stats()["repeated"] == {}


async def test_killed_between_creation_and_its_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint has the batch, and other batches after it; only the nonce tells which."""
    write = BatchRecords.write

    def dies(self: BatchRecords, record: Any) -> None:
        if record.batch_id is not None:
            raise InfrastructureError("killed")
        write(self, record)

    monkeypatch.setattr(BatchRecords, "write", dies)
    assert all(isinstance(o, InfrastructureError) for o in await outcomes(world.queue(), 1, 2))
    world.drop()
    monkeypatch.undo()
    assert [record["batch_id"] for record in world.records] == [None]
    for number in range(3):
        world.batches._made({"input_file_id": "x", "completion_window": "24h", "metadata": {"nonce": str(number)}}, [])
    queue = world.queue()
    await ask(queue, 1, 2, 3)
    await queue.close()
    assert sorted(world.stub.stats()["batch"]["sizes"]) == [0, 0, 0, 1, 2]
    assert world.stub.stats()["repeated"] == {}
    assert world.records == []


async def test_killed_while_a_batch_is_under_way(world: World) -> None:
    world.plan.polls = 10**9
    async with under_way(ask(world.queue(), *range(6))):
        await until(lambda: world.batches.looks > 1)
        world.drop()
    world.plan.polls = 1
    queue = world.queue()
    # Some are asked again, at different times, beside a new one; then the others.
    await ask(queue, 0, 1, 77)
    await ask(queue, 2)
    await until(lambda: len(list((world.folder / "batches").iterdir())) == 1)
    await ask(queue, 3, 4, 5)
    await queue.close()
    stats = world.stub.stats()
    assert stats["batch"]["sizes"] == [6, 1]
    assert stats["batch"]["downloads"] == 2
    assert stats["repeated"] == {}
    world.nothing_is_left()


async def test_killed_after_some_were_journaled(world: World) -> None:
    queue = world.queue()
    assert len(await outcomes(queue, *range(4))) == 4
    await queue.settled(key(0))
    world.drop()
    queue = world.queue(journaled={key(0)}.__contains__)
    await ask(queue, 1, 2, 3)
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [4]
    world.nothing_is_left()


async def test_a_batch_of_which_everything_was_journaled_is_closed_by_the_next_start(world: World) -> None:
    assert len(await outcomes(world.queue(), *range(4))) == 4
    world.drop()
    queue = world.queue(journaled={key(n) for n in range(4)}.__contains__)
    await ask(queue, 9)
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [4, 1]
    world.nothing_is_left()


async def test_killed_while_leftovers_were_under_way(world: World) -> None:
    """Calls 2 and 3 are in two records: the expired batch's and the new one's."""
    world.plan.expire = [2, 3]
    queue = world.queue()
    async with under_way(outcomes(queue, *range(4))):
        await until(lambda: len(world.batches.batches) == 2)
        await until(lambda: all(record["batch_id"] for record in world.records))
        world.drop()
    assert len(world.records) == 2
    queue = world.queue()
    await ask(queue, *range(4))
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [4, 2]
    assert world.stub.stats()["repeated"] == {}
    world.nothing_is_left()


async def test_another_apis_batches_are_not_touched(world: World) -> None:
    world.plan.polls = 10**9
    async with under_way(ask(world.queue(), 1)):
        await until(lambda: world.batches.looks > 1)
        world.drop()
    async with StubAPI(batch=BatchPlan()) as other:
        elsewhere = World(other, world.folder)
        queue = elsewhere.queue()
        await ask(queue, 1)
        await queue.close()
        await elsewhere.apis[0].close()
    assert [record["address"] for record in world.records] == [world.stub.base_url + "/"]


async def test_a_record_that_cannot_be_read_stops_before_anything_is_bought(world: World) -> None:
    (world.folder / "batches").mkdir(parents=True)
    (world.folder / "batches" / "x.json").write_text("{")
    seen = await outcomes(world.queue(), 1)
    assert isinstance(seen[0], InfrastructureError)
    assert "x.json" in seen[0].message
    assert world.stub.stats()["total"] == 0


@pytest.mark.parametrize(
    "field",
    [
        {"made_at": None},
        {"keys": None},
        {"keys": [1]},
        {"batch_id": 1},
        {"address": {}},
        {"nonce": "../x"},
        {"more": 1},
        {"of two\nlines": 1},
    ],
    ids=str,
)
async def test_a_record_with_a_field_of_another_kind_is_told_by_its_file(
    world: World, field: dict[str, object]
) -> None:
    """Found by fuzzing."""
    record = BatchRecord("n1", "http://127.0.0.1:1/v1/", "teacher", ["k1"], 1.0, 2.0)
    (world.folder / "batches").mkdir(parents=True)
    (world.folder / "batches" / "n1.json").write_text(json.dumps(asdict(record) | field))
    seen = await outcomes(world.queue(), 1)
    assert isinstance(seen[0], InfrastructureError)
    assert "n1.json is damaged" in seen[0].message
    assert "\n" not in seen[0].message
    assert world.stub.stats()["total"] == 0


async def test_a_batch_that_another_process_has_closed_is_not_bought_again(world: World) -> None:
    """Two processes poll one batch; the faster one settles and deletes it (found by the simulation)."""
    time = world.time = ManualTime()
    journal: set[str] = set()
    slow = asyncio.create_task(world.queue(journal.__contains__).chat(key(1), body(1)))
    while not world.stub.stats()["batch"]["looks"]:
        await time.until_asleep(1)
        time.advance(SETTINGS["linger_s"])
        await asyncio.sleep(0.001)
    world.time = QuickTime()
    fast = world.queue(journal.__contains__)
    await ask(fast, 1)
    journal.add(key(1))
    await fast.close()
    world.nothing_is_left()
    while not slow.done():
        time.advance(SETTINGS["poll_s"])
        await asyncio.sleep(0.001)
    with pytest.raises(InJournal):
        await slow
    assert world.stub.stats()["batch"]["sizes"] == [1]


async def test_a_batch_whose_file_another_process_is_uploading_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was closed, as if no batch could come of it, and the call bought twice (found by the simulation)."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def upload(self: BatchAPI, name: str, data: bytes) -> str:
        begun.set()
        await gate.wait()
        return await real(self, name, data)

    real = BatchAPI.upload
    monkeypatch.setattr(BatchAPI, "upload", upload)
    buying = asyncio.create_task(ask(world.queue(), 1))
    await begun.wait()
    time = world.time = ManualTime()
    async with under_way(ask(world.queue(), 1)):
        await time.until_asleep(1)
        assert len(world.records) == 1
        gate.set()
        await buying
    assert world.stub.stats()["batch"]["sizes"] == [1]


async def two_records(world: World, **newer: Any) -> BatchRecord:
    """An open record of a batch with call 1, and a newer one of the same call; returns the newer one."""
    async with under_way(ask(world.queue(), 1)):
        await until(lambda: world.stub.stats()["batch"]["looks"] > 0)
    world.drop()
    records = BatchRecords(str(world.folder))
    made = records.load(BatchAPI(world.apis[0], 10, keyed=True).address)[0]
    records.write(added := replace(made, nonce=f"{made.nonce[:-1]}x", made_at=made.made_at + 1, **newer))
    return added


async def test_a_call_in_two_open_records_is_taken_from_the_batch_that_exists(world: World) -> None:
    """The newer batch was never created; the older one's answer was bought again (found by the simulation)."""
    await two_records(world, batch_id=None, input_file_id="file-x")
    queue = world.queue()
    await ask(queue, 1)
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [1]


async def test_what_one_batch_may_have_billed_leaves_the_same_call_of_another_batch_open(world: World) -> None:
    """The newer batch is gone; its call's possible cost is settled, and the older batch has the answer (the same)."""
    newer = await two_records(world, batch_id="batch-gone")
    queue = world.queue()
    with pytest.raises(NotDone) as left:
        await queue.chat(key(1), body(1), live=True)
    assert left.value.billed
    assert left.value.nonce == newer.nonce
    await queue.settled(key(1), left.value)
    assert await queue.holds(key(1))
    await ask(queue, 1)
    await queue.close()
    assert world.stub.stats()["batch"]["sizes"] == [1]


async def test_a_folder_that_refuses_buys_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: BatchRecords, record: Any) -> None:
        raise InfrastructureError("disk full")

    monkeypatch.setattr(BatchRecords, "write", refuses)
    seen = await outcomes(world.queue(), 1)
    assert isinstance(seen[0], InfrastructureError)
    assert world.stub.stats()["batch"]["uploads"] == 0


BUYER = """
import asyncio, sys
import openai
from lion_ray.config import EndpointConfig
from lion_ray.gateway.batch import BatchQueue
from lion_ray.gateway.batch.api import BatchAPI
from tests.gateway.support import key
from tests.gateway.test_batch import body

async def main(base_url, folder):
    config = EndpointConfig(model="stub-model", batch={"linger_s": 0.01, "poll_s": 0.01})
    api = openai.AsyncOpenAI(api_key="sk-of-the-buyer", base_url=base_url, max_retries=0)
    queue = BatchQueue("default", config, BatchAPI(api, config.timeout_s, keyed=True), folder)
    await asyncio.gather(*(queue.chat(key(n), body(n)) for n in range(8)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_was_killed_is_followed_by_one_that_adopts_its_batch(tmp_path: Path) -> None:
    with stub_process("--batch", json.dumps({"polls": 100})) as base_url:
        buyer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BUYER, base_url, str(tmp_path), cwd=Path(__file__).resolve().parents[2]
        )
        try:
            while not (stats := await asyncio.to_thread(fetch_stats, base_url))["batch"]["looks"]:
                assert buyer.returncode is None
        finally:
            buyer.kill()
            await buyer.wait()
        assert stats["batch"]["sizes"] == [8]
        config = EndpointConfig(model="stub-model", batch={"linger_s": 0.01, "poll_s": 0.01})
        async with openai.AsyncOpenAI(api_key="sk-of-the-buyer", base_url=base_url, max_retries=0) as api:
            queue = BatchQueue("default", config, BatchAPI(api, config.timeout_s, keyed=True), str(tmp_path))
            await ask(queue, *range(8))
            await queue.close()
        stats = fetch_stats(base_url)
        assert (stats["batch"]["sizes"], stats["repeated"], stats["batch"]["files"]) == ([8], {}, 0)
    assert list((tmp_path / "batches").iterdir()) == []
