"""The journal keeps its promise: acknowledged means durable, and nothing damaged is ever served."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.calls import Account, TokenChoice
from lion_ray.gateway.journal import Journal, Spent
from lion_ray.gateway.journal.reader import Reader
from lion_ray.gateway.journal.record import decode_head, decode_record, encode_record, head_of
from lion_ray.gateway.journal.segments import SIDECAR
from tests.gateway.support import ACCOUNT, QuickTime, completion, filled, key, segments, served

ROOT = Path(__file__).resolve().parents[2]


class BlockedJournal(Journal):
    """Its fsync waits until the test lets it go."""

    entered: threading.Event
    release: threading.Event
    syncs: int

    def block(self) -> None:
        self.entered, self.release, self.syncs = threading.Event(), threading.Event(), 0

    def _sync(self, fd: int) -> None:
        self.syncs += 1
        self.entered.set()
        self.release.wait()
        super()._sync(fd)


@pytest.mark.parametrize("text", ["", "two\nlines\r\n\x0b\u2028 and \x00", "狮子 🦁 \U0010ffff", "a" * 100_000])
async def test_a_record_comes_back_as_it_was_put(tmp_path: Path, text: str) -> None:
    journal = Journal.open(str(tmp_path / "new" / "folder"))
    put = completion(1, text)
    await journal.put(put, ACCOUNT)
    again = Journal.open(str(tmp_path / "new" / "folder"))
    for reader in (journal, again):
        assert await reader.get(put.key) == replace(put, replayed=True)
        assert (len(reader), put.key in reader, reader.dropped) == (1, True, 0)
        assert await reader.get(key(2)) is None
        await reader.close()


async def test_log_probabilities_come_back_as_they_were_put(tmp_path: Path) -> None:
    choices = (TokenChoice(0, ' "', ((' "', -0.25), ('"text":"', -1.5))), TokenChoice(3, "8", (("8", 0.0),)))
    put = replace(completion(1, 'a ","text":" b'), logprobs=choices)
    journal = Journal.open(str(tmp_path))
    await journal.put(put, ACCOUNT)
    await journal.close()
    again = Journal.open(str(tmp_path))
    assert await again.get(put.key) == replace(put, replayed=True)
    await again.close()


async def test_nothing_is_acknowledged_or_served_before_it_is_on_disk(tmp_path: Path) -> None:
    journal = BlockedJournal.open(str(tmp_path))
    assert isinstance(journal, BlockedJournal)
    journal.block()
    put = asyncio.create_task(journal.put(completion(1), ACCOUNT))
    await asyncio.to_thread(journal.entered.wait)
    assert not put.done()
    assert await journal.get(key(1)) is None
    journal.release.set()
    await put
    assert await journal.get(key(1)) is not None
    await journal.close()


async def test_records_that_wait_together_share_one_fsync(tmp_path: Path) -> None:
    journal = BlockedJournal.open(str(tmp_path))
    assert isinstance(journal, BlockedJournal)
    journal.block()
    first = asyncio.create_task(journal.put(completion(0), ACCOUNT))
    await asyncio.to_thread(journal.entered.wait)
    others = [asyncio.create_task(journal.put(completion(n), ACCOUNT)) for n in range(1, 51)]
    await asyncio.sleep(0)
    journal.release.set()
    await asyncio.gather(first, *others)
    assert journal.syncs == 2
    assert await served(journal, range(51)) == list(range(51))
    await journal.close()


async def test_a_cancelled_caller_does_not_stop_its_record(tmp_path: Path) -> None:
    journal = BlockedJournal.open(str(tmp_path))
    assert isinstance(journal, BlockedJournal)
    journal.block()
    put = asyncio.create_task(journal.put(completion(1), ACCOUNT))
    await asyncio.to_thread(journal.entered.wait)
    put.cancel()
    journal.release.set()
    with pytest.raises(asyncio.CancelledError):
        await put
    await journal.close()
    assert key(1) in Journal.open(str(tmp_path))


async def test_a_torn_tail_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        segment.write_bytes(whole[:cut])
        journal = Journal.open(str(tmp_path))
        assert await served(journal, range(3)) == [0, 1]
        assert journal.dropped == (cut > last)


@pytest.mark.parametrize("sealed", [True, False], ids=["with its sidecar", "without"])
async def test_damage_costs_the_damaged_record_and_no_other(tmp_path: Path, sealed: bool) -> None:
    await filled(tmp_path, range(5))
    (segment,) = segments(tmp_path)
    if not sealed:
        (tmp_path / f"{segment.name}{SIDECAR}").unlink()
    whole = segment.read_bytes()
    start = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    end = whole.index(b"\n", start)
    for position in range(start, end):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        segment.write_bytes(damaged)
        journal = Journal.open(str(tmp_path))
        kept = await served(journal, range(5))
        # A flipped bit may make a newline out of a byte: then the record falls into two damaged ones.
        assert (kept, journal.dropped) in (([0, 1, 3, 4], 1), ([0, 1, 3, 4], 2))
        assert (len(journal), key(2) in journal) == (4, False)


async def test_damage_after_opening_is_found_when_read(tmp_path: Path) -> None:
    await filled(tmp_path, range(2))
    journal = Journal.open(str(tmp_path))
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes().replace(b"answer 1", b"answer 9"))
    assert await journal.get(key(1)) is None
    assert (journal.dropped, key(1) in journal) == (1, False)
    assert await served(journal, range(2)) == [0]


async def test_a_record_that_is_being_written_is_served_once_it_is_whole(tmp_path: Path) -> None:
    await filled(tmp_path, range(1))
    line = encode_record(completion(1), ACCOUNT)
    (segment,) = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(line[:50])
        file.flush()
        journal = Journal.open(str(tmp_path))
        assert (len(journal), journal.dropped) == (1, 1)
        file.write(line[50:])
    await journal.refresh()
    assert await served(journal, range(2)) == [0, 1]
    assert journal.dropped == 0


async def test_writers_share_a_folder(tmp_path: Path) -> None:
    one, two = Journal.open(str(tmp_path)), Journal.open(str(tmp_path))
    puts = [journal.put(completion(n), ACCOUNT) for n, journal in enumerate([one, two] * 50)]
    await asyncio.gather(*puts)
    assert len(segments(tmp_path)) == 2
    assert await served(one, range(100)) == list(range(0, 100, 2))
    await one.refresh()
    assert await served(one, range(100)) == list(range(100))
    await one.refresh()
    assert len(one) == 100
    await one.close()
    await two.close()
    assert await served(Journal.open(str(tmp_path)), range(100)) == list(range(100))


async def test_the_first_of_two_records_stands_for_every_reader(tmp_path: Path) -> None:
    older, newer = Journal.open(str(tmp_path)), Journal.open(str(tmp_path))
    await older.put(completion(1, "the older writer's"), ACCOUNT)
    await newer.put(completion(1, "the newer writer's"), ACCOUNT)
    for _ in range(2):
        found = await Journal.open(str(tmp_path)).get(key(1))
        assert found is not None
        assert found.text == "the older writer's"


async def test_segments_roll(tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path), segment_bytes=1000)
    for number in range(20):
        await journal.put(completion(number), ACCOUNT)
    await journal.close()
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert len(sizes) > 3
    assert max(sizes) < 1000 + 400
    assert await served(Journal.open(str(tmp_path)), range(20)) == list(range(20))


async def test_a_storage_that_refuses_writes_is_told_to_every_waiter(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal.open(str(folder))
    shutil.rmtree(folder)
    results = await asyncio.gather(*(journal.put(completion(n), ACCOUNT) for n in range(5)), return_exceptions=True)
    for result in results:
        assert isinstance(result, InfrastructureError)
        assert str(folder) in str(result)
        assert "No such file" in str(result)
    assert len(journal) == 0
    folder.mkdir()
    await journal.put(completion(9), ACCOUNT)
    await journal.close()
    assert await served(Journal.open(str(folder)), range(10)) == [9]


async def test_a_folder_that_cannot_be_is_refused_at_opening(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InfrastructureError, match="file"):
            Journal.open(str(root))
    with pytest.raises(InfrastructureError, match="nosuchscheme"):
        Journal.open("nosuchscheme://bucket/journal")


async def test_a_closed_journal_takes_nothing_and_has_kept_what_it_took(tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path))
    put = asyncio.create_task(journal.put(completion(1), ACCOUNT))
    await asyncio.sleep(0)
    await journal.close()
    await put
    with pytest.raises(InfrastructureError, match="closed"):
        await journal.put(completion(2), ACCOUNT)
    await journal.close()


async def test_a_url_names_the_same_folder(tmp_path: Path) -> None:
    await filled(tmp_path, range(2))
    journal = Journal.open(tmp_path.as_uri())
    assert await served(journal, range(2)) == [0, 1]


async def test_objects_each_commit_is_one_and_readers_find_all(tmp_path: Path) -> None:
    # Not a LocalFileSystem to the journal: it may only write whole objects.
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    journal = Journal.open("bucket/prefix", filesystem=store, gather_s=0.0)
    await asyncio.gather(*(journal.put(completion(n), ACCOUNT) for n in range(10)))
    await journal.put(completion(10), ACCOUNT)
    assert len(segments(tmp_path / "bucket" / "prefix")) == 2
    assert await served(journal, range(11)) == list(range(11))
    other = Journal.open("bucket/prefix", filesystem=store, gather_s=0.0)
    assert await served(other, range(11)) == list(range(11))
    await other.put(completion(11), ACCOUNT)
    await journal.refresh()
    assert await served(journal, range(12)) == list(range(12))
    shutil.rmtree(tmp_path / "bucket")
    with pytest.raises(InfrastructureError, match="bucket/prefix"):
        await journal.put(completion(12), ACCOUNT)
    await journal.close()
    await other.close()


async def test_objects_are_merged_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    journal = Journal.open("prefix", filesystem=store, gather_s=0.0, most_loose=10)
    other = Journal.open("prefix", filesystem=store, gather_s=0.0)
    for number in range(35):
        await journal.put(completion(number), ACCOUNT)
    # Merging goes on beside the puts, and moves records that this journal knows where to find.
    assert await served(journal, range(35)) == list(range(35))
    await journal.close()
    assert len(segments(tmp_path / "prefix")) == 4
    await other.refresh()
    for reader in (journal, other, Journal.open("prefix", filesystem=store)):
        assert await served(reader, range(35)) == list(range(35))
        assert reader.spending("run-1")[ACCOUNT].calls == 35
    assert not list((tmp_path / "prefix").glob(".*"))


async def test_an_open_segment_that_somebody_deletes_is_left(tmp_path: Path) -> None:
    journal = Journal.open(str(tmp_path))
    await journal.put(completion(0), ACCOUNT)
    segments(tmp_path)[0].unlink()
    await journal.put(completion(1), ACCOUNT)
    await journal.refresh()
    for reader in (journal, Journal.open(str(tmp_path))):
        assert await served(reader, range(2)) == [1]
        assert reader.spending("run-1")[ACCOUNT].calls == 1
    await journal.close()


async def test_a_second_copy_is_served_where_the_first_is_damaged(tmp_path: Path) -> None:
    older, newer = Journal.open(str(tmp_path)), Journal.open(str(tmp_path))
    await older.put(completion(1, "the older writer's"), ACCOUNT)
    await newer.put(completion(1, "the newer writer's"), ACCOUNT)
    await asyncio.gather(older.close(), newer.close())
    first = segments(tmp_path)[0]
    first.write_bytes(first.read_bytes().replace(b"older", b"elder"))
    journal = Journal.open(str(tmp_path))
    for _ in range(2):
        found = await journal.get(key(1))
        assert found is not None
        assert found.text == "the newer writer's"
    assert (len(journal), key(1) in journal, journal.dropped) == (1, True, 1)


async def test_a_refresh_is_made_once_for_all_who_ask_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = []
    update = Reader.update

    def counted(reader: Reader) -> None:
        updates.append(reader)
        update(reader)

    monkeypatch.setattr(Reader, "update", counted)
    time = QuickTime()
    journal = Journal.open(str(tmp_path), clock=time.clock)
    await filled(tmp_path, range(1))
    updates.clear()
    time.now = 4.9
    assert not await journal.refresh_if_older(5)
    assert (updates, key(0) in journal) == ([], False)
    time.now = 5.0
    assert all(await asyncio.gather(*(journal.refresh_if_older(5) for _ in range(10))))
    assert (len(updates), key(0) in journal) == (1, True)
    assert not await journal.refresh_if_older(5)
    assert len(updates) == 1


async def test_what_a_run_spends_is_known_at_once_and_after_every_restart(tmp_path: Path) -> None:
    referee, other_run = replace(ACCOUNT, role="referee"), replace(ACCOUNT, run="run-2")
    expected: dict[Account, Spent] = {}
    for restart in range(3):
        journal = Journal.open(str(tmp_path))
        assert journal.spending("run-1") == expected
        for number, account in enumerate((ACCOUNT, referee, ACCOUNT, other_run)):
            # The same keys after every restart: each line was paid for.
            await journal.put(replace(completion(number), cost_usd=0.5 if account == ACCOUNT else None), account)
        expected = {
            ACCOUNT: Spent(2 * (restart + 1), 2 * (restart + 1), 4 * (restart + 1), 1.0 * (restart + 1)),
            referee: Spent(restart + 1, restart + 1, 2 * (restart + 1)),
        }
        assert journal.spending("run-1") == expected
        if restart == 1:
            await journal.close()
    assert Journal.open(str(tmp_path)).spending("run-2")[other_run].calls == 3


def test_a_key_that_is_none_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="64 hex"):
        encode_record(replace(completion(1), key="short"), ACCOUNT)


def test_a_record_may_hold_more_than_this_version_knows() -> None:
    line = encode_record(completion(1), ACCOUNT).rstrip(b"\n")
    assert b'"role":"teacher"' in line
    assert decode_head(line) == head_of(completion(1), ACCOUNT)
    assert decode_record(line) == replace(completion(1), replayed=True)


WRITER = """
import asyncio, os, signal, sys
from lion_ray.gateway.journal import Journal
from tests.gateway.support import ACCOUNT, completion

acknowledged = 0

async def lane(journal, numbers):
    global acknowledged
    for number in numbers:
        await journal.put(completion(number), ACCOUNT)
        print(number, flush=True)
        acknowledged += 1
        if acknowledged == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    journal = Journal.open(sys.argv[1])
    await asyncio.gather(*(lane(journal, range(start, 500, 8)) for start in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("stop_after", [1, 100, 333])
async def test_sigkill_in_the_middle_of_500_puts_loses_no_acknowledged_record(tmp_path: Path, stop_after: int) -> None:
    code, output, _ = await run_script(WRITER, str(tmp_path), str(stop_after))
    assert code == -signal.SIGKILL
    acknowledged = {int(line) for line in output.split()}
    assert len(acknowledged) == stop_after
    journal = Journal.open(str(tmp_path))
    assert acknowledged <= set(await served(journal, range(500)))
    # Each of the 8 lanes may have had one more under way.
    assert len(journal) <= stop_after + 8


async def run_script(script: str, *arguments: str) -> tuple[int | None, str, str]:
    """Exit status, output and errors of a Python script in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_a_disk_that_fills_up_in_the_middle_of_a_record_loses_nothing_acknowledged(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import asyncio, resource, sys
        from lion_ray.core.errors import InfrastructureError
        from lion_ray.gateway.journal import Journal
        from tests.gateway.support import ACCOUNT, completion

        async def main():
            journal = Journal.open(sys.argv[1])
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
            for number in range(100):
                try:
                    await journal.put(completion(number), ACCOUNT)
                    print(number)
                except InfrastructureError as error:
                    assert "File too large" in str(error), error
                    print("refused", number, file=sys.stderr)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        asyncio.run(main())
    """)
    code, output, errors = await run_script(script, str(tmp_path))
    assert code == 0, errors
    acknowledged = [int(line) for line in output.split()]
    assert errors.startswith("refused")
    assert len(acknowledged) == 99
    journal = Journal.open(str(tmp_path))
    assert await served(journal, range(100)) == acknowledged
    assert journal.dropped == 1
