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
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.record import encode_record
from lion_ray.gateway.ledger import Budget
from tests.gateway.support import ACCOUNT, completion
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
        found, self._journal.get = self._journal.get, _nothing  # type: ignore[method-assign]
        try:
            return await real(self, key, *args)
        finally:
            self._journal.get = found  # type: ignore[method-assign]

    real = Client._fly
    monkeypatch.setattr(Client, "_fly", fly)


async def _nothing(key: str) -> None:
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


FOUND_BY: dict[Callable[[pytest.MonkeyPatch], None], tuple[int, int]] = {served_before_it_is_flushed: (600, 1000)}
"""The seeds that find what few seeds find: it takes a process that dies between writing and flushing, another that
serves what it wrote, and then a power cut."""


@pytest.mark.parametrize(
    "breaks",
    [
        no_flush,
        no_folder_flush,
        served_before_it_is_flushed,
        no_look_into_the_journal,
        leases_for_everybody,
        torn_lines_served,
        manifest_first,
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
