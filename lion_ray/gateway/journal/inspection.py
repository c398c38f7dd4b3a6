"""Read-only inspection of a journal.

Invariants:
- Nothing is written, and live writers are not disturbed.
- A survey trusts sidecars; a verification reads every byte.
- A torn tail is not damage: it is a record whose commit was never confirmed, or one that is being written now.

This module knows nothing of its callers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lion_ray.core.errors import InfrastructureError
from lion_ray.core.storage import explain
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder
from lion_ray.gateway.journal.reader import Reader
from lion_ray.gateway.journal.record import Foreign, Head, Header
from lion_ray.gateway.journal.segments import SIDECAR, SUFFIX, decode_line, decode_sidecar, lines
from lion_ray.gateway.journal.spending import Sums


@dataclass(frozen=True, slots=True)
class Survey:
    """A summary of a journal."""

    calls: int
    """Distinct calls that can be served."""
    segments: int
    bytes: int
    """The size of the segments, without sidecars."""
    damaged: int
    """Lines that are known to be damaged or torn; sidecars are trusted."""
    foreign: int
    """Intact lines of another version or another tool."""
    sums: Sums
    """The total spending."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and its position."""

    file: str
    offset: int
    """In bytes."""
    reason: str


@dataclass(slots=True)
class Verified:
    """The result of reading every line."""

    segments: int = 0
    records: int = 0
    bytes: int = 0
    damaged: list[Fault] = field(default_factory=list)
    torn: list[Fault] = field(default_factory=list)
    foreign: list[Fault] = field(default_factory=list)
    """Intact lines that this version does not understand: kept, but not served."""
    sidecars: list[Fault] = field(default_factory=list)
    """Invalid sidecars; ignoring them only costs time."""


def survey(folder: Folder) -> Survey:
    """Summarise a journal (blocking). Raises InfrastructureError if it cannot be read."""
    reader = Reader(folder)
    reader.update()
    segments = reader.segments
    size = sum(segment.size for segment in segments)
    return Survey(len(reader.index), len(segments), size, reader.damaged, reader.foreign, reader.sums())


def verify(folder: Folder) -> Verified:
    """Read every line of a journal (blocking). Raises InfrastructureError if it cannot be read."""
    found = Verified()
    seen: set[str] = set()
    try:
        while new := {name: info.size for name, info in folder.list().items() if _is_new(name, seen)}:
            for name, size in sorted(new.items()):
                seen.add(name)
                try:
                    _verify(folder, name, size, found)
                except FileNotFoundError:
                    # Compacted meanwhile: the next listing has its replacement.
                    continue
    except STORAGE_ERRORS as cause:
        raise InfrastructureError(f"the journal {folder.path} cannot be read: {explain(cause)}") from cause
    return found


def _is_new(name: str, seen: set[str]) -> bool:
    return name.endswith(SUFFIX) and name not in seen


def _verify(folder: Folder, name: str, size: int, found: Verified) -> None:
    end = 0
    for offset, line in lines(folder, name, 0, size):
        end = offset + len(line) + 1
        what = decode_line(line)
        found.records += isinstance(what, Head)
        if isinstance(what, Foreign) or (isinstance(what, Header) and offset):
            why = what.why if isinstance(what, Foreign) else "a header in the middle"
            found.foreign.append(Fault(name, offset, f"foreign line: {why}"))
        if what is None:
            found.damaged.append(Fault(name, offset, "damaged line"))
    found.segments += 1
    found.bytes += size
    if end < size:
        found.torn.append(Fault(name, end, f"torn tail of {size - end} bytes"))
    try:
        data = folder.read(name + SIDECAR, 0, 2**62)
    except FileNotFoundError:
        return
    sealed = decode_sidecar(name, data)
    if sealed is None:
        found.sidecars.append(Fault(name + SIDECAR, 0, "damaged, or of another version"))
    elif sealed.size > size:
        found.damaged.append(Fault(name, size, f"ends {sealed.size - size} bytes before its sidecar says"))
    elif sealed.size < size:
        found.sidecars.append(Fault(name + SIDECAR, 0, "made for an earlier state of its segment"))
