"""An index of a journal's records, for millions of them.

Invariants:
- Every copy of a record is indexed, because the first may turn out to be damaged.
- `find` takes no lock and sees every record added before it was called.
- A record takes 56 bytes once it is frozen: recent ones are in a dict, the others in arrays sorted by 8 bytes of the
  key's digest.
- Each array has at least `RATIO` times the records of the next. So adding n records moves each of them some log n
  times, and a search visits few arrays.

This module knows nothing of files: a segment is a number.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_RECENT = 65_536
"""The most records in the dict before they are frozen."""
RATIO = 8
"""A new array is merged with an older one that is not so many times as large."""
ENTRY = np.dtype([("digest", "<u8", (4,)), ("offset", "<u8"), ("length", "<u4"), ("segment", "<u4")])
_PACKED = struct.Struct("<32sQII")
Entries = npt.NDArray[Any]


class Where(NamedTuple):
    """A record's segment, and its line's offset and length in bytes, without the newline."""

    segment: int
    offset: int
    length: int


class Index:
    """Maps digests of 32 bytes to their records' positions."""

    def __init__(self, most_recent: int = MOST_RECENT) -> None:
        self._most_recent = most_recent
        self._lock = threading.Lock()
        self._recent: dict[bytes, tuple[Where, ...]] = {}
        self._frozen: tuple[_Frozen, ...] = ()
        self._bad: set[tuple[int, int]] = set()
        self._distinct = 0

    def __len__(self) -> int:
        """The number of keys with a copy that is not known to be damaged."""
        return self._distinct

    @property
    def nbytes(self) -> int:
        """The size of the frozen part, in bytes."""
        return sum(int(heads.nbytes + entries.nbytes) for heads, entries in self._frozen)

    def find(self, digest: bytes) -> list[Where]:
        """All copies that are not known to be damaged, in no particular order."""
        # In this order: freezing fills the arrays before it empties the dict.
        recent = self._recent.get(digest, ())
        frozen = [where for level in self._frozen for where in _search(level, digest)]
        if not frozen and not recent:
            return []
        found = list(dict.fromkeys((*frozen, *recent)))
        return [where for where in found if (where.segment, where.offset) not in self._bad] if self._bad else found

    def add(self, digest: bytes, where: Where) -> None:
        """Add one record."""
        with self._lock:
            self._add(digest, where)

    def extend(self, blocks: Iterable[Entries]) -> None:
        """Add many records, as arrays of ENTRY."""
        blocks = [block for block in blocks if len(block)]
        with self._lock:
            if sum(map(len, blocks)) > self._most_recent:
                self._rebuild(blocks)
                return
            for block in blocks:
                for digest, *where in _PACKED.iter_unpack(block.tobytes()):
                    self._add(digest, Where(where[2], where[0], where[1]))

    def drop(self, segments: Collection[int]) -> None:
        """Forget all records of some segments."""
        if not segments:
            return
        with self._lock:
            kept = [entries[~np.isin(entries["segment"], list(segments))] for _, entries in self._frozen]
            recent = {
                digest: left
                for digest, copies in self._recent.items()
                if (left := tuple(where for where in copies if where.segment not in segments))
            }
            self._bad = {place for place in self._bad if place[0] not in segments}
            self._frozen, self._recent = (_freeze(kept),), recent
            self._count()

    def distrust(self, digest: bytes, where: Where) -> None:
        """Exclude this copy from results, because it is damaged."""
        with self._lock:
            before = bool(self.find(digest))
            self._bad.add((where.segment, where.offset))
            self._distinct -= before and not self.find(digest)

    def _add(self, digest: bytes, where: Where) -> None:
        if not self.find(digest):
            self._distinct += 1
        self._recent[digest] = (*self._recent.get(digest, ()), where)
        if len(self._recent) > self._most_recent:
            self._freeze_recent()

    def _freeze_recent(self) -> None:
        """Empty the dict into a new array, merged with those that are not `RATIO` times as large."""
        levels, merged = list(self._frozen), [self._packed()]
        while levels and len(levels[-1][0]) < RATIO * sum(map(len, merged)):
            merged.insert(0, levels.pop()[1])
        self._frozen = (*levels, _freeze(merged))
        self._recent = {}

    def _packed(self) -> Entries:
        recent = b"".join(
            _PACKED.pack(digest, where.offset, where.length, where.segment)
            for digest, copies in self._recent.items()
            for where in copies
        )
        return np.frombuffer(recent, ENTRY)

    def _rebuild(self, blocks: list[Entries]) -> None:
        """Merge everything, with `blocks`, into one array."""
        self._frozen = (_freeze([*(entries for _, entries in self._frozen), self._packed(), *blocks]),)
        self._recent = {}
        self._count()

    def _count(self) -> None:
        """Recount the distinct keys, where there is one array."""
        ((heads, entries),) = self._frozen
        same = np.flatnonzero(heads[1:] == heads[:-1])
        digests = entries["digest"]
        equal = (digests[same] == digests[same + 1]).all(axis=1)
        self._distinct = len(heads) - int(equal.sum())
        for head in np.unique(heads[same[~equal]]):
            # Different keys with the same first 8 bytes (one in a billion): copies of one need not be adjacent.
            run = digests[heads.searchsorted(head) : heads.searchsorted(head, side="right")]
            alike = int((run[1:] == run[:-1]).all(axis=1).sum())
            self._distinct += len({one.tobytes() for one in run}) - (len(run) - alike)
        self._distinct += sum(not _search(self._frozen[0], digest) for digest in self._recent)
        # Few, if any: only the copies that `get` found damaged.
        bad = set()
        for segment, offset in self._bad:
            for at in np.flatnonzero((entries["segment"] == segment) & (entries["offset"] == offset)):
                bad.add(digests[at].tobytes())
            bad |= {
                digest
                for digest, copies in self._recent.items()
                if any((where.segment, where.offset) == (segment, offset) for where in copies)
            }
        self._distinct -= sum(not self.find(digest) for digest in bad)


_Frozen = tuple[npt.NDArray[np.uint64], Entries]


def _freeze(blocks: list[Entries]) -> _Frozen:
    """One array sorted by the digests' first 8 bytes, and a contiguous array of these bytes for searching."""
    entries = np.concatenate(blocks) if blocks else np.empty(0, ENTRY)
    heads = np.ascontiguousarray(entries["digest"][:, 0])
    # A stable sort uses existing sorted runs, so adding a few entries to many is fast.
    order = np.argsort(heads, kind="stable")
    return heads[order], entries[order]


def _search(frozen: _Frozen, digest: bytes) -> list[Where]:
    heads, entries = frozen
    if not len(heads):
        return []
    head = np.uint64(int.from_bytes(digest[:8], "little"))
    at = int(heads.searchsorted(head))
    found = []
    while at < len(heads) and heads[at] == head:
        known, offset, length, segment = _PACKED.unpack(entries[at].tobytes())
        if known == digest:
            found.append(Where(segment, offset, length))
        at += 1
    return found
