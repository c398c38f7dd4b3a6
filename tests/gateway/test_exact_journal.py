"""A journal's files byte by byte: its lines, sidecars, sums and index, and what a verification and a merge find."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.calls import Account, Completion, TokenChoice
from lion_ray.gateway.journal.compaction import Compacted, compact, merge_own
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.index import ENTRY, Index, Where
from lion_ray.gateway.journal.inspection import Fault, Survey, Verified, survey, verify
from lion_ray.gateway.journal.record import (
    Foreign,
    Head,
    Header,
    decode_head,
    decode_header,
    decode_record,
    digest_of,
    encode_header,
    encode_record,
    head_of,
    is_intact,
)
from lion_ray.gateway.journal.segments import (
    Segment,
    decode_line,
    decode_sidecar,
    encode_sidecar,
    is_merged,
    lines,
    load,
    merged_name,
    newest,
    read_on,
)
from lion_ray.gateway.journal.spending import Spent, add_to, from_json, to_json, total, union
from lion_ray.gateway.journal.uncertain import Uncertain, UncertainFile, read_uncertain
from lion_ray.gateway.journal.uncertain import total as total_uncertain

ACCOUNT = Account("run", "teacher", "answers")


def key(number: int) -> str:
    return f"{number:064x}"


def completion(number: int = 1, text: str = "x", **more: Any) -> Completion:
    known: dict[str, Any] = {"cached_tokens": 5, "seconds": 1.5, "cost_usd": 0.25}
    return Completion(key(number), text, "stop", "m", "e", 10, 20, **(known | more))


def line_of(data: Any) -> bytes:
    """An intact line, without its newline."""
    packed = data if isinstance(data, bytes) else orjson.dumps(data)
    return b"%08x %b" % (zlib.crc32(packed), packed)


def record(number: int = 1, **more: Any) -> bytes:
    """An intact line with these fields, in a record's order."""
    fields: dict[str, Any] = {
        "key": key(number),
        "v": 1,
        "run": "run",
        "role": "teacher",
        "stage": "answers",
        "at": 1.0,
        "endpoint": "e",
        "cost_usd": 0.25,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cached_tokens": 5,
        "finish_reason": "stop",
        "model": "m",
        "seconds": 1.5,
        "text": "x",
    }
    return line_of({name: value for name, value in (fields | more).items() if value is not ...})


HEAD = Head(bytes.fromhex(key(1)), ACCOUNT, Spent(1, 10, 20, 0.25))

# -- lines ------------------------------------------------------------------------------------------------------------


def test_a_record_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_ray.gateway.journal.record.time.time", lambda: 1234.56789)
    written = encode_record(completion(text="ä"), ACCOUNT)
    body = (
        f'{{"key":"{key(1)}","v":1,"run":"run","role":"teacher","stage":"answers","at":1234.568,"endpoint":"e",'
        '"cost_usd":0.25,"prompt_tokens":10,"completion_tokens":20,"cached_tokens":5,"finish_reason":"stop",'
        '"model":"m","seconds":1.5,"text":"ä"}'
    ).encode()
    assert written == b"%08x %b\n" % (zlib.crc32(body), body)
    assert is_intact(written[:-1])
    assert decode_record(written[:-1]) == completion(text="ä", replayed=True)
    assert decode_head(written) == HEAD == head_of(completion(), ACCOUNT)
    assert head_of(completion(cost_usd=None), ACCOUNT).spent.usd == 0.0
    choices = (TokenChoice(0, "8", (("8", -0.5), ("9", -1.5))),)
    again = decode_record(encode_record(completion(logprobs=choices), Account())[:-1])
    assert again == completion(logprobs=choices, replayed=True)
    for wrong in ("", key(1)[1:], "g" * 64):
        with pytest.raises(ValueError) as caught:
            encode_record(Completion(wrong, "x", "stop", "m", "e", 1, 1), ACCOUNT)
        assert str(caught.value) == f"a call's key must be 64 hex digits, not {wrong!r}"
        assert digest_of(wrong) is None
    assert digest_of(key(255)) == bytes(31) + b"\xff"


@pytest.mark.parametrize(
    ("line", "head"),
    [
        (record(), HEAD),
        (record(v=...), HEAD),
        (record(run=..., role=..., stage=...), HEAD._replace(account=Account())),
        (record(cost_usd=None), HEAD._replace(spent=Spent(1, 10, 20, 0.0))),
        (record(cost_usd=3), HEAD._replace(spent=Spent(1, 10, 20, 3.0))),
        (record(prompt_tokens=2**63 - 1), HEAD._replace(spent=Spent(1, 2**63 - 1, 20, 0.25))),
        (record(text=...), Foreign("a record without a text")),
        (record(v=2), Foreign("of version 2", 2)),
        (record(v=0), Foreign("of version 0")),
        (record(v="2" * 30), Foreign("of version " + "2" * 20)),
        (record(v=2**63), Foreign("of version 9223372036854775808")),
        (record(v=True), HEAD),
        (record(role=3), Foreign("not the fields of a record")),
        (record(endpoint=...), Foreign("not the fields of a record")),
        (record(model=3), Foreign("not the fields of a record")),
        (record(finish_reason=None), Foreign("not the fields of a record")),
        (record(prompt_tokens=2**63), Foreign("not the fields of a record")),
        (record(completion_tokens=1.5), Foreign("not the fields of a record")),
        (record(prompt_tokens=...), Foreign("not the fields of a record")),
        (record(cost_usd="1"), Foreign("not the fields of a record")),
        (record(cost_usd=True), Foreign("not the fields of a record")),
        (record(key="g" * 64), Foreign("not the fields of a record")),
        (line_of(b'{"key":"x" oops,"text":"y"}'), Foreign("not the fields of a record, in their order")),
        (line_of({"v": 1, "key": key(1), "text": "x"}), Foreign("not a line of a journal")),
        (line_of([]), Foreign("not a line of a journal")),
        (line_of({"merged": {"replaces": ["b", "a"], "sums": {}}, "v": 1}), Header(frozenset("ab"), {})),
        (line_of({"merged": {"replaces": [], "sums": {}}}), Header(frozenset(), {})),
        (line_of({"merged": {}, "v": 3}), Foreign("a merged segment of version 3", 3)),
        (line_of({"merged": {}, "v": "3" * 30}), Foreign("a merged segment of version " + "3" * 20)),
        (line_of({"merged": {"replaces": [3], "sums": {}}, "v": 1}), Foreign("not the header of a merged segment")),
        (line_of({"merged": {"replaces": []}, "v": 1}), Foreign("not the header of a merged segment")),
        (line_of({"merged": {"replaces": [], "sums": {"a": [[1]]}}, "v": 1}),
         Foreign("not the header of a merged segment")),
        (line_of(b'{"merged":oops}'), Foreign("not the header of a merged segment")),
        (b"", None),
        (b"00000000 ", None),
        (record()[:-1], None),
        (b"0000000g" + record()[8:], None),
        (record()[:8] + b"_" + record()[9:], None),
        (b"00000000 {}", None),
    ],
)  # fmt: skip
def test_every_line(line: bytes, head: Any) -> None:
    assert decode_line(line) == head
    if not isinstance(head, Head):
        assert decode_record(line) is None
    if isinstance(head, Header):
        assert decode_header(line) == head


@pytest.mark.parametrize(
    "more", [{"text": 3}, {"logprobs": 3}, {"logprobs": [[1]]}, {"seconds": 1.5, "logprobs": [[0, "8", 3]]}]
)
def test_a_record_whose_head_alone_can_be_read(more: dict[str, Any]) -> None:
    fields = orjson.loads(record()[9:])
    text = fields.pop("text")
    line = line_of(
        fields | {name: value for name, value in more.items() if name != "text"} | {"text": more.get("text", text)}
    )
    if "text" in more:
        assert decode_head(line) == Foreign("a record without a text")
    else:
        assert isinstance(decode_head(line), Head)
    assert decode_record(line) is None


def test_a_merged_segments_header_byte_by_byte() -> None:
    sums = {"a.calls": {ACCOUNT: Spent(1, 2, 3, 0.5)}, "b.calls": {}}
    written = encode_header(["b", "a"], sums)
    body = (
        b'{"merged":{"replaces":["a","b"],"sums":{"a.calls":[["run","teacher","answers",1,2,3,0.5]],"b.calls":[]}},'
        b'"v":1}'
    )
    assert written == b"%08x %b\n" % (zlib.crc32(body), body)
    assert decode_header(written[:-1]) == Header(frozenset("ab"), sums)
    assert decode_header(record()) is None


def test_sums() -> None:
    one, two = Account("a"), Account("b", "r", "s")
    sums = {"x": {one: Spent(1, 2, 3, 0.5)}, "y": {one: Spent(1, 1, 1, 1.0), two: Spent(2, 2, 2, 2.0)}}
    added = total(sums.values())
    assert added == {one: Spent(2, 3, 4, 1.5), two: Spent(2, 2, 2, 2.0)}
    assert sums["x"][one] == Spent(1, 2, 3, 0.5), "in new objects"
    assert from_json(to_json(sums)) == sums
    later = {"x": {two: Spent(9)}}
    assert union([sums, later]) == {"x": {two: Spent(9)}, "y": sums["y"]}
    known: Any = {}
    add_to(known, one, Spent(1, 2, 3, 0.5))
    add_to(known, one, Spent(1, 2, 3, 0.5))
    assert known == {one: Spent(2, 4, 6, 1.0)}
    for odd in ([3, "r", "s", 1, 1, 1, 1.0], ["a", "r", "s", "1", 1, 1, 1.0], ["a", "r", "s", True, 1, 1, 1.0]):
        with pytest.raises(TypeError) as caught:
            from_json({"x": [odd]})
        assert str(caught.value) == "names must be text, and the rest numbers"


# -- segments ---------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (f"{number:020d}-aa-0.calls" for number in (1, 2, 3))


def folder_of(tmp_path: Path, **files: bytes) -> Folder:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return Folder.at(str(tmp_path))


def test_names_of_segments() -> None:
    assert newest([]) == 0
    assert newest([FIRST, THIRD, f"{9:020d}-aa.idx", f"{9:019d}-aa.calls", f"{'9' * 19}x-aa.calls"]) == 3
    assert newest([f"{'٣' * 20}-aa.calls"]) == 0
    name = merged_name(FIRST)
    assert name.startswith(f"{FIRST.removesuffix('.calls')}m")
    assert (is_merged(name), is_merged(FIRST), len(name)) == (True, False, len(FIRST) + 9)
    assert merged_name(name).startswith(f"{FIRST.removesuffix('.calls')}m")
    assert len(merged_name(name)) == len(name)


def test_lines_of_a_file_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_ray.gateway.journal.segments.CHUNK_BYTES", 3)
    data = b"ab\n\ncdefgh\ni\nrest"
    folder = folder_of(tmp_path, a=data)
    whole = [(0, b"ab"), (3, b""), (4, b"cdefgh"), (11, b"i")]
    assert list(lines(folder, "a")) == whole
    assert list(lines(folder, "a", 3)) == whole[1:]
    assert list(lines(folder, "a", 0, 11)) == whole[:3]
    assert list(lines(folder, "a", 0, 10)) == whole[:2]
    assert list(lines(folder, "a", 0, 99)) == whole
    assert list(lines(folder, "a", 99)) == []


def test_a_segment_that_is_read_on(tmp_path: Path) -> None:
    header = encode_header(["old"], {"old": {ACCOUNT: Spent(1, 1, 1, 1.0)}})
    parts = [record(1), record(2), b"damaged", record(3, v=2), record(4, v=5), line_of([]), header[:-1], record(1)]
    data = b"\n".join(parts) + b"\ntorn"
    folder = folder_of(tmp_path, **{FIRST: data, SECOND: header + record(7) + b"\n"})
    found = read_on(folder, Segment(FIRST), len(data))
    assert (found.scanned, found.size, found.torn) == (len(data) - 4, len(data), True)
    assert (found.damaged, found.foreign, found.newer, found.opaque) == (1, 4, 5, False)
    assert found.sums == {FIRST: {ACCOUNT: Spent(3, 30, 60, 0.75)}}
    assert (found.replaces, found.supersedes) == (frozenset(), frozenset())
    entries = found.take(7)
    assert len(found.rows) == 0
    offsets = [0, len(record()) + 1, data.rindex(record(1))]
    assert [(int(one["offset"]), int(one["length"]), int(one["segment"])) for one in entries] == [
        (offset, len(record()), 7) for offset in offsets
    ]
    assert entries[1]["digest"].tobytes() == bytes.fromhex(key(2))
    # Nothing new: the same, and a copy that can be read on alone.
    again = read_on(folder, found, len(data))
    assert again == found
    assert again is not found
    merged = read_on(folder, Segment(SECOND), 10**6)
    assert (merged.replaces, merged.sums) == (frozenset({"old"}), {"old": {ACCOUNT: Spent(1, 1, 1, 1.0)}})
    assert merged.supersedes == frozenset({"old"})
    assert len(merged.take(0)) == 1
    assert merged.size == 10**6


def test_a_segment_of_another_versions_merge(tmp_path: Path) -> None:
    data = line_of({"merged": {}, "v": 3}) + b"\n" + record() + b"\n" + record(v=2) + b"\n"
    found = read_on(folder_of(tmp_path, **{FIRST: data}), Segment(FIRST), len(data))
    assert (found.opaque, found.foreign, found.newer, found.damaged) == (True, 2, 3, 0)


def test_a_sidecar_byte_by_byte(tmp_path: Path) -> None:
    data = record(1) + b"\ndamaged\n" + record(2, v=2) + b"\ntorn"
    folder = folder_of(tmp_path, **{FIRST: data})
    segment = read_on(folder, Segment(FIRST), len(data))
    packed = encode_sidecar(segment)
    meta = (
        b'{"v":1,"replaces":[],"sums":{"' + FIRST.encode() + b'":[["run","teacher","answers",1,10,20,0.25]]},'
        b'"foreign":1,"newer":2,"opaque":false}'
    )
    fixed = struct.pack("<8sQQQQQ", b"lionidx1", len(data), len(data) - 4, 1, 1, len(meta))
    rows = struct.pack("<32sQI", bytes.fromhex(key(1)), 0, len(record()))
    assert packed == fixed + meta + rows + struct.pack("<I", zlib.crc32(fixed + meta + rows))
    assert decode_sidecar(FIRST, packed) == segment
    for broken in (b"", packed[:-1], b"x" + packed[1:], packed[:60] + b"x" + packed[61:], packed + b"x"):
        assert decode_sidecar(FIRST, broken) is None
    assert load(folder, FIRST, len(data), sidecar=True) == segment, "without one it is read"
    # It is trusted as long as the size is right.
    trusted = decode_sidecar(FIRST, packed)
    assert trusted is not None
    trusted.damaged = 9
    (tmp_path / f"{FIRST}.idx").write_bytes(encode_sidecar(trusted))
    assert load(folder, FIRST, len(data), sidecar=True).damaged == 9
    assert load(folder, FIRST, len(data), sidecar=False).damaged == 1
    assert load(folder, FIRST, len(data) - 1, sidecar=True).damaged == 1


@pytest.mark.parametrize(
    ("meta", "known"),
    [
        ({"v": 1, "replaces": ["a"], "sums": {}}, (0, 0, False)),
        ({"replaces": ["a"], "sums": {}}, (0, 0, False)),
        ({"v": 1, "replaces": ["a"], "sums": {}, "foreign": 2, "newer": 3, "opaque": True}, (2, 3, True)),
        ({"v": 1, "replaces": ["a"], "sums": {}, "foreign": 2}, None),
        ({"v": 2, "replaces": ["a"], "sums": {}}, None),
        ({"v": 1, "replaces": [3], "sums": {}}, None),
        ({"v": 1, "sums": {}}, None),
        ({"v": 1, "replaces": ["a"], "sums": {"x": [[3]]}}, None),
        ([], None),
    ],
)
def test_sidecars_of_other_versions(meta: Any, known: tuple[int, int, bool] | None) -> None:
    packed = orjson.dumps(meta)
    body = struct.pack("<8sQQQQQ", b"lionidx1", 20, 10, 3, 0, len(packed)) + packed
    found = decode_sidecar("n", body + struct.pack("<I", zlib.crc32(body)))
    if known is None:
        assert found is None
    else:
        assert found == Segment("n", 10, 20, 3, *known, frozenset({"a"}))


# -- the index --------------------------------------------------------------------------------------------------------


def digest(number: int, tail: int = 0) -> bytes:
    return number.to_bytes(8, "little") + bytes(23) + bytes([tail])


def entries(*rows: tuple[bytes, int, int, int]) -> Any:
    packed = b"".join(struct.pack("<32sQII", *row) for row in rows)
    return np.frombuffer(packed, ENTRY)


@pytest.mark.parametrize("most", [0, 1, 3, 100])
def test_the_index_step_by_step(most: int) -> None:
    index = Index(most)
    assert (len(index), index.find(digest(1)), index.nbytes) == (0, [], 0)
    index.add(digest(1), Where(0, 10, 5))
    index.add(digest(2), Where(0, 20, 5))
    index.add(digest(1), Where(1, 30, 6))
    index.add(digest(1, 1), Where(1, 40, 6))
    assert len(index) == 3
    assert sorted(index.find(digest(1))) == [Where(0, 10, 5), Where(1, 30, 6)]
    assert index.find(digest(1, 1)) == [Where(1, 40, 6)]
    assert index.find(digest(3)) == []
    index.extend([entries((digest(3), 50, 7, 2), (digest(1), 60, 7, 2)), entries()])
    assert len(index) == 4
    assert index.find(digest(3)) == [Where(2, 50, 7)]
    index.add(digest(3), Where(2, 50, 7))
    assert index.find(digest(3)) == [Where(2, 50, 7)], "one place is one copy"
    index.distrust(digest(3), Where(2, 50, 7))
    assert (index.find(digest(3)), len(index)) == ([], 3)
    index.distrust(digest(3), Where(2, 50, 7))
    assert len(index) == 3
    index.distrust(digest(1), Where(0, 10, 5))
    assert len(index) == 3
    index.extend([entries((digest(4), 70, 8, 3))])
    assert len(index) == 4
    index.drop([])
    index.drop([1])
    assert sorted(index.find(digest(1))) == [Where(2, 60, 7)]
    assert (index.find(digest(1, 1)), len(index)) == ([], 3)
    index.drop([2, 3])
    assert (index.find(digest(1)), index.find(digest(2)), len(index)) == ([], [Where(0, 20, 5)], 1)
    index.extend([entries((digest(3), 50, 7, 2))])
    assert (index.find(digest(3)), len(index)) == ([Where(2, 50, 7)], 2), "a dropped segment's damage is forgotten"


def test_the_size_of_the_index() -> None:
    index = Index(2)
    for number in range(3):
        index.add(digest(number), Where(0, number, 1))
    assert index.nbytes == 3 * 56
    index.add(digest(9), Where(0, 9, 1))
    assert index.nbytes == 3 * 56
    index.extend([entries((digest(5), 1, 1, 1), (digest(6), 1, 1, 1))])
    assert index.nbytes == 6 * 56
    exact = Index(2)
    exact.extend([entries((digest(5), 1, 1, 1), (digest(6), 1, 1, 1))])
    assert (exact.nbytes, len(exact)) == (0, 2)


def test_different_keys_that_begin_alike_are_told_apart() -> None:
    rows = [(digest(1, tail), place, 1, 0) for place, tail in enumerate((0, 1, 0, 2, 1, 0))]
    index = Index(1)
    index.extend([entries(*rows, (digest(2), 9, 1, 0))])
    assert len(index) == 4
    assert sorted(where.offset for where in index.find(digest(1))) == [0, 2, 5]


# -- verification -----------------------------------------------------------------------------------------------------


def test_everything_that_a_verification_finds(tmp_path: Path) -> None:
    header = encode_header(["old"], {})
    first = record(1) + b"\ndamaged\n" + record(2, v=2) + b"\n" + header + record(3) + b"\ntorn"
    second = header + record(4) + b"\n"
    third = record(5) + b"\n"
    folder = folder_of(tmp_path, **{FIRST: first, SECOND: second, THIRD: third, "notes": b"x"})
    longer = read_on(folder, Segment(SECOND), len(second))
    longer.size += 7
    (tmp_path / f"{SECOND}.idx").write_bytes(encode_sidecar(longer))
    shorter = read_on(folder, Segment(THIRD), len(third))
    shorter.size -= 1
    (tmp_path / f"{THIRD}.idx").write_bytes(encode_sidecar(shorter))
    fourth = f"{4:020d}-aa-0.calls"
    (tmp_path / fourth).write_bytes(third)
    (tmp_path / f"{fourth}.idx").write_bytes(b"x")
    at = {what: first.index(what) for what in (b"damaged", record(2, v=2), header, b"torn")}
    found = verify(folder)
    assert found == Verified(
        segments=4,
        records=5,
        bytes=len(first) + len(second) + 2 * len(third),
        damaged=[
            Fault(FIRST, at[b"damaged"], "damaged line"),
            Fault(SECOND, len(second), "ends 7 bytes before its sidecar says"),
        ],
        torn=[Fault(FIRST, at[b"torn"], "torn tail of 4 bytes")],
        foreign=[
            Fault(FIRST, at[record(2, v=2)], "foreign line: of version 2"),
            Fault(FIRST, at[header], "foreign line: a header in the middle"),
        ],
        sidecars=[
            Fault(f"{THIRD}.idx", 0, "made for an earlier state of its segment"),
            Fault(f"{fourth}.idx", 0, "damaged, or of another version"),
        ],
    )


def test_a_survey_and_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    data = record(1) + b"\ndamaged\n" + record(2, v=2) + b"\n" + record(1) + b"\n"
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / FIRST).write_bytes(data)
    folder = Folder.at(str(tmp_path / "journal"))
    assert survey(folder) == Survey(1, 1, len(data), 1, 1, {ACCOUNT: Spent(2, 20, 40, 0.5)})
    (tmp_path / "journal" / FIRST).unlink()
    assert verify(folder) == Verified()
    (tmp_path / "file").write_bytes(b"")
    for work in (verify, survey):
        with pytest.raises(InfrastructureError) as caught:
            work(Folder.at(str(tmp_path / "file")))
        assert str(caught.value).startswith(f"the journal {tmp_path}/file cannot be read: ")


# -- compaction -------------------------------------------------------------------------------------------------------


def names(tmp_path: Path) -> list[str]:
    return sorted(one.name for one in tmp_path.iterdir() if one.suffix == ".calls")


def test_everything_that_a_compaction_counts(tmp_path: Path) -> None:
    first = record(1) + b"\ndamaged\n" + record(2, v=2) + b"\n" + record(3) + b"\n"
    second = record(1, text="later") + b"\n" + record(4) + b"\ntorn"
    third = record(3) + b"\n"
    folder = folder_of(tmp_path, **{FIRST: first, SECOND: second, THIRD: third})
    report = compact(folder)
    (merged,) = names(tmp_path)
    assert merged.startswith(FIRST.removesuffix(".calls") + "m")
    data = (tmp_path / merged).read_bytes()
    before = len(first) + len(second) + len(third)
    assert report == Compacted(3, 1, before, len(data), damaged=2, copies=2, live=0, foreign=1, opaque=0)
    sums = {
        FIRST: {ACCOUNT: Spent(2, 20, 40, 0.5)},
        SECOND: {ACCOUNT: Spent(2, 20, 40, 0.5)},
        THIRD: {ACCOUNT: Spent(1, 10, 20, 0.25)},
    }
    assert data == encode_header([FIRST, SECOND, THIRD], sums) + b"".join(
        line + b"\n" for line in (record(1), record(2, v=2), record(3), record(4))
    )
    sidecar = decode_sidecar(merged, (tmp_path / f"{merged}.idx").read_bytes())
    read = read_on(folder, Segment(merged), len(data))
    assert sidecar == read
    assert (read.sums, read.foreign, read.newer) == (sums, 1, 2)
    assert verify(folder) == Verified(
        1, 3, len(data), foreign=[Fault(merged, data.index(record(2, v=2)), "foreign line: of version 2")]
    )
    # Nothing is left to do; its sidecar is made again if it is lost.
    (tmp_path / f"{merged}.idx").unlink()
    assert compact(folder) == Compacted(1, 1, len(data), len(data), foreign=1)
    assert decode_sidecar(merged, (tmp_path / f"{merged}.idx").read_bytes()) == read
    assert names(tmp_path) == [merged]


def test_segments_that_a_compaction_leaves_alone(tmp_path: Path) -> None:
    opaque = line_of({"merged": {}, "v": 3}) + b"\n"
    live = [f"{number:020d}-bb-0.calls" for number in (4, 5)]
    plain = {name: record(number) + b"\n" for number, name in enumerate((FIRST, SECOND, *live, f"{7:020d}-aa-0.calls"))}
    other = f"{6:020d}-aa-0m00.calls"
    folder = folder_of(tmp_path, **{**plain, other: opaque, f"{8:020d}-aa-0.calls": record(9) + b"\n"})
    locks = [folder.try_lock(name) for name in live]
    try:
        report = compact(folder)
    finally:
        for lock in locks:
            assert lock is not None
            os.close(lock)
    left = names(tmp_path)
    assert [name for name in left if name in (*live, other)] == [*live, other]
    assert len(left) == 5, "neighbours alone are merged: two before the live ones, two after the other version's"
    assert (report.segments_before, report.segments_after) == (7, 5)
    assert (report.live, report.opaque, report.foreign, report.damaged, report.copies) == (2, 1, 1, 0, 0)


def test_how_much_is_merged_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(record()) + 1
    made = {f"{number:020d}-aa-0.calls": record(number) + b"\n" for number in range(1, 7)}
    folder = folder_of(tmp_path, **made)
    assert compact(folder, merged_bytes=2 * size).segments_after == 3
    for name in tmp_path.iterdir():
        name.unlink()
    folder = folder_of(tmp_path, **made)
    monkeypatch.setattr("lion_ray.gateway.journal.compaction.MOST_LOCKED", 3)
    assert compact(folder).segments_after == 2
    (tmp_path / "one").mkdir()
    single = folder_of(tmp_path / "one", **{FIRST: record() + b"\n"})
    assert compact(single).segments_after == 1
    assert names(tmp_path / "one") == [FIRST], "nothing to drop: only its sidecar is made"
    assert (tmp_path / "one" / f"{FIRST}.idx").exists()
    (tmp_path / "one" / FIRST).write_bytes(record() + b"\ntorn")
    assert compact(single).damaged == 1
    assert names(tmp_path / "one") != [FIRST]


def test_what_an_interrupted_compaction_left_is_removed(tmp_path: Path) -> None:
    merged = f"{1:020d}-aa-0m12ab.calls"
    header = encode_header([FIRST, SECOND], {FIRST: {ACCOUNT: Spent(1, 10, 20, 0.25)}, SECOND: {}})
    old = ".other.txt.part"
    folder = folder_of(
        tmp_path,
        **{
            merged: header + record() + b"\n",
            FIRST: record() + b"\n",
            f"{FIRST}.idx": b"x",
            f"{THIRD}.idx": b"orphan",
            f".{merged}.1234abcd.part": b"x",
            f".{merged}.idx.1234abcd.part": b"x",
            f".{FIRST}.1234abcd.part": b"kept: a writer may be at it",
            old: b"x",
        },
    )
    os.utime(tmp_path / old, (1.0, 1.0))
    compact(folder)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        (merged, f"{merged}.idx", f".{FIRST}.1234abcd.part", "compaction.lock")
    )


def test_a_compaction_that_cannot_be_done(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{FIRST: record() + b"\n"})
    lock = folder.try_lock("compaction.lock", create=True)
    assert lock is not None
    with pytest.raises(InfrastructureError) as caught:
        compact(folder)
    assert str(caught.value) == f"the journal {tmp_path} is being compacted by another process"
    os.close(lock)
    with pytest.raises(InfrastructureError) as caught:
        compact(Folder.at(str(tmp_path / "none")))
    assert str(caught.value).startswith(f"the journal {tmp_path}/none cannot be compacted: ")


def test_a_writers_own_objects_are_merged(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{FIRST: record(1) + b"\n", SECOND: record(2) + b"\n", THIRD: record(3) + b"\n"})
    merge_own(folder, [FIRST, "missing"])
    assert names(tmp_path) == [FIRST, SECOND, THIRD]
    merge_own(folder, [SECOND, FIRST])
    merged, other = names(tmp_path)
    assert (other, merged.startswith(FIRST.removesuffix(".calls") + "m")) == (THIRD, True)
    assert (tmp_path / merged).read_bytes().endswith(record(1) + b"\n" + record(2) + b"\n")


# -- what may have been billed ----------------------------------------------------------------------------------------


def test_uncertain_costs_byte_by_byte(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    assert read_uncertain(folder) == []
    one, two = UncertainFile(folder), UncertainFile(folder)
    assert one.path == f"{tmp_path}/uncertain/{one.name}"
    assert (len(one.name.split("-")[0]), one.name.endswith(".json")) == (20, True)
    one.add(ACCOUNT, "e", 0.5)
    one.add(ACCOUNT, "e", 0.25)
    one.add(ACCOUNT, "f", 1.0)
    two.add(Account(), "e", 2.0)
    assert one.encoded() == (
        b'{"version":1,"uncertain":[["run","teacher","answers","e",2,0.75],["run","teacher","answers","f",1,1.0]]}'
    )
    for file in (one, two, one):
        file.write(file.encoded())
    assert one.sums == [Uncertain(ACCOUNT, "e", 2, 0.75), Uncertain(ACCOUNT, "f", 1, 1.0)]
    assert read_uncertain(folder, but=two.name) == one.sums
    assert total_uncertain(read_uncertain(folder)) == 3.75
    (tmp_path / "uncertain" / ".x.json").write_bytes(b"hidden")
    (tmp_path / "uncertain" / "x.txt").write_bytes(b"other")
    assert len(read_uncertain(folder)) == 3
    (tmp_path / "uncertain" / "x.json").write_bytes(b'{"version":1,"uncertain":[["r","o","s","e",1,-2]]}')
    assert read_uncertain(folder, but=two.name)[2:] == [Uncertain(Account("r", "o", "s"), "e", 1, 0.0)]
    for data, why in (
        (b'{"version":2}', "of version 2, but this lion-ray knows 1"),
        (b'{"version":1,"uncertain":[["r"]]}', "not enough values to unpack (expected 6, got 1)"),
        (b"{}", "'version'"),
    ):
        (tmp_path / "uncertain" / "x.json").write_bytes(data)
        with pytest.raises(InfrastructureError) as caught:
            read_uncertain(folder)
        assert str(caught.value) == (
            f"{tmp_path}/uncertain/x.json cannot be read ({why}): it holds costs that may have been billed without an "
            "answer and count against budgets. Move it away to continue; then they do not count"
        )
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "uncertain").write_bytes(b"")
    with pytest.raises(InfrastructureError) as caught:
        read_uncertain(Folder.at(str(tmp_path / "below")))
    assert str(caught.value).startswith(f"what may have been billed, in {tmp_path}/below/uncertain, cannot be read: ")


# -- records of batches -----------------------------------------------------------------------------------------------


def batch(nonce: str = "n1", **more: Any) -> BatchRecord:
    known: dict[str, Any] = {
        "address": "https://api.test",
        "endpoint": "e",
        "keys": ["k"],
        "made_at": 1.0,
        "tried_at": 2,
    }
    return BatchRecord(nonce, **(known | more))


def test_records_of_batches_byte_by_byte(tmp_path: Path) -> None:
    records = BatchRecords(str(tmp_path))
    assert not records.any()
    assert records.reread("n1") is None
    records.remove("n1")
    records.write(batch())
    assert records.any()
    assert (tmp_path / "batches" / "n1.json").read_bytes() == (
        b'{"nonce":"n1","address":"https://api.test","endpoint":"e","keys":["k"],"made_at":1.0,"tried_at":2,'
        b'"input_file_id":null,"batch_id":null,"version":1}'
    )
    assert records.reread("n1") == batch()
    records.write(batch("n2", made_at=0.5, input_file_id="f", batch_id="b"))
    records.write(batch("n3", address="https://other.test"))
    assert records.load("https://api.test") == [batch("n2", made_at=0.5, input_file_id="f", batch_id="b"), batch()]
    (tmp_path / "batches" / "notes.txt").write_bytes(b"x")
    assert len(records.load("https://other.test")) == 1
    records.remove("n1")
    assert records.reread("n1") is None
    assert BatchRecords(str(tmp_path / "new")).load("https://api.test") == []
    assert (tmp_path / "new" / "batches").is_dir()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"keys": "k"}, "its keys are not a list"),
        ({"keys": [3]}, "one of its text fields is not text"),
        ({"endpoint": 3}, "one of its text fields is not text"),
        ({"address": None}, "one of its text fields is not text"),
        ({"batch_id": 3}, "one of its text fields is not text"),
        ({"input_file_id": 3}, "one of its text fields is not text"),
        ({"made_at": "1"}, "its times are not numbers"),
        ({"tried_at": True}, "its times are not numbers"),
        ({"nonce": "n2"}, "it belongs to another batch"),
    ],
)
def test_a_batch_record_that_is_damaged(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    records = BatchRecords(str(tmp_path))
    records.write(batch())
    path = tmp_path / "batches" / "n1.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | change))
    for work in (lambda: records.reread("n1"), lambda: records.load("https://api.test")):
        with pytest.raises(InfrastructureError) as caught:
            work()
        assert str(caught.value) == (
            f"the batch record {path} is damaged ({why}): its purchases are unknown. Move it away to continue; the "
            "calls in it are then bought again"
        )


def test_batch_records_that_cannot_be_used(tmp_path: Path) -> None:
    records = BatchRecords(str(tmp_path))
    records.write(batch())
    path = tmp_path / "batches" / "n1.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"version": 2}))
    with pytest.raises(ConfigError) as caught:
        records.reread("n1")
    assert str(caught.value) == (
        f"the batch record {path}: a newer lion-ray wrote it (version 2; this version knows 1); use that version, or "
        "another journal"
    )
    (tmp_path / "file").write_bytes(b"")
    lost = BatchRecords(str(tmp_path / "file"))
    for work, began in (
        (lambda: lost.load("x"), f"the batches in the journal {tmp_path}/file cannot be read: "),
        (lambda: lost.write(batch()), f"the batch record {tmp_path}/file/batches/n1.json cannot be written: "),
        (lambda: lost.reread("n1"), f"the batch record {tmp_path}/file/batches/n1.json cannot be read: "),
        (lambda: lost.remove("n1"), f"the batch record {tmp_path}/file/batches/n1.json cannot be removed: "),
    ):
        with pytest.raises(InfrastructureError) as failed:
            work()
        assert str(failed.value).startswith(began)
        assert len(str(failed.value)) > len(began) + 4
