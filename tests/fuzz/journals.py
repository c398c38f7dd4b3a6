"""Targets: a journal's segments, their sidecars, and the records of uncertain calls."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import orjson

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.calls import Account, Completion
from lion_ray.gateway.journal import segments
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.reader import Reader
from lion_ray.gateway.journal.record import decode_record, encode_header, encode_record
from lion_ray.gateway.journal.spending import Spent, total
from lion_ray.gateway.journal.uncertain import read_uncertain
from tests.fuzz.target import FOLDER, Draw, target

NAME = "00000000000000000001-dead-00000000.calls"
OTHER = "00000000000000000002-dead-00000000.calls"
ACCOUNT = Account("run-1", "teacher", "answers-0")
FIELDS = (
    *("key", "v", "run", "role", "stage", "at", "logprobs", "endpoint", "model", "finish_reason", "prompt_tokens"),
    *("completion_tokens", "cached_tokens", "seconds", "cost_usd", "text", "merged", "replaces", "sums", NAME, OTHER),
)


def _completion(number: int) -> Completion:
    return Completion(
        key=f"{number:064x}",
        text=f"answer {number}",
        finish_reason="stop",
        model="m",
        endpoint="api",
        prompt_tokens=3,
        completion_tokens=2,
        cached_tokens=0,
        seconds=0.5,
        cost_usd=0.01,
        replayed=False,
    )


def _with_sum(line: bytes) -> bytes:
    return b"%08x %s" % (zlib.crc32(line), line)


def _record(number: int, **fields: object) -> bytes:
    """A record's line, independent of the time."""
    record = orjson.loads(encode_record(_completion(number), ACCOUNT)[9:]) | {"at": 1.0} | fields
    return _with_sum(json.dumps(record, separators=(",", ":")).encode()) + b"\n"


def _segments() -> Iterable[bytes]:
    record = _record(1)
    header = encode_header([OTHER], {OTHER: {ACCOUNT: Spent(1, 3, 2, 0.01)}})
    yield b"\0" + record + _record(2)
    yield b"\0" + header + record
    yield b"\1" + record[9:] + header[9:]
    yield b"\1" + header[9:] + record[9:]
    yield b"\2" + bytes(range(250))


@target("journal-segments", InfrastructureError, seeds=_segments)
def journal_segments(data: bytes) -> None:
    """Read, look up, compact and read again: the answers and the spending stay the same."""
    draw = Draw(data)
    root = FOLDER.empty()
    match draw.below(3):
        case 0:
            content = draw.rest()
        case 1:  # each line with a valid checksum
            content = b"".join(_with_sum(line) + b"\n" for line in draw.rest().split(b"\n"))
        case _:
            content = b""
            for _ in range(1 + draw.below(4)):
                number = draw.below(3)
                content += _record(number, **{draw.choice(FIELDS): draw.json(FIELDS, 3) for _ in range(draw.below(4))})
    # A segment with a header has a name for merged segments.
    name = segments.merged_name(NAME) if content[8:19] == b' {"merged":' else NAME
    (root / name).write_bytes(content)
    (root / OTHER).write_bytes(_record(1))
    before = _state(root)
    compact(Folder.at(str(root)))
    after = _state(root)
    assert before[0] == after[0], "the answers"
    assert before[1].keys() == after[1].keys()
    for account, spent in before[1].items():
        kept = after[1][account]
        assert (spent.calls, spent.prompt_tokens) == (kept.calls, kept.prompt_tokens), "the spending"


def _state(root: Path) -> tuple[dict[int, str | None], dict[Account, Spent]]:
    reader = Reader(Folder.at(str(root)))
    reader.update()
    answers: dict[int, str | None] = {}
    for number in range(3):
        found = [decode_record(reader.read(place)) for place in reader.find(f"{number:064x}")]
        answers[number] = next((one.text for one in found if one is not None), None)
    return answers, total([reader.sums()])


def _sidecars() -> Iterable[bytes]:
    root = FOLDER.empty()
    (root / NAME).write_bytes(_record(1))
    folder = Folder.at(str(root))
    side = segments.encode_sidecar(segments.load(folder, NAME, (root / NAME).stat().st_size, sidecar=False))
    yield b"\0" + side
    yield b"\1" + side[:-4]
    yield b"\2" + bytes(range(100))


@target("journal-sidecars", seeds=_sidecars)
def journal_sidecars(data: bytes) -> None:
    draw = Draw(data)
    match draw.below(3):
        case 0:
            content = draw.rest()
        case 1:  # with a valid checksum
            content = draw.rest()
            content += zlib.crc32(content).to_bytes(4, "little")
        case _:
            meta = json.dumps({"replaces": draw.json(FIELDS, 2), "sums": draw.json(FIELDS, 4)}).encode()
            rows = bytes(44 * draw.below(3))
            fixed = b"lionidx1" + b"".join(n.to_bytes(8, "little") for n in (99, 99, 0, len(rows) // 44, len(meta)))
            content = fixed + meta + rows
            content += zlib.crc32(content).to_bytes(4, "little")
    found = segments.decode_sidecar(NAME, content)
    if found is not None:
        found.take(0)
        again = segments.decode_sidecar(NAME, segments.encode_sidecar(found.copy()))
        assert again is None or again.sums == found.sums
        total(found.sums.values())


def _notes() -> Iterable[bytes]:
    yield b'\0{"version": 1, "uncertain": [["run-1", "teacher", "answers-0", "api", 1, 0.5]]}'
    yield b"\1" + bytes(range(60))


@target("journal-uncertain", InfrastructureError, seeds=_notes)
def journal_uncertain(data: bytes) -> None:
    draw = Draw(data)
    if draw.below(2):
        rows = [[draw.json(FIELDS, 1) for _ in range(6)] for _ in range(draw.below(3))]
        content = json.dumps({"version": 1, "uncertain": rows}).encode()
    else:
        content = draw.rest()
    root = FOLDER.empty()
    (root / "uncertain").mkdir()
    (root / "uncertain" / "1.json").write_bytes(content)
    for one in read_uncertain(Folder.at(str(root))):
        assert one.usd >= 0
        assert isinstance(one.calls, int)
