"""The tables that the actors exchange, and the ids in them.

Invariants:
- A row is a conversation that ends with a user's turn. If it has only that turn, `text` is the row and the id is the
  hash of the text. Otherwise `messages` holds the conversation, `text` its last turn, and the id is the hash of the
  messages. So the same row has the same id in every run and on every machine.
- A row that failed stays a row: `status` is ``ok`` or ``quarantined``, and a quarantined row has a `reason`.
  A row that a filter left out has not failed: its status is ``filtered``, with the filter's reason.
- An answer records its origin: model, checkpoint version, endpoint, tokens, cost, finish reason (contract: provenance).
- Seeds depend on their purpose, never on order, time or process (contract: seeds by purpose).

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
"""Whose answer the referee sees first; columns of VERDICT."""

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
Message = dict[str, str]
"""role (system, user or assistant) and content."""

ONE_TURN = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        # Its origin: `seed` (the user's pool), `hard` or `easy` (generated from such a parent).
        pa.field("source", pa.string(), nullable=False),
        pa.field("parent", pa.string()),
        # The iteration that generated it; 0 for the user's own.
        pa.field("iteration", pa.int32(), nullable=False),
        # What a check compares an answer with: the user's text, or a JSON value as text. No model is ever shown it.
        # Parts that an earlier version wrote lack the column (see `as_instructions`).
        pa.field("reference", pa.string()),
    ]
)
"""A row of one user turn in the Train Pool, the Cache Pool or the held-out set. A part with only such rows has no other
columns, as in earlier versions."""

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
        pa.field("cost_usd", pa.float64()),  # null: the price is unknown
        pa.field("call", pa.string()),  # the journal's key
    ]
)
"""The teacher's or the student's answer to one instruction."""

VERDICT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("teacher_score", pa.float64()),  # mean over the orders that were judged, 1 to 10
        pa.field("student_score", pa.float64()),
        # [teacher, student], in each order; null if that order gave no score or, in an ok row, was not judged.
        pa.field("teacher_first", pa.list_(pa.float64())),
        pa.field("student_first", pa.list_(pa.float64())),
        # How many of these orders are weighted by log-probabilities; null if weighting is off.
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
        pa.field("gap", pa.float64()),  # how much better the teacher's answer is, in the judge's own points
        pa.field("hard", pa.bool_()),  # null: the gap decides
        pa.field("detail", pa.string()),  # JSON
    ]
)
"""A verdict of the user's own judge, which need not give scores."""

CHECKED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("score", pa.float64()),  # mean over the checks, 0 to 1; null in a row that is not ok
        # By check; null if that check could not decide.
        pa.field("scores", pa.list_(pa.struct([("check", pa.string()), ("value", pa.float64())])), nullable=False),
    ]
)
"""The checks' scores of one answer."""

KEPT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),  # ok, filtered, or quarantined like its answer
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

SAMPLE = pa.schema(
    [
        *(field for field in ANSWER if field.name not in ("endpoint", "cost_usd", "call")),
        pa.field("sample", pa.int32(), nullable=False),  # 0, 1, … among the answers to one instruction
        pa.field("tokens", pa.list_(pa.int32())),  # as sampled, with the end token if there was one
        pa.field("logprobs", pa.list_(pa.float32())),  # the engine's, of these tokens, in nats
    ]
)
"""One of the student's own answers to an instruction, with its tokens, in a round of on-policy training."""

_BOUGHT = [
    VERDICT.field(name) for name in ("model", "endpoint", "prompt_tokens", "completion_tokens", "cost_usd", "calls")
]

RUBRIC = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("criteria", pa.list_(pa.struct([("text", pa.string()), ("points", pa.int32())]))),
        *_BOUGHT,
    ]
)
"""An instruction's criteria in a round, and what writing them cost."""

REWARD = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the instruction's
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("score", pa.float64()),  # 0 to 1 with rubrics
        pa.field("advantage", pa.float64()),  # score - mean of the instruction's answers
        pa.field("met", pa.list_(pa.bool_())),  # for each criterion of the instruction's rubric in this round
        *_BOUGHT,  # of all answers to the instruction: in the first one's row
    ]
)
"""The reward of one of the student's own answers, in the order of its SAMPLE rows."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row in code: the conversation to answer, and its metadata."""

    id: str
    text: str
    """The user's last turn."""
    messages: tuple[Message, ...] = ()
    """The whole conversation; empty for a row of one user turn."""
    source: str = "seed"
    """seed, or the kind of row that it was generated from: hard or easy."""
    parent: str | None = None
    iteration: int = 0
    reference: str | None = None
    """What an answer is compared with; no model is ever shown it."""

    @classmethod
    def of(cls, row: Mapping[str, Any], *, reference: bool = True) -> Prompt:
        """From a row of INSTRUCTION, which may lack columns. Pass `reference=False` for a row that a model is shown."""
        known = {name: row[name] for name in ("source", "parent", "iteration") if name in row}
        kept = row.get("reference") if reference else None
        return cls(row["id"], row["text"], tuple(row.get("messages") or ()), reference=kept, **known)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation, also of a row of one turn."""
        return self.messages or ({"role": "user", "content": self.text},)

    def as_text(self) -> str:
        """The conversation as one text for display; a row of one turn is its text."""
        if not self.messages:
            return self.text
        return "\n\n".join(f"{one['role']}: {one['content']}" for one in self.messages)


def conversation_id(messages: Sequence[Message]) -> str:
    """A conversation's id, a content hash: 16 hex digits (64 bits) of SHA-256 over its canonical JSON.

    A conversation of one user turn has the id of its text.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return instruction_id(messages[0]["content"])
    canonical = [[one["role"], one["content"]] for one in messages]
    return instruction_id(json.dumps(canonical, ensure_ascii=False, separators=(",", ":")))


def instruction_id(text: str) -> str:
    """An instruction's id, a content hash: 16 hex digits (64 bits) of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**31) that depends on `parts` alone, such as (run seed, iteration, instruction id)."""
    joined = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "big") % 2**31


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`. A missing key is null; an unknown key is a bug and raises ValueError."""
    rows = list(rows)
    if unknown := set().union(*rows).difference(schema.names):
        raise ValueError(f"not in the schema: {sorted(unknown)}")
    result = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema)
    for field in schema:
        if not field.nullable and result[field.name].null_count:
            raise ValueError(f"{field.name} must not be null")
    return slim(result) if schema is INSTRUCTION else result


def slim(pool: pa.Table) -> pa.Table:
    """A pool or a part of one, without the `messages` column if all of it is null."""
    if "messages" in pool.column_names and pool["messages"].null_count == pool.num_rows:
        return pool.drop_columns(["messages"])
    return pool


class Piece(NamedTuple):
    """One piece of the generator's output."""

    part: int | None
    """The new pool's part that holds these INSTRUCTION rows; None for the last piece, with all CANDIDATE rows."""
    rows: pa.Table


def shards(pool: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Slices of at most `rows` rows with their own buffers (Ray would send the whole pool for a plain slice)."""
    for start in range(0, pool.num_rows, rows):
        yield pool.slice(start, rows).combine_chunks() if pool.num_rows <= rows else _compact(pool.slice(start, rows))


def _compact(piece: pa.Table) -> pa.Table:
    return piece.take(pa.array(range(piece.num_rows), pa.int64()))


def as_instructions(parts: Iterable[pa.Table]) -> pa.Table:
    """Parts of pools as one table; a column that a part lacks is null in its rows."""
    return pa.concat_tables(parts, promote_options="default")


def references(rows: pa.Table) -> list[str | None]:
    """The reference of each INSTRUCTION row; None for all if an earlier version without references wrote the part."""
    if "reference" not in rows.column_names:
        return [None] * rows.num_rows
    found: list[str | None] = rows["reference"].to_pylist()
    return found


def ok_rows(answers: pa.Table) -> pa.Table:
    """The rows that may be used for training or scoring."""
    return answers.filter(pa.compute.equal(answers["status"], OK))
