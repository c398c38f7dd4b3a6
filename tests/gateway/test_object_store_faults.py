"""A bucket in trouble: it throttles, answers 500, cuts connections or is late, while a run's journal and folder work.

What passes is waited out, and nothing is lost or bought twice; what lasts ends in one line, nothing is half there, and
the same command goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.config import EndpointConfig
from lion_ray.core import storage
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.store import RunStore
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.calls import Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from tests.gateway.support import call, completion
from tests.object_store import BUCKET, Moods, moody_s3
from tests.stub_api import StubAPI

FAULTS = ("500", "503", "cut", "lost", "half")
ARROWS_TRIES = 31
"""So often Arrow asks by itself before it gives up."""
TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})
CALLS = [call(f"Question {n}?") for n in range(8)]


@pytest.fixture(scope="module")
def service() -> Iterator[Moods]:
    with moody_s3() as (environment, moods), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield moods


@pytest.fixture
def bucket(service: Moods, request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of its own in the bucket, which is well before and after each test."""
    service.seen.clear()
    yield f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}"
    service.script = lambda *_: None


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was paused, without waiting; by a clock that only pauses move."""
    slept: list[float] = []
    monkeypatch.setattr(storage, "sleep", slept.append)
    monkeypatch.setattr(storage, "clock", lambda: sum(slept))
    return slept


async def buy(stub: StubAPI, root: str, calls: list[Any] = CALLS, **settings: Any) -> list[Any]:
    """The outcomes of a start that shares nothing with an earlier one but the bucket."""
    journal = await asyncio.to_thread(lambda: Journal.open(f"{root}/journal", gather_s=0.01))
    config = EndpointConfig(model="stub-model", api_key_env=None, prices={"input": 1, "output": 1}, **settings)
    client = Client("default", config, journal, run="job", base_url=stub.base_url)
    outcomes = await asyncio.gather(*map(client.complete, calls), return_exceptions=True)
    await client.close()
    await journal.close()
    return outcomes


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_passes_is_nobody_s_loss(service: Moods, bucket: str, stub: StubAPI, fault: str) -> None:
    """Every fourth request fails, whatever it is about."""
    service.script = lambda method, path, number: fault if number % 4 == 0 else None
    bought = await buy(stub, bucket, max_concurrency=4)
    assert all(isinstance(one, Completion) and not one.replayed for one in bought)

    def work() -> Any:
        store = RunStore(bucket)
        store.claim()
        stage = store.stage("pool-0")
        stage.write_part(0, TABLE)
        stage.commit({"parts": 1})
        store.heartbeat(ended=True)
        return RunStore(bucket).stage("pool-0").read(1)

    assert (await asyncio.to_thread(work)).equals(TABLE)
    again = await buy(stub, bucket)
    assert all(one.replayed for one in again)
    assert not stub.stats()["repeated"]
    assert stub.stats()["total"] == len(CALLS)
    assert service.faulty() > 5


def test_an_answer_that_is_late_is_asked_for_again(service: Moods, bucket: str) -> None:
    """The write arrived, and its answer did not in the three seconds that Arrow waits for a byte."""
    service.script = lambda method, path, number: "late" if method == "PUT" and service.faulty() == 0 else None
    store = RunStore(bucket)
    store.write_table("x.parquet", TABLE)
    service.script = lambda *_: None
    assert store.read_table("x.parquet").equals(TABLE)
    assert service.faulty() == 1
    service.gate.set()


def test_a_throttle_that_outlasts_arrow_is_waited_out(service: Moods, bucket: str, pauses: list[float]) -> None:
    store = RunStore(bucket)
    service.script = lambda method, path, number: "503" if service.faulty() < ARROWS_TRIES + 3 else None
    store.write_table("x.parquet", TABLE)
    assert store.read_table("x.parquet").equals(TABLE)
    assert pauses == [1.0], "longer than Arrow waits"


LASTING = [
    ("503", "it limits the request rate; wait, or let fewer processes write to this bucket"),
    ("cut", "it does not answer; check the network and the address"),
]


@pytest.mark.parametrize(
    ("fault", "advice"),
    [pytest.param(*one, id=one[0], marks=[pytest.mark.long] if one[0] == "cut" else []) for one in LASTING],
)
async def test_what_lasts_ends_in_one_line_and_nothing_is_bought_again(
    service: Moods, bucket: str, stub: StubAPI, monkeypatch: pytest.MonkeyPatch, fault: str, advice: str
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    first = await buy(stub, bucket, CALLS[:4])
    assert all(isinstance(one, Completion) for one in first)
    store = RunStore(bucket)
    await asyncio.to_thread(store.claim)
    await asyncio.to_thread(store.stage("pool-0").write_part, 0, TABLE)
    journal = await asyncio.to_thread(Journal.open, f"{bucket}/journal")
    service.script = lambda method, path, number: fault if method in ("POST", "PUT") else None
    config = EndpointConfig(model="stub-model", api_key_env=None, max_concurrency=2)
    client = Client("default", config, journal, run="job", base_url=stub.base_url)
    outcomes = await asyncio.gather(*map(client.complete, CALLS[4:]), return_exceptions=True)
    assert {type(one) for one in outcomes} == {InfrastructureError}
    assert all(advice in str(one) and "\n" not in str(one) for one in outcomes)
    assert any(f"cannot write to {bucket.removeprefix('s3://')}/journal/" in str(one) for one in outcomes)
    assert stub.stats()["total"] <= 4 + 2, "once one answer could not be kept, no more are bought"
    await client.close()
    await journal.close()
    service.script = lambda *_: fault
    for act in (lambda: store.write_json("progress.json", {}), lambda: store.stage("pool-0").commit({"parts": 1})):
        with pytest.raises(InfrastructureError) as caught:
            await asyncio.to_thread(act)
        line = str(caught.value)
        assert line.startswith(f"{bucket.removeprefix('s3://')}/")
        assert advice in line
        assert "\n" not in line
    service.script = lambda *_: None
    assert await asyncio.to_thread(RunStore(bucket).stage("pool-0").manifest) is None, "no torn commit"
    assert await asyncio.to_thread(RunStore(bucket).stage("pool-0").part_indexes) == {0}
    before = stub.stats()["total"]
    again = await buy(stub, bucket)
    assert all(isinstance(one, Completion) for one in again)
    assert [one.replayed for one in again[:4]] == [True] * 4
    assert stub.stats()["total"] - before <= 4
    assert sum(stub.stats()["repeated"].values()) <= 2 * 2, "only what could not be kept"


async def test_a_write_that_arrived_and_was_not_told_of_counts_once(
    service: Moods, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is there, its writer was told that it is not: the next start finds and serves it."""
    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    from tests.gateway.support import ACCOUNT, served

    journal = await asyncio.to_thread(Journal.open, f"{bucket}/journal")
    service.script = lambda method, path, number: "lost" if "uploadId=" in path and method == "POST" else None
    with pytest.raises(InfrastructureError, match="does not answer"):
        await journal.put(completion(1), ACCOUNT)
    service.script = lambda *_: None
    await journal.close()
    again = await asyncio.to_thread(Journal.open, f"{bucket}/journal")
    assert await served(again, range(3)) == [1]
    assert again.spending(ACCOUNT.run)[ACCOUNT].calls == 1
    await again.close()


def test_a_batch_that_cannot_be_noted_is_not_bought(
    service: Moods, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    records = BatchRecords(f"{bucket}/journal")
    service.script = lambda method, path, number: "503" if method == "POST" else None
    with pytest.raises(InfrastructureError, match=r"n\.json cannot be written: .* it limits the request rate"):
        records.write(BatchRecord("n", "a", "default", ["k"], 0.0, 0.0))
    service.script = lambda *_: None
    assert records.load("a") == []


def test_what_an_object_store_refuses_for_good_is_not_asked_again(pauses: list[float], tmp_path: Path) -> None:
    """No such bucket, no access: asked once. And a disk, whatever it says, is never waited for."""
    asked: list[str] = []

    def work(said: str) -> None:
        asked.append(said)
        raise OSError(said)

    assert "has a fault; wait for it" in storage.explain(OSError("AWS Error INTERNAL_FAILURE during PutObject"))
    for said, local in (("AWS Error NO_SUCH_BUCKET", False), ("AWS Error ACCESS_DENIED", False), ("SLOW_DOWN", True)):
        with pytest.raises(OSError, match=said):
            storage.patiently(lambda said=said: work(said), local=local)  # type: ignore[misc]
    assert (len(asked), pauses) == (3, [])
    with pytest.raises(OSError, match="SLOW_DOWN"):
        storage.patiently(lambda: work("AWS Error SLOW_DOWN during PutObject"), local=False)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0]
