"""The user's instructions, and the pools that grow out of them.

Invariants:
- An instruction is one text: a row's `input` (Dolly's `context`) is folded into it. Its id is the hash of that text, so
  a pool holds no text twice; the first of two stays.
- A malformed row either stops the reading with one line that says where it is and what to do, or is kept aside with a
  reason. It is never mended, guessed at or silently dropped.
- Reading stops at the limit: rows behind it are neither counted nor checked.
- A row's `reference` is not part of its text: it changes no id, and of two rows of one text the first one's stays.
- Which instructions are held out depends on the seed and the texts, not on their order in a file.

This module does not know file formats (see `sources`), models or the run folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import INSTRUCTION, derive_seed, instruction_id, table
from lion_ray.core.values import canonical
from lion_ray.data.sources import ALTERNATIVES, INPUT_KEYS, SourceRow, rows_of

# What people and models write into `input` to say that there is none, once outer punctuation is gone.
_NO_INPUT = re.compile(
    r"no[\W_]*(?:(?:further|additional|specific)\s+)?input[es]?"
    r"(?:\s+(?:(?:is|was)\s+)?(?:needed|required|necessary|provided|given|applicable|available))?"
    r"|input\s+(?:is\s+)?not\s+(?:needed|required|necessary|provided|given|applicable|available)"
    r"|none|n[/.]\s?a|not\s+applicable"
    # What pandas, JSON and databases write where there is nothing.
    r"|nan|nat|null|nil|undefined|empty(?:\s+(?:string|input))?",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"nan|null|none|<na>|\\n", re.IGNORECASE)
"""What stands for a text that is missing, where it is all there is of an instruction."""
_OUTER_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be used."""

    where: str
    """``file:line``, or ``source: row N`` (counted from 1) where there are no lines."""
    reason: str
    row_text: str
    """The row as it stood in the file, or as JSON where the file is not text."""


@dataclass(frozen=True, slots=True)
class PoolRead:
    """What a source held."""

    pool: pa.Table
    """records.INSTRUCTION, in the source's order."""
    duplicates: int
    """Rows dropped because an earlier row has the same text."""
    bad_rows: list[BadRow]
    """Empty unless malformed rows are quarantined."""


class _MalformedError(Exception):
    pass


def read_pool(source: str, *, base_dir: Path, limit: int | None, on_bad_row: Literal["stop", "quarantine"]) -> PoolRead:
    """The instructions of a .json (a list of objects), .jsonl or .parquet file, or of a dataset.

    JSON files may be gzipped (.gz). A dataset is ``hf:NAME[:CONFIGURATION][:SPLIT]``, of the split `train` unless one
    is named. NAME is a folder that `datasets` reads or wrote, or else a name on the Hugging Face
    hub. Paths are relative to `base_dir`. At most `limit` different instructions are read.

    Raises ConfigError where the source is missing or of an unknown kind, InfrastructureError where the hub cannot be
    reached, and DataError where the source holds nothing usable or, with "stop", at its first malformed row.
    """
    texts: dict[str, tuple[str, str | None]] = {}
    duplicates = 0
    bad_rows: list[BadRow] = []
    for row in rows_of(source, base_dir):
        try:
            text, reference = _instruction(row), _reference(row)
        except _MalformedError as error:
            if on_bad_row == "stop":
                advice = "correct the row, or set data.on_bad_row to quarantine"
                raise DataError(f"{row.where}: {error}; {advice}") from None
            bad_rows.append(BadRow(row.where, str(error), row.as_text()))
            continue
        key = instruction_id(text)
        if key in texts:
            duplicates += 1
            continue
        texts[key] = (text, reference)
        if len(texts) == limit:
            break
    if not texts:
        why = f"all {len(bad_rows)} rows are malformed, the first: {bad_rows[0].reason}" if bad_rows else "it is empty"
        raise DataError(f"{source}: no usable instruction ({why}); give rows with an 'instruction'")
    rows = (
        {"id": key, "text": text, "source": "seed", "iteration": 0, "reference": reference}
        for key, (text, reference) in texts.items()
    )
    return PoolRead(table(rows, INSTRUCTION), duplicates, bad_rows)


def where_is(source: str, base_dir: Path, row_id: str) -> str:
    """The place of an instruction that was read from a source: ``file:line``, or ``source: row N``."""
    for row in rows_of(source, base_dir):
        try:
            if instruction_id(_instruction(row)) == row_id:
                return row.where
        except _MalformedError:
            continue
    return source


def bad_rows_jsonl(bad: Iterable[BadRow]) -> str:
    """The quarantine file's content: a JSON object with where, reason and row on each line."""
    lines = ({"where": row.where, "reason": row.reason, "row": row.row_text} for row in bad)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def train_pool(iteration: int) -> int:
    """The pool that iteration `iteration` (from 1) trains on: pool 0 is the user's own, pool k what iteration k wrote.

    New instructions replace the Train Pool (paper, overview figure).
    """
    return iteration - 1


def cache_pools(iteration: int) -> range:
    """The pools that make up the Cache Pool which iteration `iteration` judges.

    New instructions join the Cache Pool (paper, overview figure); what joins was held against all of it, so that no
    instruction is in it twice.
    """
    return range(iteration)


def split_heldout(pool: pa.Table, count: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """(what is left of the pool, in its order; `count` held-out rows, in the order of their hashes).

    A row is chosen by the hash of (seed, id): its place in the file plays no part, and a smaller `count` chooses among
    the same rows.
    Raises ConfigError where nothing would be left.
    """
    if not 0 <= count < max(pool.num_rows, 1):
        raise ConfigError(
            f"data.heldout: cannot set {count} instructions aside from a pool of {pool.num_rows}; "
            f"give a number from 0 to {max(pool.num_rows - 1, 0)}, or a file"
        )
    ids = pool["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda row: (derive_seed("heldout", seed, ids[row]), ids[row]))
    chosen = order[:count]
    left, _ = drop_ids(pool, [ids[row] for row in chosen])
    return left, pool.take(pa.array(chosen, pa.int64()))


def drop_ids(pool: pa.Table, ids: Iterable[str]) -> tuple[pa.Table, int]:
    """(the pool without those ids, how many rows went)."""
    stays = pc.invert(pc.is_in(pool["id"], value_set=pa.array(list(ids), pa.string())))
    kept = pool.filter(stays)
    return kept, pool.num_rows - kept.num_rows


def _instruction(row: SourceRow) -> str:
    """The row's one text."""
    if row.problem is not None:
        raise _MalformedError(row.problem)
    if not isinstance(row.value, dict):
        raise _MalformedError("not a JSON object")
    instruction = _text_of(row.value, _instruction_key(row.value))
    if not instruction:
        raise _MalformedError("the instruction is empty")
    if _NOTHING.fullmatch(instruction):
        raise _MalformedError(f"the instruction is '{instruction}': there is none")
    extras = {key: _text_of(row.value, key) for key in INPUT_KEYS if row.value.get(key) is not None}
    extras = {key: extra for key, extra in extras.items() if extra and not says_no_input(extra)}
    if len(set(extras.values())) > 1:
        one, other, *_ = extras
        raise _MalformedError(f"both '{one}' and '{other}', and an instruction is about one text")
    return f"{instruction}\n\n{next(iter(extras.values()))}" if extras else instruction


def _reference(row: SourceRow) -> str | None:
    """What the row's answers are compared with: a text as it is, another JSON value as JSON; None where there is none
    or it is blank."""
    value = row.value.get("reference")
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value.encode()
            return value if value.strip() else None
        return canonical(value)
    except UnicodeEncodeError:
        raise _MalformedError("'reference' holds half a character (a lone surrogate)") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _MalformedError(f"'reference' is no JSON value ({' '.join(str(error).split())[:100]})") from None


def _instruction_key(value: dict[str, Any]) -> str:
    if value.get("instruction") is not None:
        return "instruction"
    others = [key for key in ALTERNATIVES if value.get(key) is not None]
    if len(others) > 1:
        raise _MalformedError(f"no 'instruction', but both '{others[0]}' and '{others[1]}'")
    if not others:
        raise _MalformedError("no 'instruction'")
    return others[0]


def _text_of(value: dict[str, Any], key: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise _MalformedError(f"'{key}' is not a string but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _MalformedError(f"'{key}' holds half a character (a lone surrogate)") from None
    return text.strip()


def says_no_input(text: str) -> bool:
    """Whether an `input` only says that there is none: "No input", "<noinput>", "N/A", "none", "-" and their like."""
    # A long text says more than that, and stripping a long run of punctuation takes quadratic time.
    if len(text) > 60:
        return False
    # "NA" only in capitals: "Na" may be the question (sodium).
    bare = _OUTER_PUNCTUATION.sub("", text)
    if bare.casefold() == "empty" and text.strip() == bare:
        return False  # a word like any other, but in brackets
    return (
        text.strip() == "\\N"
        or bare == "NA"
        or _NO_INPUT.fullmatch(bare) is not None
        or re.fullmatch(r"\s*[-–—]{1,3}\s*", text) is not None
    )
