"""The simulation: many seeds hold, a seed is one history, and code that breaks a promise is caught."""

from __future__ import annotations

import gc
import os
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
from tests.simulation.scenario import simulate
from tests.simulation.world import World, folder_in_memory

# Ended processes leave unfinished coroutines behind, as they do.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BLOCK = 50
SEEDS = range(0, 1000, BLOCK)
"""As many as take half a minute of a core; `make simulate` runs a hundred thousand."""
FOUND = {
    4983: "a merged segment whose name was not flushed was trusted by the next compaction",
    93611: "the same, and a proxy that starts sees it",
    69330: "a lease that came after its call was cancelled stayed with nobody, and held up another proxy",
}
"""Seeds that failed, and what they had found."""


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # an ended process is a heap of cycles: only the simulation's own are to be looked through
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gc.collect()
    gc.unfreeze()


def run(seed: int) -> World:
    with folder_in_memory() as folder:
        return simulate(seed, Path(folder))


def run_all(seeds: range) -> None:
    for seed in seeds:
        try:
            run(seed)
        except Exception as error:
            error.add_note(f"python -m tests.simulation --seed {seed}")
            raise


@pytest.mark.parametrize("seed", FOUND)
def test_what_seeds_have_found_stays_mended(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("first", SEEDS)
def test_nothing_paid_for_is_lost_or_bought_twice_and_the_cap_holds(first: int) -> None:
    run_all(range(first, first + BLOCK))


def test_a_seed_is_one_history() -> None:
    for seed in range(5):
        one, other = run(seed), run(seed)
        assert [line.replace(str(one.disk.root.parent), "") for line in one.said] == [
            line.replace(str(other.disk.root.parent), "") for line in other.said
        ]
        assert one.steps == other.steps


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
        run_all(range(400))


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
