"""The simulation: a seed is one history, and code that breaks a promise is caught."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core import durable
from lion_ray.core.store import RunStore
from lion_ray.gateway.batch.buyer import Buyer
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.batch.work import UnderWay
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.record import encode_record
from lion_ray.gateway.ledger import Budget
from lion_ray.gateway.purse import Purse, Reserved
from lion_ray.gateway.sender import Sender
from tests.gateway.support import ACCOUNT, completion
from tests.simulation.batches import SimBatchAPI
from tests.simulation.model import Violation
from tests.simulation.scenario import run, run_all
from tests.simulation.system import EPOCH_S
from tests.simulation.world import World, only_its_own_garbage

# Ended processes leave unfinished coroutines behind, as they do.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    with only_its_own_garbage(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def told(world: World) -> list[str]:
    """All that happened, without the folder it happened in."""
    return [line.replace(f"{world.disk.root.parent}/", "") for line in world.said]


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """The collector of cycles runs all the time, as it may when it likes."""
    before = gc.get_threshold()
    gc.set_threshold(20)
    yield
    gc.set_threshold(*before)


SEVERAL = range(4, 12)
"""Among them 4, 9 and 10, which had another history whenever Python collected at another moment."""


def test_a_seed_is_one_history_whenever_python_collects(request: pytest.FixtureRequest) -> None:
    once = [run(seed) for seed in SEVERAL]
    request.getfixturevalue("busy_collector")
    again = [run(seed) for seed in reversed(SEVERAL)][::-1]
    for one, other in zip(once, again, strict=True):
        assert told(one) == told(other)
        assert one.steps == other.steps


def test_a_seed_is_one_history_in_another_process_on_another_filesystem(tmp_path: Path) -> None:
    """Other hashes, another process's number, and names in whatever order that filesystem gives them."""
    for hashes in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "10", "--folder", str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.splitlines()[:-1] == told(run(10))


def test_another_thread_is_no_part_of_a_history() -> None:
    """Such as another test may have left: it goes on by the real clock, and draws nothing from the seed."""
    over, seen = threading.Event(), []

    def work() -> None:
        while not over.is_set():
            seen.append((time.time(), uuid.uuid4()))

    quiet = told(run(4))
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert told(run(4)) == quiet
    finally:
        over.set()
        thread.join()
    assert max(at for at, _ in seen) < EPOCH_S


def test_what_ended_processes_left_closes_nobody_elses_files() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    worlds = [run(seed) for seed in SEVERAL]
    del worlds
    gc.collect()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "_sync", lambda self, descriptor: None)


def no_folder_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "sync_path", lambda path: None)
    monkeypatch.setattr(RunStore, "_make", lambda self, folder: folder.mkdir(parents=True, exist_ok=True))


def served_before_it_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_ray.gateway.journal.folder.Folder.flush", lambda self, name: None)


def no_look_into_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fly(self: Client, key: str, *args: Any) -> Any:
        found, self._journal.get = self._journal.get, _nothing  # type: ignore[method-assign,assignment]
        try:
            return await real(self, key, *args)
        finally:
            self._journal.get = found  # type: ignore[method-assign]

    real = Client._fly
    monkeypatch.setattr(Client, "_fly", fly)


async def _nothing(_: object) -> None:
    return None


def leases_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "lease", lambda self, proxy, wanted: wanted)


def torn_lines_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "put", _put_in_memory)


async def _put_in_memory(self: Journal, one: Any, account: Any) -> None:
    """Handed out at once, written later."""
    data = encode_record(one, account)
    with (Path(self.folder) / f"{one.key[:8]}.calls").open("ab") as file:
        file.write(data)


def manifest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: RunStore, name: str, data: bytes) -> None:
        path = Path(self.path(name))
        self._make(path.parent)
        path.write_bytes(data)

    monkeypatch.setattr(RunStore, "write_bytes", write)


def batches_recorded_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's record is written once its id is known."""
    real = BatchRecords.write
    monkeypatch.setattr(BatchRecords, "write", lambda self, one: real(self, one) if one.batch_id is not None else None)


def batch_records_not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: BatchRecords, record: BatchRecord) -> None:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(Folder, "write", lambda folder, name, data, durable: put(folder, name, data))
            real(self, record)

    real, put = BatchRecords.write, Folder.write
    monkeypatch.setattr(BatchRecords, "write", write)


def batches_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost answer a batch is simply created again."""

    async def find(self: SimBatchAPI, nonce: str, since: float) -> None:
        return None

    monkeypatch.setattr(SimBatchAPI, "find", find)


def batches_closed_before_their_answers_are_journaled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(self: Buyer, batch: UnderWay, over: Any) -> Any:
        output = await real(self, batch, over)
        await self.delete_files(batch)
        await self.forget(batch.record)
        return output

    real = Buyer.fetch
    monkeypatch.setattr(Buyer, "fetch", fetch)


def answers_of_batches_not_journaled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def buy(self: Sender, key: str, call: Any, attempt: Any, keep: Any) -> Any:
        return await real(self, key, call, attempt, _nothing if call.batch else keep)

    real = Sender.buy
    monkeypatch.setattr(Sender, "buy", buy)


def no_reservations_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take(self: Purse, call: Any, size: int, *, batch: bool = False) -> Reserved:
        reserved = await real(self, call, size, batch=batch)
        if batch:
            await self.ledger.settle(reserved.usd, 0.0)
        return reserved._replace(usd=0.0) if batch else reserved

    real = Purse.take
    monkeypatch.setattr(Purse, "take", take)


def live_calls_look_for_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role's mode was changed from batch to live."""

    async def bought_before(self: Client, key: str) -> None:
        return None

    monkeypatch.setattr(Client, "_bought_before", bought_before)


def batches_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancel(self: Buyer, batch: UnderWay) -> None:
        return None

    monkeypatch.setattr(Buyer, "cancel", cancel)


def bills_without_an_answer_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_one_batch(self: Sender, batches: Any, key: str, call: Any, body: Any, size: int, attempt: Any) -> Any:
        attempt.lose = _nothing
        return await real(self, batches, key, call, body, size, attempt)

    real = Sender._in_one_batch
    monkeypatch.setattr(Sender, "_in_one_batch", in_one_batch)


FOUND_BY: dict[Callable[[pytest.MonkeyPatch], None], tuple[int, int]] = {
    served_before_it_is_flushed: (280, 480),
    batches_not_cancelled: (50, 450),
    batches_recorded_late: (60, 460),
    bills_without_an_answer_not_recorded: (400, 800),
}
"""The seeds that find what few seeds find: for the first, it takes a process that dies between writing and flushing,
another that serves what it wrote, and then a power cut."""


@pytest.mark.parametrize(
    "breaks",
    [
        no_flush,
        no_folder_flush,
        pytest.param(served_before_it_is_flushed, marks=pytest.mark.long),
        no_look_into_the_journal,
        leases_for_everybody,
        torn_lines_served,
        manifest_first,
        pytest.param(batches_recorded_late, marks=pytest.mark.long),
        batch_records_not_flushed,
        batches_not_looked_for,
        batches_closed_before_their_answers_are_journaled,
        answers_of_batches_not_journaled,
        no_reservations_for_batches,
        live_calls_look_for_no_batch,
        pytest.param(batches_not_cancelled, marks=pytest.mark.long),
        bills_without_an_answer_not_recorded,
    ],
)
def test_a_broken_promise_is_found(
    breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(Violation):
        run_all(range(*FOUND_BY.get(breaks, (0, 400))))


def test_what_is_served_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that died between writing and flushing: what it wrote is there until the power goes."""
    written = tmp_path / "00000000000000000001-dead-00000000.calls"
    written.write_bytes(encode_record(completion(1), ACCOUNT))
    flushed = flushes(monkeypatch)
    Journal.open(str(tmp_path))
    assert str(written) in flushed


def test_a_folder_that_another_process_made_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "run-1").mkdir(parents=True)
    flushed = flushes(monkeypatch)
    store = RunStore(str(tmp_path / "runs" / "run-1"))
    store.write_json("iteration-0/verdicts/manifest.json", {})
    for folder in ("runs/run-1/iteration-0/verdicts", "runs/run-1/iteration-0", "runs/run-1", "runs", ""):
        assert str(tmp_path / folder) in flushed


def flushes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    return found
