"""Batches step by step: a Batch API that answers by a script, and a time that sleeping moves."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from lion_ray.config import EndpointConfig
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.batch import BatchQueue
from lion_ray.gateway.batch.api import Gone
from lion_ray.gateway.batch.buyer import Buyer
from lion_ray.gateway.batch.lines import InJournal, NotDone, request_line
from lion_ray.gateway.batch.queue import NOT_DONE, ROUNDS
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.batch.work import Gathering, PendingCall, UnderWay
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.wire import RateLimited, Refused, Rejected, Transient

ADDRESS = "https://api.test/v1"


class Highest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def remote(status: str = "in_progress", batch_id: str = "b1", **more: Any) -> Batch:
    known: dict[str, Any] = {
        "id": batch_id,
        "completion_window": "24h",
        "created_at": 1,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "in",
        "object": "batch",
        "status": status,
    }
    return Batch.model_validate(known | more)


def counts(completed: int, failed: int = 0, total: int = 0) -> dict[str, Any]:
    return {"request_counts": {"completed": completed, "failed": failed, "total": total}}


class API:
    """Answers each kind of request by its own script; without one, as an endpoint where all goes well."""

    address = ADDRESS

    def __init__(self, **scripts: list[Any]) -> None:
        self.scripts = scripts
        self.asked: list[tuple[Any, ...]] = []
        self.files: dict[str, bytes] = {}

    async def _next(self, kind: str, *about: Any, default: Any = None) -> Any:
        self.asked.append((kind, *about))
        await asyncio.sleep(0)
        script = self.scripts.get(kind, [])
        result = script.pop(0) if script else default
        if isinstance(result, BaseException):
            raise result
        return result

    async def upload(self, name: str, data: bytes) -> Any:
        return await self._next("upload", name, data, default="in")

    async def create(self, file_id: str, nonce: str, window: str) -> Any:
        return await self._next("create", file_id, nonce, window, default=remote())

    async def retrieve(self, batch_id: str) -> Any:
        return await self._next("retrieve", batch_id, default=remote("completed", output_file_id="out"))

    async def cancel(self, batch_id: str) -> Any:
        return await self._next("cancel", batch_id, default=remote("cancelling"))

    async def find(self, nonce: str, since: float) -> Any:
        return await self._next("find", nonce, since)

    async def delete(self, file_id: str) -> Any:
        return await self._next("delete", file_id)

    async def download(self, file_id: str, write: Callable[[bytes], None]) -> None:
        await self._next("download", file_id)
        write(self.files.get(file_id, b""))

    def redact(self, text: bytes) -> bytes:
        return text.replace(b"secret", b"***")

    def count(self, kind: str) -> int:
        return sum(one[0] == kind for one in self.asked)


class Bench:
    def __init__(self, folder: Path, api: API | None = None, **changes: Any) -> None:
        known: dict[str, Any] = {"poll_s": 30.0, "linger_s": 10.0}
        batch = known | changes.pop("batch", {})
        self.config = EndpointConfig(model="m", api_key_env=None, batch=batch, **changes)
        self.api = api or API()
        self.records = BatchRecords(str(folder))
        self.folder = folder
        self.now = 1000.0
        self.slept: list[float] = []
        self.said: list[str] = []
        self.journaled: set[str] = set()
        self.refreshes = 0
        self.others: set[str] = set()
        """What another process has journaled, as a refresh shows."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now

    def buyer(self) -> Buyer:
        return Buyer(
            self.config,
            self.api,  # type: ignore[arg-type]
            self.records,
            self.said.append,
            self.clock,
            self.sleep,
            self.clock,
            Highest(),
        )

    async def refresh(self) -> None:
        self.refreshes += 1
        self.journaled |= self.others

    def queue(self) -> BatchQueue:
        return BatchQueue(
            "e",
            self.config,
            self.api,  # type: ignore[arg-type]
            str(self.folder),
            journaled=self.journaled.__contains__,
            refresh=self.refresh,
            say=self.said.append,
            clock=self.clock,
            sleep=self.sleep,
            now=self.clock,
            rng=Highest(),
        )

    def open_records(self) -> list[BatchRecord]:
        return self.records.load(ADDRESS)


def record(nonce: str = "n1", keys: tuple[str, ...] = ("k1", "k2"), **more: Any) -> BatchRecord:
    known: dict[str, Any] = {"made_at": 900.0, "tried_at": 950.0}
    return BatchRecord(nonce, ADDRESS, "e", list(keys), **(known | more))


def asked(key: str, **more: Any) -> PendingCall:
    return PendingCall(key, f"line of {key}\n".encode(), asyncio.get_running_loop().create_future(), **more)


def under_way(one: BatchRecord, **more: Any) -> UnderWay:
    waiting = {key: asked(key) for key in one.keys}
    return UnderWay(one, set(one.keys), **({"waiting": waiting} | more))


def answer(key: str, text: str = "so") -> bytes:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "model": "m"}
    return json.dumps({"custom_id": key, "response": {"status_code": 200, "body": body}}).encode() + b"\n"


SERVER = Transient("server error", "so", status=500)

# -- one batch --------------------------------------------------------------------------------------------------------


async def test_a_batch_is_bought(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch={"completion_window": "7d"})
    batch = under_way(record(), fresh=True)
    await bench.buyer().buy(batch)
    assert bench.api.asked == [
        ("upload", "n1.jsonl", b"line of k1\nline of k2\n"),
        ("create", "in", "n1", "7d"),
    ]
    assert batch.remote == remote()
    assert batch.maybe_created
    assert bench.open_records() == [record(tried_at=1000.0, input_file_id="in", batch_id="b1")]


async def test_a_purchase_is_repeated_with_care(tmp_path: Path) -> None:
    api = API(
        upload=[RateLimited(7.0), RateLimited(None), SERVER, Transient("server error", "so", 9.0), "in"],
        create=[RateLimited(5.0), RateLimited(None), SERVER, SERVER],
        find=[None, RateLimited(3.0), remote(batch_id="b7")],
    )
    bench = Bench(tmp_path, api)
    batch = under_way(record(), fresh=True)
    await bench.buyer().buy(batch)
    # A rate limit's own pause, or a backoff that doubles; after an error the list is searched first.
    assert bench.slept == [7.0, 1.0, 2.0, 9.0, 5.0, 1.0, 2.0, 4.0, 3.0]
    assert [one[0] for one in api.asked[5:]] == ["create", "create", "create", "find", "create", "find", "find"]
    assert api.asked[-1] == ("find", "n1", 900.0)
    assert batch.record.batch_id == "b7"
    assert bench.open_records()[0].tried_at == 1000.0 + 19.0 + 5.0 + 1.0 + 2.0


@pytest.mark.parametrize("error", [Refused("key", "no"), Rejected("rejected by the endpoint", "no")])
async def test_a_purchase_that_is_refused(tmp_path: Path, error: Exception) -> None:
    bench = Bench(tmp_path, API(create=[error]))
    batch = under_way(record(), fresh=True)
    with pytest.raises(type(error)):
        await bench.buyer().buy(batch)
    assert not batch.maybe_created


async def test_an_endpoint_that_is_down_for_too_long(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(create=[SERVER] * 99), outage_timeout_s=100.0, max_backoff_s=40.0)
    batch = under_way(record(), fresh=True)
    with pytest.raises(Transient, match="so"):
        await bench.buyer().buy(batch)
    assert batch.maybe_created
    assert bench.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 40.0]
    bench = Bench(tmp_path, API(upload=[SERVER] * 3 + [RateLimited(90.0)] + [SERVER] * 99), outage_timeout_s=100.0)
    with pytest.raises(Transient, match="so"):
        await bench.buyer().buy(under_way(record(), fresh=True))
    # The rate limit shows that it is up: the outage is counted from the next error on.
    assert bench.slept == [0.5, 1.0, 2.0, 90.0, 8.0, 16.0, 32.0, 60.0]


async def test_a_batch_whose_creation_is_in_doubt_is_looked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(find=[None, None, remote(batch_id="b9")]))
    one = record(input_file_id="in", tried_at=990.0)
    bench.records.write(one)
    batch = under_way(one)
    assert await bench.buyer().found(batch)
    assert bench.slept == [30.0, 30.0]
    assert batch.record.batch_id == "b9"
    assert bench.open_records()[0].batch_id == "b9"
    # Found by another process meanwhile.
    again = under_way(record(input_file_id="in"))
    assert await bench.buyer().found(again)
    assert again.record.batch_id == "b9"
    # Never listed: until two minutes after the last try.
    bench = Bench(tmp_path / "b")
    one = record(input_file_id="in", tried_at=900.0)
    bench.records.write(one)
    assert not await bench.buyer().found(under_way(one))
    assert bench.slept == [20.0]
    assert bench.api.count("find") == 2
    bench = Bench(tmp_path / "c")
    bench.records.write(record())
    assert not await bench.buyer().found(under_way(record())), "nothing was uploaded"
    assert not await bench.buyer().found(under_way(record("gone")))
    assert bench.api.asked == []


async def test_a_batch_is_polled_until_it_ends(tmp_path: Path) -> None:
    for end in ("completed", "failed", "expired", "cancelled"):
        states = [remote("validating"), remote("in_progress"), SERVER, remote("finalizing"), remote(end)]
        bench = Bench(tmp_path, API(retrieve=states))
        buyer = bench.buyer()
        batch = under_way(record(batch_id="b1"))
        assert buyer.ran_at == float("-inf")
        assert (await buyer.until_over(batch)).status == end
        assert bench.slept == [30.0, 30.0, 0.5, 30.0]
        assert buyer.ran_at == (1060.5 if end == "failed" else 1090.5)
        assert (await buyer.until_over(batch)).status == end
        assert bench.api.count("retrieve") == 5


async def test_a_batch_that_the_endpoint_does_not_know(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(retrieve=[Gone("no")] * 4))
    assert (await bench.buyer().until_over(under_way(record(batch_id="b1")))).status == "completed"
    assert bench.slept == [30.0] * 4
    bench = Bench(tmp_path, API(retrieve=[Gone("no")] * 5))
    with pytest.raises(Gone):
        await bench.buyer().until_over(under_way(record(batch_id="b1")))
    assert bench.slept == [30.0] * 4


async def test_a_batch_is_cancelled_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(cancel=[remote("cancelling"), SERVER]))
    batch = under_way(record(batch_id="b1"))
    await bench.buyer().cancel(batch)
    assert batch.remote == remote("cancelling")
    await bench.buyer().cancel(batch)
    assert bench.said == ["batch b1 is cancelled; its finished calls are billed", "batch b1 is not cancelled: so"]


async def test_a_batchs_output_is_fetched(tmp_path: Path) -> None:
    api = API(download=[None, SERVER])
    api.files = {"out": answer("k1").rstrip(b"\n"), "err": b'{"custom_id": "k2", "response": {"status_code": 500}}'}
    bench = Bench(tmp_path, api)
    over = remote("completed", output_file_id="out", error_file_id="err", **counts(2))
    batch = under_way(record(keys=("k1", "k2", "k3")))
    output = await bench.buyer().fetch(batch, over)
    assert [one[1] for one in api.asked] == ["out", "err", "out", "err"], "both again after an error"
    assert bench.slept == [0.5]
    assert output.answered == {"k1"}
    assert output.doubtful == {"k3"}
    assert output.line("k2") == api.files["err"] + b"\n"
    empty = await bench.buyer().fetch(batch, remote("expired"))
    assert (empty.answered, empty.doubtful) == (set(), set())
    with pytest.raises(Gone):
        await Bench(tmp_path, API(download=[Gone("no")])).buyer().fetch(batch, over)


async def test_a_batchs_files_are_deleted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(delete=[Gone("no"), SERVER]))
    batch = under_way(record(batch_id="b1", input_file_id="in"))
    batch.remote = remote("completed", output_file_id="out", error_file_id="err")
    await bench.buyer().delete_files(batch)
    assert bench.api.asked == [("delete", "in"), ("delete", "out"), ("delete", "err")]
    assert bench.said == ["a file stays at the endpoint: so"]
    # Its state is asked for if it is not known.
    bench = Bench(tmp_path)
    await bench.buyer().delete_files(under_way(record(batch_id="b1", input_file_id="own")))
    assert bench.api.asked == [("retrieve", "b1"), ("delete", "in"), ("delete", "out")]
    bench = Bench(tmp_path, API(retrieve=[SERVER]))
    await bench.buyer().delete_files(under_way(record(batch_id="b1", input_file_id="own")))
    assert bench.said == ["the files of batch b1 stay at the endpoint: so"]
    assert bench.api.asked[1:] == [("delete", "own")]
    bench = Bench(tmp_path)
    await bench.buyer().delete_files(under_way(record()))
    assert bench.api.asked == []


# -- gathering --------------------------------------------------------------------------------------------------------


async def test_how_calls_are_gathered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch={"max_requests": 8, "max_bytes": 1000})
    shipped: list[list[str]] = []
    gathering = Gathering(bench.config.batch, lambda calls: shipped.append(list(calls)), bench.clock, bench.sleep)
    for number in range(8):
        gathering.add(asked(f"k{number}"))
    assert shipped == [[f"k{number}" for number in range(8)]]
    gathering.narrow(8)
    for number in range(3):
        gathering.add(asked(f"n{number}"))
    assert shipped[1:] == [["n0", "n1"]], "a quarter of those that were too many"
    gathering.widen()
    one, two = asked("w0"), asked("w1")
    gathering.add(one)
    assert gathering.drop(one)
    assert not gathering.drop(one)
    assert not gathering.drop(two)
    for number in range(3):
        gathering.add(asked(f"v{number}"))
    assert shipped[2:] == [["n2", "v0", "v1", "v2"]]
    gathering.narrow(3)
    gathering.add(asked("u"))
    assert shipped[3:] == [["u"]], "one at least"
    for _ in range(9):
        gathering.widen()
    # By size: a call that would not fit begins the next batch, and a large one goes alone.
    large = asked("large")
    large.line = b"x" * 990
    small = asked("s0")
    gathering.add(small)
    gathering.add(large)
    assert shipped[4:] == [["s0"]]
    gathering.add(asked("s1"))
    assert shipped[5:] == [["large"]]
    assert gathering.drop(asked("s1")) is False
    # After a while without another.
    bench.slept.clear()
    for _ in range(20):
        await asyncio.sleep(0)
    assert shipped[6:] == [["s1"]]
    assert sum(bench.slept) >= 10.0
    gathering.add(asked("last"))
    gathering.close()
    for _ in range(5):
        await asyncio.sleep(0)
    gathering.add(asked("after"))
    assert len(shipped) == 7


async def test_what_a_batch_under_way_holds() -> None:
    batch = under_way(record())
    assert not batch.running
    assert batch.has("k1")
    assert batch.has("other"), "its answers are not known yet"
    assert [one.key for one in batch.take()] == ["k1", "k2"]
    assert batch.take() == []
    batch.closing = True
    assert not batch.has("k1")
    batch.release()
    assert batch.output is None


# -- the queue --------------------------------------------------------------------------------------------------------

BODY = {"model": "m", "messages": []}


async def chats(queue: BatchQueue, *keys: str, live: bool = False) -> list[Any]:
    found = asyncio.gather(*(queue.chat(key, BODY, live=live) for key in keys), return_exceptions=True)
    return await asyncio.wait_for(found, 20)


async def settle(work: Callable[[], bool]) -> None:
    for _ in range(2000):
        if work():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come to rest")


def texts(outcomes: list[Any]) -> list[Any]:
    return [one.text if isinstance(one, Reply) else (type(one).__name__, str(one)) for one in outcomes]


async def test_calls_through_a_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.files["out"] = answer("k1", "one secret") + answer("k2", "two")
    queue = bench.queue()
    assert not await queue.holds("k1")
    assert texts(await chats(queue, "k1", "k2", "k1")) == ["one ***", "two", "one ***"]
    upload = next(one for one in bench.api.asked if one[0] == "upload")
    assert upload[2] == request_line("k1", BODY) + request_line("k2", BODY)
    assert bench.said == ["endpoint e: batch b1 with 2 calls is running"]
    (open_one,) = bench.open_records()
    assert open_one.nonce.startswith("000000001010000-"), "after ten seconds without another call"
    assert await queue.holds("k1")
    await queue.settled("k1")
    assert len(bench.open_records()) == 1
    await queue.settled("k2")
    await settle(lambda: not bench.open_records())
    assert [one for one in bench.api.asked if one[0] == "delete"] == [("delete", "in"), ("delete", "out")]
    assert not await queue.holds("k1")
    await queue.close()
    for work in (queue.chat("k9", BODY), queue.holds("k9")):
        with pytest.raises(InfrastructureError) as caught:
            await work
        assert str(caught.value) == "the batches of endpoint e were closed before this call was answered"


async def test_the_queues_figures(tmp_path: Path) -> None:
    gate = asyncio.Event()
    bench = Bench(tmp_path)
    wait = bench.api.retrieve

    async def retrieve(batch_id: str) -> Any:
        await gate.wait()
        return await wait(batch_id)

    bench.api.retrieve = retrieve  # type: ignore[method-assign]
    bench.api.scripts["create"] = [remote(**counts(1, 2, 3))]
    bench.api.files["out"] = answer("k1")
    queue = bench.queue()
    nothing = {"batches": 0, "waiting": 0, "under_way": 0, "oldest_s": 0.0, "completed": 0, "failed": 0, "total": 0}
    assert queue.stats() == nothing
    call = asyncio.create_task(queue.chat("k1", BODY))
    await settle(lambda: bench.api.count("create") == 1 and queue.stats()["completed"] == 1)
    bench.now += 50
    (record,) = bench.open_records()
    oldest = bench.now - record.made_at
    assert oldest >= 50, "and as long as the queue has slept by its own clock"
    assert queue.stats() == nothing | {
        "batches": 1, "under_way": 1, "oldest_s": oldest, "completed": 1, "failed": 2, "total": 3
    }  # fmt: skip
    gate.set()
    assert (await call).text == "so"
    assert queue.stats() == nothing
    await queue.close()


async def test_calls_that_a_batch_leaves(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.scripts["retrieve"] = [
        remote("expired", output_file_id="out1"),
        remote("completed", output_file_id="out2"),
    ]
    bench.api.files = {"out1": answer("k1"), "out2": answer("k2")}
    queue = bench.queue()
    assert texts(await chats(queue, "k1", "k2")) == ["so", "so"]
    assert bench.said[1] == (
        "endpoint e: batch b1 is expired and left 1 of its 2 calls unfinished; they are retried (the batch gave no "
        "readable answer to this request)"
    )
    assert bench.api.count("create") == 2
    await queue.close()


async def test_calls_that_no_batch_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(retrieve=[remote("expired") for _ in range(9)]))
    queue = bench.queue()
    (found,) = await chats(queue, "k1")
    assert isinstance(found, Transient)
    why = "the batch gave no readable answer to this request"
    assert (found.reason, found.detail) == (NOT_DONE, f"{why} ({ROUNDS} batches)")
    assert bench.api.count("create") == ROUNDS == 5
    await queue.close()
    bench = Bench(tmp_path / "live", API(retrieve=[remote("expired")]), batch={"leftovers": "live"})
    queue = bench.queue()
    (left,) = await chats(queue, "k1")
    assert isinstance(left, NotDone)
    assert (left.detail, left.billed) == (why, False)
    await queue.close()


async def test_a_call_that_may_have_been_billed_is_settled_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(retrieve=[remote("completed", output_file_id="out", **counts(2))]))
    bench.api.files["out"] = answer("k1")
    queue = bench.queue()
    one, left = await chats(queue, "k1", "k2")
    assert one.text == "so"
    assert isinstance(left, NotDone)
    (open_one,) = bench.open_records()
    assert (left.billed, left.nonce) == (True, open_one.nonce)
    await queue.settled("k1")
    await queue.settled("k2", NotDone("other"))
    await asyncio.sleep(0.01)
    assert len(bench.open_records()) == 1
    await queue.settled("k2", left)
    await settle(lambda: not bench.open_records())
    await queue.close()


async def test_batches_that_the_endpoint_did_not_begin(tmp_path: Path) -> None:
    def failed(*errors: dict[str, Any]) -> Batch:
        listed = [{"code": None, "line": None, "message": None, "param": None} | error for error in errors]
        return remote("failed", errors={"data": listed, "object": "list"})

    bench = Bench(tmp_path, API(retrieve=[failed({"code": "c", "line": 2, "message": "so"})]))
    bench.api.files["out"] = answer("k1")
    queue = bench.queue()
    good, bad = await chats(queue, "k1", "k2")
    assert good.text == "so"
    assert isinstance(bad, Rejected)
    assert bad.detail == "line 2 of a batch: c: so"
    assert bench.said[1] == "endpoint e: batch b1: c: so (2 calls)"
    await queue.close()
    bench = Bench(tmp_path / "b", API(retrieve=[failed({"code": "insufficient_quota", "message": "so"})]))
    queue = bench.queue()
    outcomes = await chats(queue, "k1", "k2")
    assert [type(one) for one in outcomes] == [Refused, Refused]
    await settle(lambda: not bench.open_records())
    await queue.close()
    # No room: it waits, and sends fewer at once.
    full = failed({"code": "token_limit_exceeded", "message": "full"})
    bench = Bench(tmp_path / "c", API(retrieve=[full]))
    bench.api.files["out"] = b"".join(answer(f"k{number}") for number in range(4))
    queue = bench.queue()
    assert texts(await chats(queue, "k0", "k1", "k2", "k3")) == ["so"] * 4
    assert bench.said[2] == "endpoint e: it has no room for 4 calls now; retry in 60 s"
    assert 60.0 in bench.slept
    assert bench.api.count("create") >= 4
    await queue.close()
    bench = Bench(tmp_path / "d", API(retrieve=[full] * 9))
    queue = bench.queue()
    (found,) = await chats(queue, "k1")
    assert isinstance(found, Transient)
    assert (found.reason, found.detail) == (
        "not done by batches",
        "batch b1: token_limit_exceeded: full (5 times)",
    )
    assert [seconds for seconds in bench.slept if seconds > 30] == [60.0, 120.0, 240.0, 480.0, 960.0]
    await queue.close()


async def test_purchases_that_fail_end_their_calls(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(create=[Rejected("rejected by the endpoint", "no")]))
    queue = bench.queue()
    (found,) = await chats(queue, "k1")
    assert isinstance(found, Rejected)
    assert (found.reason, found.detail) == ("batch rejected by the endpoint", "no")
    assert bench.open_records() == []
    assert bench.api.asked[-1] == ("delete", "in")
    await queue.close()
    bench = Bench(tmp_path / "b", API(create=[SERVER] * 99), outage_timeout_s=10.0)
    queue = bench.queue()
    (lost,) = await chats(queue, "k1")
    assert isinstance(lost, Transient)
    assert len(bench.open_records()) == 1, "it may exist: it is looked for"
    bench.api.scripts = {"find": [remote()]}
    bench.api.files["out"] = answer("k1")
    assert texts(await chats(queue, "k1")) == ["so"]
    await queue.close()


async def test_batches_of_an_earlier_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.records.write(record("n1", ("k1", "k2"), batch_id="b1", input_file_id="in"))
    bench.records.write(record("n2", ("k3",), batch_id="b2", input_file_id="in", made_at=901.0))
    bench.records.write(record("n3", ("k4",), input_file_id="in", made_at=902.0))
    bench.journaled = {"k1", "k3"}
    bench.api.files["out"] = answer("k2")
    queue = bench.queue()
    assert await queue.holds("k2")
    assert bench.said == [
        "endpoint e: a batch of an earlier start is open (b1): 1 calls wait for it",
        "endpoint e: a batch of an earlier start is open (perhaps created): 1 calls wait for it",
    ]
    assert texts(await chats(queue, "k2")) == ["so"]
    assert bench.api.count("create") == 0
    await queue.settled("k2")
    await settle(lambda: [one.nonce for one in bench.open_records()] == ["n3"])
    # It was never created: its call is bought now.
    bench.api.files["out"] = answer("k4")
    assert texts(await chats(queue, "k4")) == ["so"]
    assert (bench.api.count("create"), bench.refreshes) == (1, 1)
    await queue.close()


async def test_a_batch_that_is_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(retrieve=[Gone("batch b1: no")] * 5))
    bench.records.write(record("n1", ("k1", "k2"), batch_id="b1", input_file_id="in"))
    queue = bench.queue()
    bench.others.add("k1")
    first, second = asyncio.create_task(queue.chat("k1", BODY)), asyncio.create_task(queue.chat("k2", BODY))
    with pytest.raises(InJournal):
        await asyncio.wait_for(first, 20)
    with pytest.raises(NotDone) as caught:
        await asyncio.wait_for(second, 20)
    assert (caught.value.billed, caught.value.nonce) == (True, "n1")
    assert "endpoint e: batch b1: no; its 1 calls are retried" in bench.said
    assert bench.refreshes == 1
    await queue.close()


async def test_calls_that_prefer_to_be_live(tmp_path: Path) -> None:
    bench = Bench(tmp_path, API(retrieve=[remote("cancelled", output_file_id="out")]))
    bench.records.write(record("n1", ("k1", "k2"), batch_id="b1", input_file_id="in"))
    bench.api.files["out"] = answer("k1")
    queue = bench.queue()
    one, two, three = await chats(queue, "k1", "k2", "k3", live=True)
    assert one.text == "so"
    assert isinstance(two, NotDone)
    assert isinstance(three, NotDone)
    assert three.detail == "no open batch holds it"
    assert bench.api.count("cancel") == 1
    assert bench.said[1:3] == [
        "endpoint e: batch b1 is running, but its calls are to be sent live now: its finished answers are fetched, and "
        "the rest is sent live",
        "endpoint e: batch b1 is cancelled; its finished calls are billed",
    ]
    await queue.close()


async def test_the_end_of_a_queue(tmp_path: Path) -> None:
    for for_good in (False, True):
        bench = Bench(tmp_path / str(for_good), API(retrieve=[remote("in_progress")] * 10_000))
        queue = bench.queue()
        call = asyncio.create_task(queue.chat("k1", BODY))
        await settle(lambda bench=bench: bench.api.count("retrieve") > 0)  # type: ignore[misc]
        await queue.close(for_good=for_good)
        with pytest.raises(InfrastructureError) as caught:
            await asyncio.wait_for(call, 20)
        assert str(caught.value) == "the batches of endpoint e were closed before this call was answered"
        assert bench.api.count("cancel") == for_good
        assert len(bench.open_records()) == 1


async def test_a_call_that_nobody_waits_for_is_not_sent(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.files["out"] = answer("k2")
    sleep, gate = bench.sleep, asyncio.Event()

    async def held(seconds: float) -> None:
        await gate.wait()
        await sleep(seconds)

    bench.sleep = held  # type: ignore[method-assign]
    queue = bench.queue()
    first, second, other = (asyncio.create_task(queue.chat(key, BODY)) for key in ("k1", "k2", "k2"))
    await settle(lambda: queue.stats()["waiting"] == 2)
    first.cancel()
    other.cancel()  # another waits for the same call
    await settle(lambda: first.done() and other.done())
    gate.set()
    assert (await asyncio.wait_for(second, 20)).text == "so"
    upload = next(one for one in bench.api.asked if one[0] == "upload")
    assert upload[2] == request_line("k2", BODY)
    await queue.close()
