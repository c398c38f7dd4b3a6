"""A stage of a run's folder: numbered parts, a few files, and the manifest that commits them.

Invariants:
- Without a manifest only the stage's parts are trusted; a part is complete or absent.
- The manifest is written last, by the run's one attempt, and holds the SHA-256 of each file of the stage.

This module knows nothing of what a stage means.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lion_ray.core import layout
from lion_ray.core.errors import DamagedError
from lion_ray.core.sealed import Record
from lion_ray.core.shapes import MANIFEST, check

if TYPE_CHECKING:
    from lion_ray.core.store import RunStore

Manifest = dict[str, Any]
"""A stage's manifest: the numbers of rows and parts, and other facts that must be readable without the parts."""
SUMS = ".sums.json"
"""Suffix of the file beside a folder that holds the hashes of the folder's files until a manifest includes them."""
_UNSUMMED = {layout.MANIFEST, layout.PROGRESS}
_SUMMING = 16
"""Files hashed at once: on an object store each waits for the network."""
_FILES = "files"


class Stage:
    """One stage of a run: numbered parts, a few files, and the manifest that commits them."""

    def __init__(self, store: RunStore, name: str) -> None:
        self.store = store
        self.name = name

    def manifest(self) -> Manifest | None:
        """The committed manifest. Returns None if the stage is not committed.

        Raises:
            DamagedError: the file differs from what was written.
        """
        found = self._read()
        if found is None:
            return None
        if not found:
            raise DamagedError(found.path, "it is empty")
        check(found, MANIFEST).pop(_FILES, None)
        return found

    def sums(self) -> dict[str, Any]:
        """Size and SHA-256 of each committed file, by its name in the stage's folder. A manifest of an older lion-ray
        has none."""
        found = self._read()
        return dict(found.get(_FILES) or {}) if found is not None else {}

    def commit(self, manifest: Manifest) -> Manifest:
        """Commit the stage and return the manifest. Raises RunConflictError if another attempt runs."""
        sums = self._sum_up()
        # An earlier process may have been ended between writing a part and flushing its name: after a power cut there
        # could be a manifest without it.
        self.store.flush_names(self.name)
        self.store.check_fence()
        self.store.write_record(layout.manifest(self.name), manifest | {_FILES: sums})
        return manifest

    def _read(self) -> Record | None:
        return self.store.read_record(layout.manifest(self.name))

    def _sum_up(self) -> dict[str, Any]:
        names = [name for name, folder in self.store.entries(self.name) if not folder and not name.startswith(".")]
        own = [name for name in names if name not in _UNSUMMED and not name.endswith(SUMS)]
        with ThreadPoolExecutor(_SUMMING) as pool:
            sums = dict(zip(own, pool.map(lambda name: self.store.sum_of(f"{self.name}/{name}"), own), strict=True))
        for name in names:
            if name.endswith(SUMS):
                sums |= self.store.read_record(f"{self.name}/{name}") or {}
        return sums

    def part_name(self, index: int) -> str:
        return layout.part(self.name, index)

    def write_part(self, index: int, table: pa.Table) -> None:
        self.store.write_table(self.part_name(index), table)

    def read_part(self, index: int) -> pa.Table:
        return self.store.read_table(self.part_name(index))

    def part_indexes(self) -> set[int]:
        indexes = map(layout.part_index, self.store.names(self.name))
        return {index for index in indexes if index is not None}

    def read(self, parts: int, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
        """Parts 0 to `parts` - 1 as one table. `columns` limits the columns; `optional` adds those of its columns that
        exist."""
        names = map(self.part_name, range(parts))
        wanted = None if columns is None else (*columns, *optional)
        # Two versions may have written a resumed run's parts, one of them without a newer column.
        tables = [self.store.read_table(name, wanted, optional=True) for name in names]
        whole = pa.concat_tables(tables, promote_options="default")
        if missing := [name for name in columns or () if name not in whole.column_names]:
            raise DamagedError(self.store.path(self.name), f"its parts have no column {missing[0]!r}")
        return whole
