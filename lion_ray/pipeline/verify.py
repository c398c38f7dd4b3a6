"""Verify a run's folder: check every file, change nothing.

Invariants:
- Every file that a manifest names is read completely and compared with its SHA-256. Other tables and records are
  checked with their own checksums (`sealed`). The journal and the records of uncertain calls are read line by line.
- One damaged file does not hide others.
- Files that a running run is writing do not count as damaged.

Files of older versions without checksums are read, but do not count as proven. Checkpoints within a fit (`fits/`) have
no checksums and are not checked: the fit itself reports an unusable one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lion_ray.core import layout
from lion_ray.core.errors import InfrastructureError, LionError
from lion_ray.core.store import RunStore
from lion_ray.gateway.journal import inspection
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.uncertain import read_uncertain

_APART = {layout.JOURNAL, layout.FITS, layout.STALLS}


@dataclass(slots=True)
class Checked:
    """The result of a verification."""

    files: int = 0
    """Files without damage."""
    proven: int = 0
    """Files whose SHA-256 in a manifest matches."""
    bytes: int = 0
    """Bytes of the proven files."""
    stages: int = 0
    journal: dict[str, Any] | None = None
    """Counts of the journal; None if there is none."""
    faults: list[str] = field(default_factory=list)
    """One line for each fault, with the path."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(store: RunStore) -> Checked:
    """Verify everything in a run's folder.

    Raises:
        InfrastructureError: the storage could not list the folder.
    """
    found = Checked()
    proven: set[str] = set()
    names = list(_files(store, ""))
    for name in names:
        if name.rpartition("/")[2] == layout.MANIFEST:
            found.stages += 1
            proven |= _stage(store, name.rpartition("/")[0], found)
    for name in names:
        if name not in proven:
            _file(store, name, found)
    _journal(store, found)
    return found


def _files(store: RunStore, folder: str) -> Iterator[str]:
    for entry, is_folder in store.entries(folder):
        name = f"{folder}/{entry}" if folder else entry
        if entry.startswith(".") or (not folder and entry in _APART):
            continue
        if is_folder:
            yield from _files(store, name)
        else:
            yield name


def _stage(store: RunStore, name: str, found: Checked) -> set[str]:
    """Check the files that a manifest names. Returns all their names."""
    stage = store.stage(name)
    try:
        manifest, sums = stage.manifest() or {}, stage.sums()
    except LionError:
        return set()  # reported when it is checked as a file
    named = set()
    for file, expected in sums.items():
        named.add(path := f"{name}/{file}")
        try:
            actual = store.sum_of(path)
        except FileNotFoundError:
            found.faults.append(f"{store.path(path)}: it is missing")
        except LionError as error:
            found.faults.append(str(error))
        else:
            if actual == expected:
                found.files += 1
                found.proven += 1
                found.bytes += actual["bytes"]
            else:
                found.faults.append(f"{store.path(path)}: it differs from what was committed (SHA-256 mismatch)")
    present = stage.part_indexes()
    for index in range(manifest.get("parts", 0)):
        if index not in present and stage.part_name(index) not in named:
            found.faults.append(f"{store.path(stage.part_name(index))}: it is missing")
    return named


def _file(store: RunStore, name: str, found: Checked) -> None:
    kind = name.rpartition(".")[2]
    try:
        if kind == "parquet":
            store.read_table(name)
        elif name == layout.RUN:
            store.description()
        elif name.endswith(f"/{layout.MANIFEST}"):
            store.stage(name.rpartition("/")[0]).manifest()
        elif kind == "json":
            store.read_json(name)
        else:
            return
    except LionError as error:
        found.faults.append(str(error))
    else:
        found.files += 1


def _journal(store: RunStore, found: Checked) -> None:
    try:
        described = store.description()
    except LionError:
        return  # already reported
    configured = described["config"].get("journal") if described is not None else None
    folder = Folder.at(store.journal(configured))
    try:
        if not folder.exists():
            return
        read_uncertain(folder)
        read = inspection.verify(folder)
    except InfrastructureError as error:
        found.faults.append(str(error))
        return
    found.journal = {"records": read.records, "segments": read.segments, "bytes": read.bytes}
    found.faults += [f"{folder.file(fault.file)}, byte {fault.offset}: {fault.reason}" for fault in read.damaged]
