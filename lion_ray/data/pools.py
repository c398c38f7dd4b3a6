"""Reads the user's instructions, and says which pools an iteration trains on and judges.

Invariants:
- A row is a conversation that ends with the user (`formats` reads it). Its id is the hash of its content, so a pool
  holds no duplicates; the first of two equal rows stays.
- A malformed row either stops the reading with a one-line error that says where it is and what to do, or is quarantined
  with a reason. It is never repaired, guessed at or silently dropped.
- Reading stops at the limit: later rows are neither counted nor checked.
- A row's `reference` is not part of its content: it does not affect the id, and of two equal rows the first one's
  reference stays.
- Which instructions are held out depends on the seed and the texts, not on their order in a file.

This module does not know file formats (see `sources`), models or the run folder.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import INSTRUCTION, conversation_id, derive_seed, instruction_id, slim
from lion_ray.data.formats import FormatError, ReadRow, read_row
from lion_ray.data.mapped import BATCH_ROWS, Numbers, filtered, mapped
from lion_ray.data.sources import SourceRow, rows_of

BATCH_CHARACTERS = 16 * 2**20
"""A batch ends with the row that brings its texts to this length."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be used."""

    where: str
    """``file:line``, or ``source: row N`` (counted from 1) if the source has no lines."""
    reason: str
    row_text: str
    """The row's text in the file, or the row as JSON if the file is not text."""


@dataclass(frozen=True, slots=True)
class PoolRead:
    """The rows read from a source."""

    pool: pa.Table
    """records.INSTRUCTION, in the source's order."""
    duplicates: int
    """Rows dropped because an earlier row has the same text."""
    bad_rows: list[BadRow]
    """Empty unless malformed rows are quarantined."""
    renamed: dict[str, int] = field(default_factory=dict)
    """``key as name`` for keys that were read under another name, and the number of their rows."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Keys that were not read, and the number of their rows."""


def read_pool(source: str, *, base_dir: Path, limit: int | None, on_bad_row: Literal["stop", "quarantine"]) -> PoolRead:
    """Read the instructions of a .json (a list of objects), .jsonl, .csv, .tsv, .txt (one per line) or .parquet file,
    or of a dataset.

    Files other than Parquet may be compressed (.gz, .zst). A dataset is ``hf:NAME[:CONFIGURATION][:SPLIT]``; the
    default split is `train`. NAME is a folder that `datasets` reads or wrote, or else a name on the Hugging Face hub.
    Paths are relative to `base_dir`. At most `limit` different instructions are read.

    Raises ConfigError if the source is missing or its type unknown, InfrastructureError if the hub cannot be reached,
    and DataError if the source holds no usable row or, with "stop", at its first malformed row.
    """
    reading = _Reading(source, base_dir, limit, on_bad_row)
    pool = slim(mapped(reading.batches(), INSTRUCTION))
    bad_rows = reading.bad_rows
    if not pool.num_rows:
        why = f"all {len(bad_rows)} rows are malformed, the first: {bad_rows[0].reason}" if bad_rows else "it is empty"
        raise DataError(f"{source}: no usable instruction ({why}); give rows with an 'instruction'")
    return PoolRead(pool, reading.duplicates, bad_rows, dict(reading.renamed), dict(reading.ignored))


@dataclass(slots=True)
class _Reading:
    """Reads a source once, and counts."""

    source: str
    base_dir: Path
    limit: int | None
    on_bad_row: Literal["stop", "quarantine"]
    duplicates: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    renamed: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The different rows as INSTRUCTION."""
        rows: list[tuple[str, ReadRow]] = []
        characters = 0
        for key, read in self._different():
            rows.append((key, read))
            characters += len(read.text) + len(read.reference or "") + sum(len(one["content"]) for one in read.messages)
            if len(rows) == BATCH_ROWS or characters > BATCH_CHARACTERS:
                yield _batch(rows)
                rows, characters = [], 0
        if rows:
            yield _batch(rows)

    def _different(self) -> Iterator[tuple[str, ReadRow]]:
        """The rows up to the limit without duplicates, each with its id."""
        seen = Numbers()
        for row in rows_of(self.source, self.base_dir):
            try:
                read = _read(row)
            except FormatError as error:
                if self.on_bad_row == "stop":
                    advice = "correct the row, or set data.on_bad_row to quarantine"
                    raise DataError(f"{row.where}: {error}; {advice}") from None
                self.bad_rows.append(BadRow(row.where, str(error), row.as_text()))
                continue
            self.renamed.update(f"{key} as {name}" for key, name in read.renamed)
            self.ignored.update((*read.ignored, *row.ignored))
            key = _id(read)
            if not seen.add(int(key, 16)):
                self.duplicates += 1
                continue
            yield key, read
            if len(seen) == self.limit:
                return


def _batch(rows: Sequence[tuple[str, ReadRow]]) -> pa.RecordBatch:
    columns = {
        "id": [key for key, _ in rows],
        "text": [read.text for _, read in rows],
        "source": ["seed"] * len(rows),
        "parent": [None] * len(rows),
        "iteration": [0] * len(rows),
        "reference": [read.reference for _, read in rows],
        "messages": [list(read.messages) or None for _, read in rows],
    }
    return pa.RecordBatch.from_pydict(columns, schema=INSTRUCTION)


def _id(read: ReadRow) -> str:
    return conversation_id(read.messages) if read.messages else instruction_id(read.text)


def where_is(source: str, base_dir: Path, row_id: str) -> str:
    """The place of an instruction in its source: ``file:line``, or ``source: row N``."""
    for row in rows_of(source, base_dir):
        try:
            if _id(_read(row)) == row_id:
                return row.where
        except FormatError:
            continue
    return source


def bad_rows_jsonl(bad: Iterable[BadRow]) -> str:
    """The quarantine file's content: JSON Lines with where, reason and row."""
    lines = ({"where": row.where, "reason": row.reason, "row": row.row_text} for row in bad)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def train_pool(iteration: int) -> int:
    """The pool that iteration `iteration` (from 1) trains on: pool 0 is the user's; iteration k generates pool k.

    New instructions replace the Train Pool (paper, overview figure).
    """
    return iteration - 1


def cache_pools(iteration: int) -> range:
    """The pools that make up the Cache Pool of iteration `iteration`.

    New instructions are added to the Cache Pool (paper, overview figure); each was compared with all of it, so it holds
    no duplicates.
    """
    return range(iteration)


def split_heldout(pool: pa.Table, count: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """(the rest of the pool, in its order; `count` held-out rows, in the order of their hashes).

    A row is chosen by the hash of (seed, id), so its position in the file does not matter, and a smaller `count`
    chooses a subset of the same rows.
    Raises ConfigError if no row would be left in the pool.
    """
    if not 0 <= count < max(pool.num_rows, 1):
        raise ConfigError(
            f"data.heldout: cannot hold out {count} instructions of a pool of {pool.num_rows}; "
            f"give a number from 0 to {max(pool.num_rows - 1, 0)}, or a file"
        )
    if not count:
        return pool, pool.slice(0, 0)
    ids = (row for chunk in pool["id"].chunks for row in chunk.to_pylist())
    chosen = [row for _, row in heapq.nsmallest(count, ((derive_seed("heldout", seed, row), row) for row in ids))]
    out = pc.is_in(pool["id"], value_set=pa.array(chosen, pa.string()))
    heldout = filtered(pool, out).combine_chunks()
    order = pc.index_in(pa.array(chosen, pa.string()), value_set=heldout["id"].combine_chunks())
    return filtered(pool, pc.invert(out)), heldout.take(order)


def drop_ids(pool: pa.Table, ids: Iterable[str]) -> tuple[pa.Table, int]:
    """(the pool without those ids, the number of rows removed)."""
    gone = pc.is_in(pool["id"], value_set=pa.array(list(ids), pa.string()))
    removed: int = pc.sum(gone).as_py() or 0
    return (filtered(pool, pc.invert(gone)) if removed else pool), removed


def _read(row: SourceRow) -> ReadRow:
    if row.problem is not None:
        raise FormatError(row.problem)
    return read_row(row.value)
