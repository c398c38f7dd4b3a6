"""The run folder and the journal in an S3 bucket, over real HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from lion_ray.core import attempts, copies
from lion_ray.core.addresses import below
from lion_ray.core.attempts import Fence
from lion_ray.core.errors import InfrastructureError, RunConflictError
from lion_ray.core.store import RunStore
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.journal import Journal
from tests.gateway.support import ACCOUNT, completion, served
from tests.object_store import BUCKET, s3_server

TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


def test_stages_are_committed_there(bucket: str, tmp_path: Path) -> None:
    store = RunStore(f"{bucket}/stages")
    assert store.claim() == 1
    stage = store.stage("iteration-1/student")
    stage.write_part(0, TABLE)
    stage.write_part(1, TABLE.slice(1))
    assert (stage.manifest(), stage.part_indexes()) == (None, {0, 1})
    stage.commit({"parts": 2})
    again = RunStore(f"{bucket}/stages")
    assert again.stage("iteration-1/student").manifest() == {"parts": 2}
    assert again.stage("iteration-1/student").read(2)["n"].to_pylist() == [1, 2, 2]
    store.delete("iteration-1/student/part-00001.parquet")
    assert stage.part_indexes() == {0}


def test_a_checkpoint_goes_there_and_comes_back(bucket: str, tmp_path: Path) -> None:
    store = RunStore(f"{bucket}/checkpoints")
    made = tmp_path / "made"
    (made / "model" / "deeper").mkdir(parents=True)
    (made / "model" / "deeper" / "config.json").write_text("{}")
    (made / "model" / "weights.safetensors").write_bytes(b"x" * 100_000)
    store.adopt_folder(made, "iteration-1/checkpoint")
    found = store.local_folder("iteration-1/checkpoint/model", cache=tmp_path / "cache")
    assert (found / "weights.safetensors").read_bytes() == b"x" * 100_000
    assert (found / "deeper" / "config.json").read_text() == "{}"


def adopted(store: RunStore, folder: Path, weights: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    store.adopt_folder(folder, "iteration-1/checkpoint/model")


def test_engines_and_workers_of_a_machine_fetch_a_checkpoint_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(f"{bucket}/at-once")
    adopted(store, tmp_path / "made", b"x" * 1_000_000)
    fetched: list[str] = []
    copy_files = fs.copy_files

    def counted(*arguments: Any, **more: Any) -> None:
        fetched.append(str(arguments[1]))
        copy_files(*arguments, **more)

    monkeypatch.setattr(fs, "copy_files", counted)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: store.local_folder("iteration-1/checkpoint/model", tmp_path / "c"), range(6)))
    assert len(set(found)) == len(fetched) == 1
    assert (found[0] / "weights.safetensors").stat().st_size == 1_000_000


def test_the_machine_that_made_a_checkpoint_does_not_download_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made, name = RunStore(f"{bucket}/made-here"), tmp_path / "made", "iteration-1/checkpoint/model"
    (made / "deeper").mkdir(parents=True)
    (made / "deeper" / "config.json").write_text("{}")
    adopted(store, made, b"weights")
    with monkeypatch.context() as patch:
        patch.delattr(fs, "copy_files")
        found = store.local_folder(name, tmp_path / "cache", made=made)
        assert store.local_folder(name, tmp_path / "cache") == found
    assert (found / "weights.safetensors").read_bytes() == b"weights"
    assert (found / "deeper" / "config.json").read_text() == "{}"


def test_a_run_made_again_under_its_name_has_its_own_weights(bucket: str, tmp_path: Path) -> None:
    store = RunStore(f"{bucket}/again")
    adopted(store, tmp_path / "first", b"old weights")
    old = store.local_folder("iteration-1/checkpoint/model", tmp_path / "cache")
    adopted(store, tmp_path / "second", b"new weights")
    new = store.local_folder("iteration-1/checkpoint/model", tmp_path / "cache")
    assert (old / "weights.safetensors").read_bytes() == b"old weights"
    assert (new / "weights.safetensors").read_bytes() == b"new weights"


def test_a_copy_that_did_not_arrive_whole_is_none(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(f"{bucket}/torn")
    adopted(store, tmp_path / "made", b"x" * 1000)

    def torn(source: str, target: str, **_: Any) -> None:
        (Path(target) / "weights.safetensors").write_bytes(b"x" * 10)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "copy_files", torn)
        with pytest.raises(InfrastructureError, match=r"weights.safetensors: the download is incomplete"):
            store.local_folder("iteration-1/checkpoint/model", tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    found = store.local_folder("iteration-1/checkpoint/model", tmp_path / "cache")
    assert (found / "weights.safetensors").stat().st_size == 1000


def test_copies_that_are_not_used_any_more_are_removed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, found = tmp_path / "cache", []
    for number in range(copies.KEPT + 2):
        store = RunStore(f"{bucket}/unused-{number}")
        adopted(store, tmp_path / f"made-{number}", b"%d" % number)
        found.append(store.local_folder("iteration-1/checkpoint/model", cache))
    assert all(path.exists() for path in found), "each was used within the hour"
    for age, path in enumerate(reversed(found)):
        os.utime(path, (time.time() - 2 * copies.UNUSED_S - age,) * 2)
    store.local_folder("iteration-1/checkpoint/model", cache)
    assert [path.exists() for path in found] == [False, False, *[True] * copies.KEPT]


def test_nobody_else_can_put_a_copy_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert copies.copies_folder().stat().st_mode & 0o777 == 0o700
    copies.copies_folder().chmod(0o777)
    with pytest.raises(InfrastructureError, match="only this user"):
        copies.copies_folder()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks are enough here: each is a request."""
    monkeypatch.setattr(attempts, "STALE_S", 2 * attempts._POLL_S)


class Time:
    """A monotonic clock that only sleeping moves; `meanwhile` is what others do while one sleeps."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self.meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def driver(root: str, time: Time | None = None) -> RunStore:
    store = RunStore(root)
    time = time or Time()
    store._fence = Fence(store, clock=lambda: time.now, sleep=time.sleep)
    return store


@pytest.mark.usefixtures("quickly")
def test_of_two_drivers_one_goes_on_and_the_other_says_so(bucket: str) -> None:
    root = f"{bucket}/fenced"
    first = driver(root)
    first.claim()
    with pytest.raises(RunConflictError, match="another attempt"):
        driver(root, Time(first.heartbeat)).claim()
    # The first one's machine stops answering for longer than an attempt may.
    second = driver(root)
    said: list[str] = []
    assert second.claim(said.append) == 2
    assert "watching its heartbeat for 6 s" in said[0]
    with pytest.raises(RunConflictError, match="another attempt"):
        first.stage("pool-0").commit({"parts": 0})
    with pytest.raises(RunConflictError):
        first.heartbeat()
    second.stage("pool-0").commit({"parts": 0})
    assert first.stage("pool-0").manifest() == {"parts": 0}
    second.heartbeat(ended=True)
    assert driver(root, Time(lambda: pytest.fail("nothing to watch"))).claim() == 3


@pytest.mark.parametrize("skew", [-60, 7 * 86400])
@pytest.mark.usefixtures("quickly")
def test_clocks_decide_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch, skew: int) -> None:
    """The second driver's clock is behind or ahead of the first's: a live run stays, a dead one is taken over."""
    root = f"{bucket}/skewed{skew}"
    first = driver(root)
    first.claim()
    real = attempts.time.time
    monkeypatch.setattr(attempts.time, "time", lambda: real() + skew)
    with pytest.raises(RunConflictError, match="another attempt"):
        driver(root, Time(first.heartbeat)).claim()
    first.stage("pool-0").commit({"parts": 0})
    time = Time()
    assert driver(root, time).claim() == 2
    assert attempts.STALE_S <= time.now < 2 * attempts.STALE_S


@pytest.mark.usefixtures("quickly")
def test_an_attempt_of_an_older_version_is_watched_too(bucket: str) -> None:
    store = driver(f"{bucket}/older")
    old = {"attempt": 4, "token": "x", "host": "h", "pid": 1, "alive": 1.0, "ended": False}
    store.write_json("attempt.json", old)
    beats = iter(range(10**6))
    live = Time(lambda: store.write_json("attempt.json", old | {"alive": float(next(beats))}))
    with pytest.raises(RunConflictError):
        driver(f"{bucket}/older", live).claim()
    assert driver(f"{bucket}/older").claim() == 5


@pytest.mark.usefixtures("quickly")
def test_of_many_that_take_over_at_once_one_does(bucket: str) -> None:
    root = f"{bucket}/crowd"
    driver(root).claim()
    drivers = [RunStore(root) for _ in range(3)]
    began = threading.Barrier(len(drivers))

    def claim(store: RunStore) -> bool:
        # Time goes by itself, quickly, and for all of them.
        store._fence = Fence(store, clock=lambda: 2 * time.monotonic(), sleep=lambda s: time.sleep(s / 100))
        began.wait()
        try:
            store.claim()
        except RunConflictError:
            return False
        return True

    with ThreadPoolExecutor(len(drivers)) as pool:
        claimed = list(pool.map(claim, drivers))
    assert sum(claimed) == 1
    for store, has in zip(drivers, claimed, strict=True):
        with nullcontext() if has else pytest.raises(RunConflictError):
            store.stage("pool-0").commit({"parts": 0})


@pytest.mark.usefixtures("quickly")
def test_a_claim_of_a_driver_that_died_is_outlasted(bucket: str) -> None:
    store = driver(f"{bucket}/died")
    store.write_json(f"attempts/00000001-{'a' * 32}.json", {})
    assert store.claim() == 1
    assert store.names("attempts") == [f"00000001-{store.token}.json"]


@pytest.mark.usefixtures("quickly")
def test_a_driver_that_wakes_up_late_does_not_commit(bucket: str) -> None:
    """Between its look at the fence and its heartbeat it slept; its attempt file stands over the second's."""
    root = f"{bucket}/late"
    first, second = driver(root), driver(root)
    first.claim()
    seen = RunStore(root).read_bytes("attempt.json")
    second.claim()
    RunStore(root).write_bytes("attempt.json", seen)
    with pytest.raises(RunConflictError):
        first.stage("pool-0").commit({"parts": 0})


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(InfrastructureError, match="nowhere/run/x: the storage refused"):
        RunStore("s3://nowhere/run").write_bytes("x", b"1")


async def test_the_journal_is_kept_there(bucket: str) -> None:
    journal = Journal.open(f"{bucket}/journal")
    for number in range(3):
        await journal.put(completion(number), ACCOUNT)
    await journal.close()
    again = Journal.open(f"{bucket}/journal")
    assert await served(again, range(4)) == [0, 1, 2]
    assert again.spending(ACCOUNT.run)[ACCOUNT].prompt_tokens == 3
    await again.close()


@pytest.mark.parametrize("turn", range(3))
def test_options_in_the_address_reach_the_storage(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turn: int
) -> None:
    """Without the environment's endpoint and region, in any order; every run has its own folder."""
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").replace(":", "%3A")
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    options = [f"endpoint_override={host}", "scheme=http", "region=us-east-1"]
    storage = f"{bucket}/options{turn}?{'&'.join(options[turn:] + options[:turn])}"
    for name in ("one", "two"):
        store = RunStore(below(storage, name))
        store.claim()
        store.write_json("mine.json", name)
        BatchRecords(store.journal(None)).write(BatchRecord("n", "a", "default", [], 0.0, 0.0))
    assert [RunStore(below(storage, name)).read_json("mine.json") for name in ("one", "two")] == ["one", "two"]
    assert RunStore(storage).names("") == ["one", "two"]
    assert RunStore(storage).names("one/journal/batches") == ["n.json"]


def test_what_is_wrong_with_an_address_is_one_line(bucket: str) -> None:
    with pytest.raises(InfrastructureError, match="there is no such bucket") as caught:
        RunStore("s3://nowhere/run").write_bytes("x", b"1")
    assert "\n" not in str(caught.value)
    with pytest.raises(InfrastructureError, match="no such storage") as caught:
        RunStore(f"{bucket}/x?reggion=us-east-1")
    assert "\n" not in str(caught.value)
