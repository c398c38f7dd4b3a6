"""The tables that travel between the actors, and the ids in them.

Invariants:
- A row is a conversation that ends with a user's turn. One of a single user turn is its text, and its id is the hash of
  that; of any other, `messages` holds all of it, `text` the last turn, and the id is the hash of the messages. So the
  same row has the same id in every run and on every machine.
- A row that failed stays a row: `status` is ``ok`` or ``quarantined``, and a quarantined row says why in `reason`.
  What a filter left out is ``filtered``, with its reason: it has not failed.
- An answer says who gave it: model, checkpoint version, endpoint, tokens, cost, finish reason (contract: provenance).
- Seeds depend on what they are for, never on order, time or process (contract: seeds by purpose).

This module knows nothing of Ray, models or files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

OK = "ok"
QUARANTINED = "quarantined"
FILTERED = "filtered"
ORDERS = ("teacher_first", "student_first")
"""Whose answer a referee is shown first; columns of VERDICT."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
Message = dict[str, str]
"""role (system, user or assistant) and content."""

ONE_TURN = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        # Where it came from: `seed` (the user's pool), `hard` or `easy` (generated from such a parent).
        pa.field("source", pa.string(), nullable=False),
        pa.field("parent", pa.string()),
        # The iteration that generated it; 0 for the user's own.
        pa.field("iteration", pa.int32(), nullable=False),
        # What a check compares an answer with: the user's text, or a JSON value as text. Parts that an earlier version
        # wrote lack the column (see `as_instructions`); no model is ever shown it.
        pa.field("reference", pa.string()),
    ]
)
"""A row of the Train Pool, the Cache Pool or the held-out set that is its text alone; a part of such rows has no more
columns, as before there were others."""

INSTRUCTION = pa.schema(
    [
        *ONE_TURN,
        pa.field("messages", MESSAGES),  # the whole conversation, the user's last turn included; null in a ONE_TURN row
    ]
)
"""A row of the Train Pool, the Cache Pool or the held-out set."""

ANSWER = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("text", pa.string(), nullable=False),  # "" where there is none
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("model", pa.string()),
        pa.field("version", pa.string()),  # the checkpoint's, for the student
        pa.field("endpoint", pa.string()),  # the API's name in the config, for the teacher
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("cost_usd", pa.float64()),  # null: no price known
        pa.field("call", pa.string()),  # the journal's key
    ]
)
"""What the teacher or the student said to one instruction."""

VERDICT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("teacher_score", pa.float64()),  # mean of the orders that were asked, 1 to 10
        pa.field("student_score", pa.float64()),
        # [teacher, student], in each order; null where that order gave no score or, in an ok row, was not asked.
        pa.field("teacher_first", pa.list_(pa.float64())),
        pa.field("student_first", pa.list_(pa.float64())),
        # How many of these orders are weighted by log-probabilities; null where the referee is not to weigh.
        pa.field("weighted", pa.int32()),
        pa.field("review_teacher_first", pa.string()),
        pa.field("review_student_first", pa.string()),
        pa.field("model", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("version", pa.string()),  # the judged student's
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("cost_usd", pa.float64()),
        pa.field("calls", pa.list_(pa.string())),
    ]
)
"""The referee's judgement of one teacher answer against one student answer."""

OWN_VERDICT = pa.schema(
    [
        *VERDICT,
        pa.field("gap", pa.float64()),  # by how much the teacher's answer is better, in the judge's own points
        pa.field("hard", pa.bool_()),  # null: by the gap
        pa.field("detail", pa.string()),  # JSON
    ]
)
"""The same by a judge of the user's own, which need not score."""

CHECKED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("score", pa.float64()),  # mean over the checks, 0 to 1; null in a row that is not ok
        # By check; null where that check could not say.
        pa.field("scores", pa.list_(pa.struct([("check", pa.string()), ("value", pa.float64())])), nullable=False),
    ]
)
"""What the checks say of one answer."""

KEPT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),  # ok | filtered | quarantined, as its answer was
        pa.field("reason", pa.string()),
    ]
)
"""Whether an answer is trained on."""

CANDIDATE = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # hard | easy
        pa.field("parent", pa.string(), nullable=False),
        pa.field("request", pa.int64(), nullable=False),  # its place in the order of requests
        pa.field("status", pa.string(), nullable=False),  # ok: accepted
        pa.field("reason", pa.string()),
        pa.field("call", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("cost_usd", pa.float64()),
    ]
)
"""A generated instruction, accepted or rejected with a reason."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row as code has it: what is to be answered, and what is known of it."""

    id: str
    text: str
    """The user's last turn."""
    messages: tuple[Message, ...] = ()
    """The whole conversation; empty for a row that is its text alone."""
    source: str = "seed"
    """seed, or the kind of row that it was generated from: hard or easy."""
    parent: str | None = None
    iteration: int = 0
    reference: str | None = None
    """What an answer is compared with; no model is shown it."""

    @classmethod
    def of(cls, row: Mapping[str, Any], *, reference: bool = True) -> Prompt:
        """From a row of INSTRUCTION, whatever columns it has; without its reference, where it is shown to a model."""
        known = {name: row[name] for name in ("source", "parent", "iteration") if name in row}
        kept = row.get("reference") if reference else None
        return cls(row["id"], row["text"], tuple(row.get("messages") or ()), reference=kept, **known)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation, of a single turn too."""
        return self.messages or ({"role": "user", "content": self.text},)

    def as_text(self) -> str:
        """The conversation as one text, for a reader who is shown it; a row that is its text alone is that."""
        if not self.messages:
            return self.text
        return "\n\n".join(f"{one['role']}: {one['content']}" for one in self.messages)


def conversation_id(messages: Sequence[Message]) -> str:
    """The content hash that names a conversation: 16 hex digits (64 bits) of SHA-256 over its canonical JSON.

    One of a single user turn has the id of its text.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return instruction_id(messages[0]["content"])
    canonical = [[one["role"], one["content"]] for one in messages]
    return instruction_id(json.dumps(canonical, ensure_ascii=False, separators=(",", ":")))


def instruction_id(text: str) -> str:
    """The content hash that names an instruction: 16 hex digits (64 bits) of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**31) that depends on `parts` alone, such as (run seed, iteration, instruction id)."""
    joined = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "big") % 2**31


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; a missing key is null, an unknown one is a mistake of ours and raises."""
    rows = list(rows)
    if unknown := set().union(*rows).difference(schema.names):
        raise ValueError(f"not in the schema: {sorted(unknown)}")
    result = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)
    for field in schema:
        if not field.nullable and result[field.name].null_count:
            raise ValueError(f"{field.name} must not be null")
    return slim(result) if schema is INSTRUCTION else result


def slim(pool: pa.Table) -> pa.Table:
    """A pool or a part of one without the column of conversations, where none of its rows has one."""
    if "messages" in pool.column_names and pool["messages"].null_count == pool.num_rows:
        return pool.drop_columns(["messages"])
    return pool


class Piece(NamedTuple):
    """What the generator hands over at a time."""

    part: int | None
    """The number of a part of the new pool, whose INSTRUCTION rows these are; None for every CANDIDATE, at the end."""
    rows: pa.Table


def shards(pool: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Slices of at most `rows` rows, each with buffers of its own (a plain slice would ship the whole pool)."""
    for start in range(0, pool.num_rows, rows):
        yield pool.slice(start, rows).combine_chunks() if pool.num_rows <= rows else _compact(pool.slice(start, rows))


def _compact(piece: pa.Table) -> pa.Table:
    return piece.take(pa.array(range(piece.num_rows), pa.int64()))


def as_instructions(parts: Iterable[pa.Table]) -> pa.Table:
    """Parts of pools as one table; a column that some of them lack is null in their rows."""
    return pa.concat_tables(parts, promote_options="default")


def references(rows: pa.Table) -> list[str | None]:
    """The reference of each INSTRUCTION row; None for all where the part is from a version without them."""
    if "reference" not in rows.column_names:
        return [None] * rows.num_rows
    found: list[str | None] = rows["reference"].to_pylist()
    return found


def ok_rows(answers: pa.Table) -> pa.Table:
    """The rows that may be trained on or scored."""
    return answers.filter(pa.compute.equal(answers["status"], OK))
