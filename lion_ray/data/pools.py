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

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import INSTRUCTION, conversation_id, derive_seed, instruction_id, table
from lion_ray.data.formats import FormatError, ReadRow, read_row
from lion_ray.data.sources import SourceRow, rows_of


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
    rows: dict[str, ReadRow] = {}
    duplicates = 0
    bad_rows: list[BadRow] = []
    renamed: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for row in rows_of(source, base_dir):
        try:
            read = _read(row)
        except FormatError as error:
            if on_bad_row == "stop":
                advice = "correct the row, or set data.on_bad_row to quarantine"
                raise DataError(f"{row.where}: {error}; {advice}") from None
            bad_rows.append(BadRow(row.where, str(error), row.as_text()))
            continue
        renamed.update(f"{key} as {name}" for key, name in read.renamed)
        ignored.update((*read.ignored, *row.ignored))
        key = _id(read)
        if key in rows:
            duplicates += 1
            continue
        rows[key] = read
        if len(rows) == limit:
            break
    if not rows:
        why = f"all {len(bad_rows)} rows are malformed, the first: {bad_rows[0].reason}" if bad_rows else "it is empty"
        raise DataError(f"{source}: no usable instruction ({why}); give rows with an 'instruction'")
    found = (
        {
            "id": key,
            "text": read.text,
            "source": "seed",
            "iteration": 0,
            "reference": read.reference,
            "messages": list(read.messages) or None,
        }
        for key, read in rows.items()
    )
    return PoolRead(table(found, INSTRUCTION), duplicates, bad_rows, dict(renamed), dict(ignored))


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
    ids = pool["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda row: (derive_seed("heldout", seed, ids[row]), ids[row]))
    chosen = order[:count]
    left, _ = drop_ids(pool, [ids[row] for row in chosen])
    return left, pool.take(pa.array(chosen, pa.int64()))


def drop_ids(pool: pa.Table, ids: Iterable[str]) -> tuple[pa.Table, int]:
    """(the pool without those ids, the number of rows removed)."""
    stays = pc.invert(pc.is_in(pool["id"], value_set=pa.array(list(ids), pa.string())))
    kept = pool.filter(stays)
    return kept, pool.num_rows - kept.num_rows


def _read(row: SourceRow) -> ReadRow:
    if row.problem is not None:
        raise FormatError(row.problem)
    return read_row(row.value)
