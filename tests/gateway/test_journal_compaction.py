"""Compacting a journal changes its files and nothing else: not what is served, not what was paid."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.calls import Account
from lion_ray.gateway.journal import Journal, Spent, writer
from lion_ray.gateway.journal.compaction import LOCK, compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.segments import SIDECAR
from tests.gateway.support import ACCOUNT, completion, filled, key, segments, served

ROOT = Path(__file__).resolve().parents[2]
OTHER = Account("run-2", "referee", "verdicts")


class DiedError(Exception):
    """The process dies here."""


class CrashingFolder(Folder):
    """Dies at the given step, and does nothing more from then on."""

    steps: int

    def write_aside(self, name: str, parts: Iterable[bytes], *, durable: bool = True) -> tuple[str, int]:
        def dying() -> Iterator[bytes]:
            for part in parts:
                self._step()
                yield part[: len(part) // 2]
                self._step()
                yield part[len(part) // 2 :]

        self._step()
        return super().write_aside(name, dying(), durable=durable)

    def publish(self, aside: str, name: str, *, durable: bool = True) -> None:
        self._step()
        super().publish(aside, name, durable=durable)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)

    def _step(self) -> None:
        if not self.steps:
            raise DiedError
        self.steps -= 1


def filesystem(folder: Path, local: bool) -> tuple[pafs.FileSystem, str]:
    """A folder as itself, or as a store that to the journal is not local: it may only write whole objects."""
    if local:
        return pafs.LocalFileSystem(), str(folder)
    return pafs.SubTreeFileSystem(str(folder.parent), pafs.LocalFileSystem()), folder.name


async def worn(folder: Path) -> dict[str, dict[Account, Spent]]:
    """Calls 0 to 29 in several segments, a damaged line, a torn tail, copies that were paid for; what was spent."""
    await filled(folder, range(10), segment_bytes=500)
    journal = Journal.open(str(folder))
    for number in (*range(10, 20), 3):
        await journal.put(replace(completion(number, f"later {number}" if number == 3 else None), cost_usd=0.25), OTHER)
    await journal.close()
    await filled(folder, range(20, 30))
    await filled(folder, range(30, 31))
    damaged, torn = segments(folder)[-1], segments(folder)[-2]
    damaged.write_bytes(damaged.read_bytes().replace(b"answer 30", b"answer 31"))
    with torn.open("ab") as file:
        file.write(b"01234567 {half a reco")
    return {
        "run-1": {ACCOUNT: Spent(21, sum(range(10)) + sum(range(20, 31)), 42)},
        "run-2": {OTHER: Spent(11, sum(range(10, 20)) + 3, 22, 2.75)},
    }


async def check(journal: Journal, spent: dict[str, dict[Account, Spent]]) -> None:
    assert await served(journal, range(31)) == list(range(30))
    assert {run: journal.spending(run) for run in spent} == spent


@pytest.mark.parametrize("local", [True, False])
async def test_a_compaction_keeps_what_is_served_and_what_was_spent(tmp_path: Path, local: bool) -> None:
    folder = tmp_path / "journal"
    spent = await worn(folder)
    store, path = filesystem(folder, local)
    before = Journal.open(path, filesystem=store)
    await check(before, spent)
    done = compact(Folder(store, path))
    assert (done.segments_after, done.damaged, done.copies, done.live) == (1, 2, 1, 0)
    assert done.segments_before > 6
    (merged,) = segments(folder)
    assert {file.name for file in folder.iterdir()} - {LOCK} == {merged.name, merged.name + SIDECAR}
    # A reader that was open all the time follows.
    await check(before, spent)
    await check(Journal.open(path, filesystem=store), spent)
    # Without the sidecar, the segment itself says the same.
    (folder / (merged.name + SIDECAR)).unlink()
    reopened = Journal.open(path, filesystem=store)
    await check(reopened, spent)
    assert (len(reopened), reopened.dropped) == (30, 0)
    assert compact(Folder(store, path)).bytes_after == done.bytes_after
    # More is added, and merged into what was merged.
    await reopened.put(completion(40), ACCOUNT)
    await reopened.close()
    spent["run-1"][ACCOUNT].add(Spent(1, 40, 2))
    assert compact(Folder(store, path)).segments_after == 1
    await check(Journal.open(path, filesystem=store), spent)
    assert key(40) in Journal.open(path, filesystem=store)


@pytest.mark.parametrize("local", [True, False])
async def test_a_crash_at_any_point_loses_nothing_and_counts_nothing_twice(tmp_path: Path, local: bool) -> None:
    template = tmp_path / "template"
    spent = await worn(template)
    for steps in itertools.count():
        folder = tmp_path / f"crash-{steps}"
        shutil.copytree(template, folder)
        store, path = filesystem(folder, local)
        watching = Journal.open(path, filesystem=store)
        dying = CrashingFolder(store, path)
        dying.steps = steps
        crashed = False
        try:
            compact(dying)
        except DiedError:
            crashed = True
        await check(Journal.open(path, filesystem=store), spent)
        await watching.refresh()
        await check(watching, spent)
        assert compact(Folder(store, path)).segments_after == 1
        await check(Journal.open(path, filesystem=store), spent)
        await check(watching, spent)
        if local:
            # Where there are locks, what was left lying about is known to be nobody's.
            assert not list(folder.glob(".*m*.calls.*"))
        if not crashed:
            break
        shutil.rmtree(folder)
    assert steps > 20


async def test_the_first_record_stands_after_a_compaction_too(tmp_path: Path) -> None:
    older, alive, newer = (Journal.open(str(tmp_path)) for _ in range(3))
    for name, journal in (("older", older), ("alive", alive), ("newer", newer)):
        await journal.put(completion(1, name), ACCOUNT)
        await journal.put(completion(2, name), ACCOUNT) if name != "older" else None
    await asyncio.gather(older.close(), newer.close())
    for live in (1, 0):
        assert compact(Folder.at(str(tmp_path))).live == live
        journal = Journal.open(str(tmp_path))
        found = [await journal.get(key(n)) for n in (1, 2)]
        assert [one and one.text for one in found] == ["older", "alive"]
        assert journal.spending("run-1")[ACCOUNT].calls == 5
        await alive.close()


async def test_a_segment_whose_writer_lives_is_left_alone(tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path))
    await journal.put(completion(0), ACCOUNT)
    done = compact(Folder.at(str(tmp_path)))
    assert (done.segments_after, done.live) == (1, 1)
    await journal.put(completion(1), ACCOUNT)
    assert len(segments(tmp_path)) == 1
    assert await served(Journal.open(str(tmp_path)), range(2)) == [0, 1]
    await journal.close()


async def test_a_segment_that_a_compaction_locks_as_it_is_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(writer, "lock", lambda descriptor: next(answers))
    journal = Journal.open(str(tmp_path))
    await journal.put(completion(0), ACCOUNT)
    locked, used = segments(tmp_path)
    assert (locked.stat().st_size, used.stat().st_size > 0) == (0, True)
    locked.unlink()
    await journal.refresh()
    assert await served(journal, range(1)) == [0]
    await journal.close()


async def test_one_compaction_at_a_time(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    folder = Folder.at(str(tmp_path))
    lock = folder.try_lock(LOCK, create=True)
    assert lock is not None
    with pytest.raises(InfrastructureError, match="another process"):
        compact(folder)


async def test_large_segments_are_not_written_again_for_small_ones(tmp_path: Path) -> None:
    await filled(tmp_path, range(20))
    (large,) = segments(tmp_path)
    for number in range(20, 25):
        await filled(tmp_path, range(number, number + 1))
    done = compact(Folder.at(str(tmp_path)), merged_bytes=large.stat().st_size + 100)
    assert done.segments_after == 2
    assert large in segments(tmp_path)
    assert await served(Journal.open(str(tmp_path)), range(25)) == list(range(25))


async def test_two_compactions_of_the_same_objects_count_them_once(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    spent = await worn(folder)
    store, path = filesystem(folder, local=False)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    compact(Folder(store, path))
    compact(Folder(*filesystem(again, local=False)))
    # As if the other had listed the objects before this one deleted them.
    for file in again.iterdir():
        shutil.copy(file, folder)
    assert len(segments(folder)) == 2
    await check(Journal.open(path, filesystem=store), spent)
    assert compact(Folder(store, path)).copies == 30
    await check(Journal.open(path, filesystem=store), spent)


WRITER = """
import asyncio, sys
from dataclasses import replace
from lion_ray.gateway.journal import Journal
from tests.gateway.support import ACCOUNT, completion, served

run, first = sys.argv[2], int(sys.argv[3])

async def lane(journal, numbers):
    for number in numbers:
        await journal.put(completion(number), replace(ACCOUNT, run=run))

async def main():
    for part in range(first, first + 300, 100):
        journal = Journal.open(sys.argv[1], segment_bytes=1500)
        await asyncio.gather(*(lane(journal, range(part + start, part + 100, 4)) for start in range(4)))
        assert await served(journal, range(first, part + 100)) == list(range(first, part + 100))
        assert journal.spending(run)[replace(ACCOUNT, run=run)].calls == part + 100 - first
        await journal.close()

asyncio.run(main())
"""


async def test_two_processes_write_while_one_compacts_and_nothing_is_lost(tmp_path: Path) -> None:
    Journal.open(str(tmp_path))
    watching = Journal.open(str(tmp_path))
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), run, first, cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        for run, first in (("one", "0"), ("two", "1000"))
    ]
    ended = asyncio.gather(*(process.communicate() for process in writers))
    compactions = 0
    while not ended.done():
        await asyncio.to_thread(compact, Folder.at(str(tmp_path)))
        await watching.refresh()
        known = [number for number in (*range(300), *range(1000, 1300)) if key(number) in watching]
        assert await served(watching, range(1300)) == known
        compactions += 1
    for process, (_, errors) in zip(writers, await ended, strict=True):
        assert process.returncode == 0, errors.decode()
    assert compactions > 1
    await watching.refresh()
    assert compact(Folder.at(str(tmp_path))).segments_after == 1
    for journal in (watching, Journal.open(str(tmp_path))):
        assert await served(journal, range(1300)) == [*range(300), *range(1000, 1300)]
        assert [journal.spending(run)[replace(ACCOUNT, run=run)].calls for run in ("one", "two")] == [300, 300]
