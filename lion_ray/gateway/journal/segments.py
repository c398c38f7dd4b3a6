"""Segments, the files that hold records, and their sidecars, which are binary indexes.

Invariants:
- A segment's name sorts by its writer's start, its writer, and its number among the writer's segments. A merged segment
  sorts at the place of the first that it replaces. The start is a clock time, or one more than the largest existing
  start if the clock is behind that.
- A sidecar is a cache: it is trusted only if its CRC matches and the segment has the size that it records. Without it
  the segment is read, with the same result.
- A line counts as paid if it is intact now, or was when its segment was sealed or merged.
- The bytes after the last newline are a torn tail: not a line, and perhaps still being written.

This module knows nothing of who reads or writes.
"""

from __future__ import annotations

import re
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import orjson

from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.index import ENTRY, Entries
from lion_ray.gateway.journal.record import (
    VERSION,
    Foreign,
    Head,
    Header,
    as_name,
    decode_head,
    decode_header,
    is_intact,
)
from lion_ray.gateway.journal.spending import Sums, add_to, from_json, to_json

SUFFIX = ".calls"
SIDECAR = ".idx"
CHUNK_BYTES = 8 * 2**20

_MERGED = re.compile(r"m[0-9a-f]+\.calls$")
_MAGIC = b"lionidx1"
_FIXED = struct.Struct("<8sQQQQQ")  # magic; bytes of segment, of its whole lines; damaged lines; records; bytes of JSON
_CRC = struct.Struct("<I")
_STORED = np.dtype([("digest", "<u8", (4,)), ("offset", "<u8"), ("length", "<u4")])
_ROW = struct.Struct("<32sQI")


class Place(NamedTuple):
    """A record's position: its segment's name, and its line's offset and length in bytes, without the newline."""

    segment: str
    offset: int
    length: int


@dataclass(slots=True)
class Segment:
    """The content of a segment, as far as it was read."""

    name: str
    scanned: int = 0
    """Bytes up to the end of the last complete line."""
    size: int = 0
    """In bytes, when it was last read."""
    damaged: int = 0
    """Lines whose CRC does not match."""
    foreign: int = 0
    """Intact lines of another version or another tool."""
    newer: int = 0
    """Their highest version if it is newer than ours, else 0."""
    opaque: bool = False
    """It begins with the header of another version's merged segment: only that version may change it."""
    replaces: frozenset[str] = frozenset()
    """The files that were merged into it."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """The spending, by the segment that a line was first written to."""
    rows: bytearray = field(default_factory=bytearray)
    """The records found but not yet taken: digest, offset, length."""

    @property
    def torn(self) -> bool:
        return self.size > self.scanned

    @property
    def supersedes(self) -> frozenset[str]:
        """The files that this one makes unnecessary to read."""
        return self.replaces | self.sums.keys() if self.replaces else frozenset()

    def add(self, head: Head, offset: int, length: int) -> None:
        """Add a record. In a merged segment the header already includes its cost."""
        self.rows += _ROW.pack(head.digest, offset, length)
        if not self.replaces:
            add_to(self.sums.setdefault(self.name, {}), head.account, head.spent)

    def take(self, number: int) -> Entries:
        """The records found since the last call, for the index, in which this segment has this `number`."""
        stored = np.frombuffer(bytes(self.rows), _STORED)
        self.rows = bytearray()
        entries = np.empty(len(stored), ENTRY)
        for name in ("digest", "offset", "length"):
            entries[name] = stored[name]
        entries["segment"] = number
        return entries

    def copy(self) -> Segment:
        """A copy to continue reading in, so that a failed read leaves the original unchanged."""
        sums = from_json(to_json(self.sums))
        known = (self.damaged, self.foreign, self.newer, self.opaque, self.replaces)
        return Segment(self.name, self.scanned, self.size, *known, sums, bytearray(self.rows))


def merged_name(first: str) -> str:
    """A new name for a merged segment that replaces `first` and its followers."""
    return f"{_MERGED.sub('', first).removesuffix(SUFFIX)}m{secrets.token_hex(4)}{SUFFIX}"


def newest(names: Iterable[str]) -> int:
    """The largest start number in the segments' names; 0 if there is none."""
    numbers = (name.partition("-")[0] for name in names if name.endswith(SUFFIX))
    return max((int(one) for one in numbers if len(one) == 20 and one.isascii() and one.isdigit()), default=0)


def is_merged(name: str) -> bool:
    return _MERGED.search(name) is not None


def lines(folder: Folder, name: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each complete line from `start` to `end`, without the newline."""
    with folder.open(name) as file:
        end = file.size() if end is None else min(end, file.size())
        rest = b""
        begins = start  # where `rest` begins in the file
        while start < end:
            data = file.read_at(min(CHUNK_BYTES, end - start), start)
            if not data:
                return
            start += len(data)
            data = rest + data if rest else data
            at = 0
            while (newline := data.find(b"\n", at)) >= 0:
                yield begins + at, data[at:newline]
                at = newline + 1
            rest = data[at:]
            begins += at


def decode_line(line: bytes) -> Head | Header | Foreign | None:
    """Decode a line without its newline. Returns None if it is damaged."""
    if not is_intact(line):
        return None
    return decode_head(line) or decode_header(line) or Foreign("not a line of a journal")


def read_on(folder: Folder, known: Segment, size: int) -> Segment:
    """Continue reading a segment of `size` bytes, and flush it so that what was read survives a power cut."""
    segment = known.copy()
    for offset, line in lines(folder, segment.name, segment.scanned, size):
        segment.scanned = offset + len(line) + 1
        match decode_line(line):
            case Head() as head:
                segment.add(head, offset, len(line))
            case Header() as header if offset == 0:
                segment.replaces, segment.sums = header
            case Foreign(_, newer) if offset == 0 and decode_header(line) is not None:
                segment.foreign, segment.newer, segment.opaque = 1, newer, True
            case Foreign(_, newer):
                segment.foreign, segment.newer = segment.foreign + 1, max(segment.newer, newer)
            case Header():
                segment.foreign += 1
            case _:
                segment.damaged += 1
    segment.size = max(size, segment.scanned)
    if segment.scanned > known.scanned:
        # Its writer may be, or have died, between writing and flushing, but served records must not be lost.
        folder.flush(segment.name)
    return segment


def load(folder: Folder, name: str, size: int, *, sidecar: bool) -> Segment:
    """A segment of `size` bytes from its sidecar, or by reading it if the sidecar is missing or not trusted."""
    if sidecar:
        try:
            data = folder.read_all(name + SIDECAR)
        except FileNotFoundError:
            data = b""
        segment = decode_sidecar(name, data)
        if segment is not None and segment.size == size:
            return segment
    return read_on(folder, Segment(name), size)


def encode_sidecar(segment: Segment) -> bytes:
    """The sidecar of a segment whose records are all still in `rows`."""
    more = {name: getattr(segment, name) for name in ("foreign", "newer", "opaque")} if segment.foreign else {}
    meta = orjson.dumps({"v": VERSION, "replaces": sorted(segment.replaces), "sums": to_json(segment.sums)} | more)
    count = len(segment.rows) // _ROW.size
    fixed = _FIXED.pack(_MAGIC, segment.size, segment.scanned, segment.damaged, count, len(meta))
    data = b"".join((fixed, meta, segment.rows))
    return data + _CRC.pack(zlib.crc32(data))


def decode_sidecar(name: str, data: bytes) -> Segment | None:
    """Decode the sidecar of segment `name`. Returns None if it is damaged or of another version."""
    if len(data) < _FIXED.size + _CRC.size or data[: len(_MAGIC)] != _MAGIC:
        return None
    body = memoryview(data)[: -_CRC.size]
    if _CRC.unpack_from(data, len(body))[0] != zlib.crc32(body):
        return None
    _, size, scanned, damaged, count, length = _FIXED.unpack_from(data)
    if len(body) != _FIXED.size + length + count * _ROW.size:
        return None
    rows = bytearray(body[_FIXED.size + length :])
    try:
        meta = orjson.loads(body[_FIXED.size : _FIXED.size + length])
        foreign = int(meta.get("foreign", 0))
        if meta.get("v", 1) != VERSION or (foreign and "newer" not in meta):
            return None
        replaces = frozenset(map(as_name, meta["replaces"]))
        known = foreign, int(meta.get("newer", 0)), bool(meta.get("opaque")), replaces
        return Segment(name, scanned, size, damaged, *known, from_json(meta["sums"]), rows)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
