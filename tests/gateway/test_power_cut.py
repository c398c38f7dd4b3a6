"""Durable means: still there after a power cut. What was not flushed is lost here, as on a disk with a cache."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.core.durable import whole_folder
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.store import RunStore
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from tests.gateway.support import ACCOUNT, completion, segments, served
from tests.power_cut import Disk

TABLE = pa.table({"id": ["a", "b"]})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def disk(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with Disk(work, monkeypatch) as disk:
        yield disk


async def test_what_the_journal_has_taken_survives(disk: Disk, work: Path, tmp_path: Path) -> None:
    journal = Journal.open(str(work / "new" / "journal"), segment_bytes=800)
    for number in range(12):
        await journal.put(completion(number), ACCOUNT)
        # At this moment, whatever comes later: its line, its segment's name, and the folders above.
        left = disk.left(tmp_path / f"left-{number}")
        after = Journal.open(str(left / "new" / "journal"))
        assert await served(after, range(13)) == list(range(number + 1))
    assert len(segments(work / "new" / "journal")) > 2
    await journal.close()


async def test_two_writers_records_survive(disk: Disk, work: Path, tmp_path: Path) -> None:
    one, two = (Journal.open(str(work / "journal")) for _ in range(2))
    await asyncio.gather(*(writer.put(completion(n), ACCOUNT) for n, writer in enumerate([one, two] * 10)))
    after = Journal.open(str(disk.left(tmp_path / "left") / "journal"))
    assert await served(after, range(20)) == list(range(20))
    await one.close()
    await two.close()


@pytest.mark.parametrize("deleted", [False, True], ids=["its old segments still there", "its old segments gone"])
async def test_a_compaction_loses_nothing(disk: Disk, work: Path, tmp_path: Path, deleted: bool) -> None:
    for start in (0, 5, 10):
        journal = Journal.open(str(work / "journal"))
        for number in range(start, start + 5):
            await journal.put(completion(number), ACCOUNT)
        await journal.close()
    compact(Folder.at(str(work / "journal")))
    assert len(segments(work / "journal")) == 1
    left = disk.left(tmp_path / "left", deleted=deleted) / "journal"
    after = Journal.open(str(left))
    assert await served(after, range(15)) == list(range(15))
    assert after.spending("run-1")[ACCOUNT].calls == 15, "and none of them is counted twice"


class UnnamedFolder(Folder):
    """Dies when a name has been given and is not on the disk yet."""

    def sync(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("deleted", [False, True], ids=["its old segments still there", "its old segments gone"])
async def test_a_compaction_that_goes_on_from_one_that_failed_loses_nothing(
    disk: Disk, work: Path, tmp_path: Path, deleted: bool
) -> None:
    for number in range(3):
        journal = Journal.open(str(work / "journal"))
        await journal.put(completion(number), ACCOUNT)
        await journal.close()
    with pytest.raises(InfrastructureError):
        compact(UnnamedFolder.at(str(work / "journal")))
    compact(Folder.at(str(work / "journal")))
    assert len(segments(work / "journal")) == 1
    left = disk.left(tmp_path / "left", deleted=deleted) / "journal"
    assert await served(Journal.open(str(left)), range(3)) == [0, 1, 2]


async def test_what_may_have_been_billed_survives(disk: Disk, work: Path, tmp_path: Path) -> None:
    journal = Journal.open(str(work / "journal"))
    for calls in (1, 2, 3):
        await journal.lose(ACCOUNT, "default", 0.5)
        after = Journal.open(str(disk.left(tmp_path / f"left-{calls}") / "journal"))
        assert [(one.calls, one.usd) for one in after.uncertain(ACCOUNT.run)] == [(calls, calls * 0.5)]
        await after.close()
    await journal.close()


def test_a_batch_that_is_under_way_is_not_forgotten(disk: Disk, work: Path, tmp_path: Path) -> None:
    made = BatchRecord("n1", "http://127.0.0.1:1/v1", "teacher", ["k1"], 10.0, 11.0, input_file_id="file-1")
    for batch_id in (None, "batch-1"):
        made.batch_id = batch_id
        BatchRecords(str(work / "journal")).write(made)
        left = disk.left(tmp_path / f"left-{batch_id}") / "journal"
        assert BatchRecords(str(left)).load(made.address) == [made]


def test_what_a_run_committed_survives(disk: Disk, work: Path, tmp_path: Path) -> None:
    store = RunStore(str(work))
    store.claim()
    stage = store.stage("iteration-1/student")
    stage.write_part(0, TABLE)
    stage.commit({"parts": 1})
    stage.commit({"parts": 1, "again": True})
    after = RunStore(str(disk.left(tmp_path / "left"))).stage("iteration-1/student")
    assert after.manifest() == {"parts": 1, "again": True}
    assert after.read(1).equals(TABLE)


def test_a_manifest_is_not_written_before_the_names_of_its_parts(
    disk: Disk, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of parts that an earlier attempt named and did not flush (seed 32556 of the simulation)."""
    store = RunStore(str(work))
    store.claim()
    stage = store.stage("iteration-1/student")
    stage.write_part(0, TABLE)

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("lion_ray.core.store.sync_path", fails)
        with pytest.raises(InfrastructureError, match="Input/output error"):
            stage.write_part(1, TABLE)
    assert stage.part_indexes() == {0, 1}, "the next attempt finds it and does not write it again"
    write, left = store.write_record, []

    def write_record(name: str, value: dict[str, Any]) -> None:
        left.append(disk.left(tmp_path / "left"))
        write(name, value)

    monkeypatch.setattr(store, "write_record", write_record)
    stage.commit({"parts": 2})
    assert RunStore(str(left[0])).stage("iteration-1/student").part_indexes() == {0, 1}
    with monkeypatch.context() as patch:
        patch.setattr("lion_ray.core.store.sync_path", fails)
        with pytest.raises(InfrastructureError, match=r"iteration-1/student.*Input/output error"):
            stage.commit({"parts": 2})


def test_a_folder_that_is_whole_stays_whole(disk: Disk, work: Path, tmp_path: Path) -> None:
    for round_ in range(2):
        with whole_folder(work / "out", replace=True) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / "a.txt").write_text(f"round {round_}")
            (aside / "b.txt").write_text("b")
        left = disk.left(tmp_path / f"left-{round_}", deleted=True)
        assert (left / "out" / "deep" / "a.txt").read_text() == f"round {round_}"
        assert (left / "out" / "b.txt").read_text() == "b"
