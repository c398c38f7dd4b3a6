"""Tables that may be larger than memory: their rows go batch by batch into a scratch file, which is memory-mapped.

Invariants:
- Only the batch being written is on the heap. The system may drop the file's pages from memory at any time.
- The file has no name once it is mapped, so its space is free again when the last table that uses it is gone, even if
  the process is killed.

The file is in the folder for temporary files (TMPDIR). This module does not know what the rows mean.
"""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from lion_ray.core.errors import InfrastructureError, one_line
from lion_ray.core.leftovers import scratch_folder

BATCH_ROWS = 16_384
"""The most rows of a batch."""


def mapped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The batches as one memory-mapped table; errors in making a batch are raised as they are.

    Raises:
        InfrastructureError: the folder for temporary files cannot hold the rows.
    """
    with _scratch_errors():
        folder = scratch_folder("lion-ray-rows-")
    path = str(folder / "rows.arrow")
    try:
        _write(path, batches, schema)
        with _scratch_errors():
            return pa.ipc.open_file(pa.memory_map(path)).read_all()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    with _scratch_errors():
        file = pa.OSFile(path, "wb")
    with file:
        with _scratch_errors():
            writer = pa.ipc.new_file(file, schema)
        for batch in batches:
            with _scratch_errors():
                writer.write_batch(batch)
        with _scratch_errors():
            writer.close()


@contextmanager
def _scratch_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"{tempfile.gettempdir()}: the rows that are read do not fit ({one_line(error)}); free space there, or set "
            "TMPDIR to a folder with more"
        ) from None


def filtered(rows: pa.Table, stays: pa.ChunkedArray) -> pa.Table:
    """The rows where `stays` is true, in their order, memory-mapped."""
    return mapped((part for part in _filtered(rows, stays) if part.num_rows), rows.schema)


def _filtered(rows: pa.Table, stays: pa.ChunkedArray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
        yield batch.filter(stays.slice(start, batch.num_rows).combine_chunks())
        start += batch.num_rows


class Numbers:
    """A set of 64-bit hashes in 13 to 27 bytes each; a Python set takes about 80.

    Open addressing with linear probing. The numbers must be evenly distributed in their low bits, as hashes are.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._mask = 1023
        self._zero = False  # a slot of 0 is empty, so the number 0 is apart
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, number: int) -> bool:
        """Add a number. Returns False if it was there."""
        if not number:
            new, self._zero = not self._zero, True
            self._count += new
            return new
        slots, mask = self._slots, self._mask
        at = number & mask
        while found := slots[at]:
            if found == number:
                return False
            at = (at + 1) & mask
        slots[at] = number
        self._count += 1
        if self._count * 5 > len(slots) * 3:
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._slots
        self._mask = mask = 2 * len(old) - 1
        self._slots = slots = array("Q", bytes(16 * len(old)))
        for number in old:
            if number:
                at = number & mask
                while slots[at]:
                    at = (at + 1) & mask
                slots[at] = number
