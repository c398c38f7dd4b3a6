"""Imports the user's files: the pool, the held-out rows, and the evaluation questions that must not be trained on.

Reads files and starts nothing; `plan` and the run's first stage see the same rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_ray.config import DataConfig
from lion_ray.core.errors import DataError
from lion_ray.data.contamination import EvaluationSet, read_questions
from lion_ray.data.mapped import BATCH_ROWS
from lion_ray.data.pools import BadRow, PoolRead, drop_ids, read_pool, split_heldout


@dataclass(frozen=True, slots=True)
class Contaminated:
    """An instruction that was left out because of an evaluation set."""

    id: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImportedData:
    """Both tables are records.INSTRUCTION."""

    pool: pa.Table
    heldout: pa.Table
    questions: list[str]
    """The questions of the evaluation sets in ``data.decontaminate``."""
    duplicates: int
    in_heldout: int
    """Rows left out of the pool because a separate held-out file contains them."""
    bad_rows: list[BadRow]
    contaminated: list[Contaminated]
    renamed: dict[str, int] = field(default_factory=dict)
    """``key as name`` for keys that were read under another name, and the number of their rows."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Keys that were not read, and the number of their rows."""

    def counts(self) -> dict[str, object]:
        """The numbers of rows left out, for the pool's manifest."""
        reasons = Counter(row.reason for row in self.contaminated)
        return {
            "duplicates": self.duplicates,
            "bad_rows": len(self.bad_rows),
            "in_heldout": self.in_heldout,
            "contaminated": dict(reasons.most_common()),
            **({"renamed": self.renamed} if self.renamed else {}),
            **({"ignored": self.ignored} if self.ignored else {}),
        }

    def contaminated_jsonl(self) -> str:
        """JSON Lines, one for each instruction that was left out because of an evaluation set."""
        rows = ({"id": row.id, "reason": row.reason, "text": row.text} for row in self.contaminated)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def import_data(data: DataConfig, base_dir: Path, seed: int) -> ImportedData:
    """Read the pool and hold rows out; an instruction too similar to an evaluation question is left out of the pool.

    Raises:
        DataError, ConfigError, InfrastructureError: as `pools.read_pool` and `contamination.read_questions`; DataError
            also if no row is left to train on.
    """
    read = read_pool(data.pool, base_dir=base_dir, limit=data.limit, on_bad_row=data.on_bad_row)
    pool, bad = read.pool, list(read.bad_rows)
    renamed, ignored = Counter(read.renamed), Counter(read.ignored)
    overlap = 0
    if isinstance(data.heldout, int):
        pool, heldout = split_heldout(pool, data.heldout, seed)
    else:
        apart = _apart(data.heldout, data, base_dir)
        heldout, bad = apart.pool, bad + list(apart.bad_rows)
        renamed, ignored = renamed + Counter(apart.renamed), ignored + Counter(apart.ignored)
        pool, overlap = drop_ids(pool, set(heldout["id"].to_pylist()))
    questions = read_questions(data.decontaminate, base_dir)
    found = list(_contaminated(pool, EvaluationSet(questions))) if questions else []
    pool, _ = drop_ids(pool, [row.id for row in found])
    if not pool.num_rows:
        why = f" ({len(found)} are too similar to an evaluation question)" if found else ""
        raise DataError(f"{data.pool}: no instruction is left to train on{why}")
    return ImportedData(pool, heldout, questions, read.duplicates, overlap, bad, found, dict(renamed), dict(ignored))


def _contaminated(pool: pa.Table, evaluation: EvaluationSet) -> Iterator[Contaminated]:
    for batch in pool.select(["id", "text"]).to_batches(max_chunksize=BATCH_ROWS):
        for row, text in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True):
            if (reason := evaluation.rejects(text)) is not None:
                yield Contaminated(row, text, reason)


def heldout_rows(data: DataConfig, base_dir: Path, seed: int) -> pa.Table:
    """Only the held-out rows of `import_data`: INSTRUCTION. Raises as `pools.read_pool`."""
    if not isinstance(data.heldout, int):
        return _apart(data.heldout, data, base_dir).pool
    read = read_pool(data.pool, base_dir=base_dir, limit=data.limit, on_bad_row=data.on_bad_row)
    return split_heldout(read.pool, data.heldout, seed)[1]


def _apart(source: str, data: DataConfig, base_dir: Path) -> PoolRead:
    return read_pool(source, base_dir=base_dir, limit=None, on_bad_row=data.on_bad_row)


def import_lines(counts: Mapping[str, Any]) -> list[str]:
    """Log lines about an import, from its manifest: the keys read under another name, and the keys not read."""
    renamed, ignored = counts.get("renamed") or {}, counts.get("ignored") or {}
    lines = []
    if renamed:
        lines.append("read " + "; ".join(f"{what} ({rows:,} rows)" for what, rows in renamed.items()))
    if ignored:
        shown = ", ".join(f"{key} ({rows:,})" for key, rows in list(ignored.items())[:10])
        more = ", …" if len(ignored) > 10 else ""
        lines.append(f"not read: {shown}{more}; the key for the text that answers are compared with is `reference`")
    return lines
