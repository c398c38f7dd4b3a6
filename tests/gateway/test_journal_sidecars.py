"""What a sidecar says is what reading its segment shows, or it is not believed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lion_ray.gateway import reader
from lion_ray.gateway.folder import Folder
from lion_ray.gateway.index import Index, Where
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.record import encode_record
from lion_ray.gateway.segments import SIDECAR, Segment, decode_sidecar, encode_sidecar, load, read_on
from tests.gateway.support import ACCOUNT, completion, filled, segments, served


def sidecar(segment: Path) -> Path:
    return segment.with_name(segment.name + SIDECAR)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The segments that were read from their beginning."""
    names: list[str] = []

    def noted(folder: Folder, name: str, size: int, *, sidecar: bool) -> Segment:
        segment = load(folder, name, size, sidecar=sidecar)
        data = folder.read(name + SIDECAR, 0, 2**40) if sidecar else b""
        if decode_sidecar(name, data) is None or segment.rows not in data:
            names.append(name)
        return segment

    monkeypatch.setattr(reader, "load", noted)
    return names


async def test_full_and_closed_segments_have_sidecars_that_say_what_reading_shows(
    tmp_path: Path, scanned: list[str]
) -> None:
    await filled(tmp_path, range(20), segment_bytes=1000)
    assert len(segments(tmp_path)) > 3
    folder = Folder.at(str(tmp_path))
    for path in segments(tmp_path):
        said = decode_sidecar(path.name, sidecar(path).read_bytes())
        assert said == read_on(folder, Segment(path.name), path.stat().st_size)
    journal = Journal.open(str(tmp_path))
    assert await served(journal, range(20)) == list(range(20))
    assert not scanned


async def test_a_damaged_sidecar_is_not_believed(tmp_path: Path) -> None:
    await filled(tmp_path, range(3))
    (segment,) = segments(tmp_path)
    whole = sidecar(segment).read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        assert decode_sidecar(segment.name, bytes(damaged)) is None
        assert decode_sidecar(segment.name, whole[:position]) is None
    for wrong in (b"", whole[:-1], whole[:50], whole.replace(b"teacher", b"referee")):
        sidecar(segment).write_bytes(wrong)
        journal = Journal.open(str(tmp_path))
        assert await served(journal, range(3)) == [0, 1, 2]
        assert (len(journal), journal.dropped, journal.spending("run-1")[ACCOUNT].calls) == (3, 0, 3)


async def test_a_segment_that_has_grown_past_its_sidecar_is_read(tmp_path: Path) -> None:
    await filled(tmp_path, range(2))
    (segment,) = segments(tmp_path)
    with segment.open("ab") as file:
        file.write(encode_record(completion(2), ACCOUNT))
    journal = Journal.open(str(tmp_path))
    assert await served(journal, range(3)) == [0, 1, 2]
    assert journal.spending("run-1")[ACCOUNT].calls == 3


async def test_a_sidecar_of_another_journals_segment_serves_nothing_wrong(tmp_path: Path) -> None:
    await filled(tmp_path / "one", range(10, 12))
    await filled(tmp_path / "two", range(12, 14))
    (one,), (two,) = segments(tmp_path / "one"), segments(tmp_path / "two")
    said = decode_sidecar(two.name, sidecar(two).read_bytes())
    assert said is not None
    said.size = said.scanned = one.stat().st_size
    sidecar(one).write_bytes(encode_sidecar(said))
    journal = Journal.open(str(tmp_path / "one"))
    assert await served(journal, range(10, 14)) == []
    assert (len(journal), journal.dropped) == (0, 2)


async def test_a_segment_read_in_small_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path, range(10))
    (path,) = segments(tmp_path)
    size = path.stat().st_size
    at_once = read_on(Folder.at(str(tmp_path)), Segment(path.name), size)
    for pieces in (1, 7, 250, size - 1):
        monkeypatch.setattr("lion_ray.gateway.segments.CHUNK_BYTES", pieces)
        assert read_on(Folder.at(str(tmp_path)), Segment(path.name), size) == at_once
    begun = read_on(Folder.at(str(tmp_path)), Segment(path.name), size // 2 + 9)
    assert begun.torn
    assert read_on(Folder.at(str(tmp_path)), begun, size) == at_once


def test_a_sidecar_holds_an_empty_segment() -> None:
    assert decode_sidecar("s.calls", encode_sidecar(Segment("s.calls"))) == Segment("s.calls")


def test_the_index_finds_what_a_dict_finds() -> None:
    rng = random.Random(0)
    index = Index(most_recent=50)
    model: dict[bytes, set[Where]] = {}
    # Digests that share their first 8 bytes are told apart.
    digests = [bytes([n % 3]) * 8 + rng.randbytes(24) for n in range(30)] + [rng.randbytes(32) for _ in range(200)]
    for step in range(3000):
        digest = rng.choice(digests)
        match rng.randrange(40):
            case 0:
                dropped = rng.randrange(20)
                index.drop({dropped})
                for copies in model.values():
                    copies -= {where for where in copies if where.segment == dropped}
            case 1 | 2 if model.get(digest):
                where = rng.choice(sorted(model[digest]))
                index.distrust(digest, where)
                model[digest].remove(where)
            case 3:
                segment = Segment("s")
                added = rng.sample(digests, rng.choice([3, 70]))
                for offset, one in enumerate(added):
                    segment.rows += one + (step * 1000 + offset).to_bytes(8, "little") + (9).to_bytes(4, "little")
                    model.setdefault(one, set()).add(Where(step % 20, step * 1000 + offset, 9))
                index.extend([segment.take(step % 20)])
            case _:
                where = Where(rng.randrange(20), step * 1000 + 999, 7)
                index.add(digest, where)
                model.setdefault(digest, set()).add(where)
        assert set(index.find(digest)) == model.get(digest, set())
        assert len(index) == sum(map(bool, model.values()))
    for digest in digests:
        assert set(index.find(digest)) == model.get(digest, set())
