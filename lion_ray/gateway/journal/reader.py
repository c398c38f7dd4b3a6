"""One process's view of a journal's folder: its segments, the records' positions, and the spending.

Invariants:
- Of several records with one key the first counts, by segment name and then by position: all readers of the same
  segments serve the same answer. Later copies are served only if the first is damaged.
- A segment that a merged one replaces is not read if the merged one exists.
- An update adds new segments, and drops removed ones only after it has their replacement.

This module writes nothing and knows nothing of prices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from lion_ray.core.errors import InfrastructureError
from lion_ray.core.storage import explain
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder
from lion_ray.gateway.journal.index import Index, Where
from lion_ray.gateway.journal.record import Head, digest_of
from lion_ray.gateway.journal.segments import SIDECAR, SUFFIX, Place, Segment, is_merged, load, read_on
from lion_ray.gateway.journal.spending import Sums, add_to, total, union

ATTEMPTS = 10
"""How often an update is restarted because of a concurrent compaction."""


class Reader:
    """The records in a folder's segments. Its methods may be called from any thread."""

    def __init__(self, folder: Folder) -> None:
        """Reads nothing yet."""
        self.folder = folder
        self.index = Index()
        self._lock = threading.Lock()
        self._updating = threading.Lock()
        self._known: dict[str, Segment] = {}
        self._claimed: set[str] = set()
        self._own: dict[str, Segment] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._unreadable = 0

    @property
    def damaged(self) -> int:
        """Lines that are damaged or torn; a line being written counts until an update finds it complete."""
        with self._lock:
            return self._unreadable + sum(segment.damaged + segment.torn for segment in self._known.values())

    @property
    def foreign(self) -> int:
        """Intact lines that this version does not understand: kept, but not served."""
        with self._lock:
            return sum(segment.foreign for segment in self._known.values())

    @property
    def newer(self) -> int:
        """The highest version of lines that a newer lion-ray wrote; 0 if there are none."""
        with self._lock:
            return max((segment.newer for segment in self._known.values()), default=0)

    @property
    def segments(self) -> list[Segment]:
        """The segments in use, in their order. Do not modify them."""
        with self._lock:
            return sorted((self._known | self._own).values(), key=lambda segment: segment.name)

    def sums(self) -> Sums:
        """The spending by account."""
        with self._lock:
            # Merged segments last: they may know the cost of a line that has been damaged since.
            files = sorted((self._known | self._own).values(), key=lambda segment: bool(segment.replaces))
            return total(union(segment.sums for segment in files).values())

    def find(self, key: str) -> list[Place]:
        """The positions of a key's records; the first one counts."""
        digest = digest_of(key)
        found = self.index.find(digest) if digest is not None else []
        if not found:
            return []
        return sorted(Place(self._names[where.segment], where.offset, where.length) for where in found)

    def read(self, place: Place) -> bytes:
        """A record's line. Raises FileNotFoundError if its segment was removed."""
        return self.folder.read(place.segment, place.offset, place.length)

    def distrust(self, key: str, place: Place) -> None:
        """Count a record as damaged and exclude it from results."""
        digest = digest_of(key)
        assert digest is not None
        with self._lock:
            self._unreadable += 1
            self.index.distrust(digest, Where(self._numbers[place.segment], place.offset, place.length))

    def claim(self, name: str) -> None:
        """Register a segment that this process will write, so that it is not read: its records come from `add_own`."""
        with self._lock:
            self._claimed.add(name)

    def add_own(self, written: Iterable[tuple[Head, Place]]) -> None:
        """Add records that this process has durably written to segments that it has claimed."""
        with self._lock:
            for head, place in written:
                segment = self._own.get(place.segment)
                if segment is None:
                    segment = self._own[place.segment] = Segment(place.segment)
                segment.scanned = segment.size = place.offset + place.length + 1
                add_to(segment.sums.setdefault(segment.name, {}), head.account, head.spent)
                self.index.add(head.digest, Where(self._number(place.segment), place.offset, place.length))

    def update(self) -> None:
        """Apply what was added, merged or deleted since the last update (blocking).

        Raises InfrastructureError if the folder cannot be listed or read.
        """
        try:
            with self._updating:
                for attempt in range(ATTEMPTS):
                    try:
                        self._update()
                        return
                    except FileNotFoundError:
                        # Compacted between listing and reading. The next listing has its replacement.
                        if attempt == ATTEMPTS - 1:
                            raise
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the journal {self.folder.path} cannot be read: {explain(cause)}") from cause

    def _update(self) -> None:
        with self._lock:
            before = self._known.keys() | self._own.keys()
            claimed = set(self._claimed)
        listed = self._list(before)
        sizes = {name: size for name, size in listed.items() if name.endswith(SUFFIX)}
        stale = sorted(
            name
            for name, size in sizes.items()
            if name not in claimed and not (name in self._known and self._known[name].size == size)
        )
        found: list[Segment] = []
        superseded: set[str] = set().union(*(self._known[name].supersedes for name in self._known if name in sizes))
        # Object stores hold many small segments and respond slowly, so several are read at once.
        with ThreadPoolExecutor(16) as readers:
            each = map if self.folder.is_local else readers.map
            for merged in (True, False):
                names = [name for name in stale if is_merged(name) == merged and name not in superseded]
                found += each(lambda name: self._read(name, listed), names)
                superseded.update(*(segment.supersedes for segment in found if segment.replaces))
        gone = (before - sizes.keys()) | ((before | {segment.name for segment in found}) & superseded)
        with self._lock:
            new = [segment for segment in found if segment.name not in superseded]
            self.index.extend(segment.take(self._number(segment.name)) for segment in new)
            self._known.update((segment.name, segment) for segment in new)
            self.index.drop({self._numbers[name] for name in gone if name in self._numbers})
            for name in gone:
                self._known.pop(name, None)
                self._own.pop(name, None)

    def _list(self, before: set[str]) -> dict[str, int]:
        """The files' sizes.

        A listing is not a snapshot: it may miss both a removed segment and the merged one that replaces it. So if a
        known segment is missing, the folder is listed again to find its replacement; the first time, when none is
        known, always.
        """
        listed = self.folder.sizes()
        expected = before or None
        for _ in range(ATTEMPTS):
            if expected is not None and expected <= listed.keys():
                break
            expected = {name for name in listed if name.endswith(SUFFIX)}
            listed = self.folder.sizes()
        return listed

    def _read(self, name: str, listed: dict[str, int]) -> Segment:
        known = self._known.get(name)
        size = listed[name]
        if known is not None and size >= known.scanned:
            return read_on(self.folder, known, size)
        return load(self.folder, name, size, sidecar=name + SIDECAR in listed)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number
