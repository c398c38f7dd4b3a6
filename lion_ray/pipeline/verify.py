"""Whether a run's folder is what was written: every file looked at, nothing changed.

Invariants:
- Every file that a manifest names is read whole and held against its SHA-256; every other table and record proves
  itself as far as it can (`sealed`); the run's journal is read line by line, and what may have been billed.
- One damaged file hides nothing of the others.
- What a run under way is writing is no damage.

What was written before there were checksums is read, and counted as not provable. Checkpoints within a fit (`fits/`)
have no checksums and are not looked at: a fit goes through with them or says why it cannot.
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
    """What was looked at, and what is wrong."""

    files: int = 0
    """Files that are what they should be."""
    proven: int = 0
    """Of them those whose SHA-256 a manifest holds."""
    bytes: int = 0
    """Of the proven ones."""
    stages: int = 0
    journal: dict[str, Any] | None = None
    """What reading the journal has shown; None where there is none."""
    faults: list[str] = field(default_factory=list)
    """A line each, with the path."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(store: RunStore) -> Checked:
    """Look at everything in a run's folder.

    Raises:
        InfrastructureError: the storage refused to list the folder.
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
    """Look at the files that a manifest names; returns their names, well or not."""
    stage = store.stage(name)
    try:
        manifest, sums = stage.manifest() or {}, stage.sums()
    except LionError:
        return set()  # told when its turn as a file comes
    named = set()
    for file, expected in sums.items():
        named.add(path := f"{name}/{file}")
        try:
            actual = store.sum_of(path)
        except FileNotFoundError:
            found.faults.append(f"{store.path(path)}: it is gone")
        except LionError as error:
            found.faults.append(str(error))
        else:
            if actual == expected:
                found.files += 1
                found.proven += 1
                found.bytes += actual["bytes"]
            else:
                found.faults.append(f"{store.path(path)}: it is not what was committed (its SHA-256 does not fit)")
    there = stage.part_indexes()
    for index in range(manifest.get("parts", 0)):
        if index not in there and stage.part_name(index) not in named:
            found.faults.append(f"{store.path(stage.part_name(index))}: it is gone")
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
        return  # told already
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
