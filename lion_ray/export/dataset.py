"""The data set as Parquet: training rows, verdicts and held-out rows.

Invariants:
- `train` is exactly what imitation trained on: the same function decides as in training. An answer that was paid for
  but not trained on is in `left_out`, with the reason. Failed answers are only counted in the card.
- All files of a split have the same schema; columns for which a run has no value are null.
- Memory is bounded: a few thousand rows at a time, whatever the size of the run.

This module does not know cards; of models it uses only the tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lion_ray.core import layout
from lion_ray.core.records import FILTERED, MESSAGES, OK, ORDERS, Prompt, ok_rows, table
from lion_ray.discrimination import split
from lion_ray.export.source import Source
from lion_ray.pipeline.scheduling import Shard

if TYPE_CHECKING:
    from lion_ray.models.prompter import Prompter

TRAIN, LEFT_OUT, CACHE = "train", "left_out", "cache"
"""The splits, in addition to the held-out one."""
ROWS_AT_ONCE = 4096
"""Rows in a row group of the Parquet files."""

ANSWERS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # hash of the instruction's text
        pa.field("instruction", pa.string(), nullable=False),  # the user's last message
        pa.field("messages", MESSAGES, nullable=False),  # the whole conversation, without the answer
        pa.field("answer", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # seed | hard | easy
        pa.field("parent_id", pa.string()),
        # The iteration whose Train Pool contains it, from 1; 0: held out.
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("left_out", pa.string()),  # reason why it was not trained on
        pa.field("teacher", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("cost_usd", pa.float64()),
        pa.field("call", pa.string()),
    ]
)
"""A row of `answers`: an instruction and the teacher's answer."""

JUDGED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),  # the user's last message
        pa.field("messages", MESSAGES, nullable=False),  # the whole conversation, without the answer
        pa.field("source", pa.string(), nullable=False),
        pa.field("parent_id", pa.string()),
        pa.field("iteration", pa.int32(), nullable=False),  # of the judged student; 0: the base model
        pa.field("teacher_answer", pa.string(), nullable=False),
        pa.field("student_answer", pa.string(), nullable=False),
        pa.field("teacher_score", pa.float64()),  # null if the judge gives no scores
        pa.field("student_score", pa.float64()),
        pa.field("gap", pa.float64(), nullable=False),  # how much better the judge rates the teacher's answer
        pa.field("hard", pa.bool_(), nullable=False),
        # [teacher's score, student's score] with that model's answer shown first.
        pa.field("teacher_first", pa.list_(pa.float64())),
        pa.field("student_first", pa.list_(pa.float64())),
        pa.field("review_teacher_first", pa.string()),
        pa.field("review_student_first", pa.string()),
        pa.field("teacher", pa.string()),
        pa.field("judge", pa.string()),
        pa.field("judge_endpoint", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("cost_usd", pa.float64()),
        pa.field("calls", pa.list_(pa.string())),
    ]
)
"""A row of `judged`: both answers and the judge's scores (1 to 10, means of both orders)."""

_ANSWER_COLUMNS = ("finish_reason", "prompt_tokens", "completion_tokens", "cost_usd", "call")
_VERDICT_COLUMNS = (
    *ORDERS,
    *(f"review_{order}" for order in ORDERS),
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "calls",
)


@dataclass
class Written:
    """Files and row counts of a written data set."""

    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """File names by config and split, relative to the data set."""
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By config and split."""
    by_source: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Rows trained on, by iteration and source."""
    judged: Counter[tuple[int, bool]] = field(default_factory=Counter)
    """Rows of the Cache Pool, by iteration and whether they are hard."""
    teachers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows of `answers`, by model and endpoint."""
    judges: Counter[tuple[str, str]] = field(default_factory=Counter)


def write_dataset(source: Source, folder: Path, prompter: Prompter) -> Written:
    """Write every split into `folder`; a split without rows has no file.

    `prompter` is the trained student's: its tokens decide which answers were too long to train on.
    """
    written = Written()
    heldout = source.shards(layout.HELDOUT)
    pools = {iteration: source.trained(iteration) for iteration in range(1, source.iteration + 1)}
    for iteration, shards in (pools | {0: heldout}).items():
        with _Splits(folder, "answers", ANSWERS, iteration, written) as splits:
            for row in _answers(source, shards, iteration, prompter):
                split = layout.HELDOUT if not iteration else LEFT_OUT if row["left_out"] else TRAIN
                splits.add(split, row)
                written.teachers[row["teacher"] or "unknown", row["endpoint"] or "unknown"] += 1
                if split == TRAIN:
                    written.by_source[iteration, row["source"]] += 1
    for iteration in range(source.iteration + 1):
        with _Splits(folder, "judged", JUDGED, iteration, written) as splits:
            for row in _judged(source, iteration, source.cached(iteration)):
                splits.add(CACHE, row)
                written.judged[iteration, row["hard"]] += 1
                written.judges[row["judge"] or "unknown", row["judge_endpoint"] or "unknown"] += 1
            for row in _judged(source, iteration, heldout, heldout=True):
                splits.add(layout.HELDOUT, row)
                written.judges[row["judge"] or "unknown", row["judge_endpoint"] or "unknown"] += 1
    return written


def _answers(source: Source, shards: list[Shard], iteration: int, prompter: Prompter) -> Iterator[dict[str, Any]]:
    from lion_ray.imitation.training.data import encode

    length, truncated = source.get("imitation.max_length"), source.get("imitation.truncated")
    for shard in shards:
        filtered = _filtered(source, shard) if iteration else {}
        for instruction, answer in _pairs(source, shard):
            if answer["status"] != OK:
                continue
            row = (instruction["text"], answer["text"], answer["finish_reason"], Prompt.of(instruction).messages)
            dropped = filtered.get(instruction["id"]) or (
                encode([row], prompter, length, truncated)[1] if iteration else {}
            )
            yield {
                "id": instruction["id"],
                "instruction": instruction["text"],
                "messages": list(Prompt.of(instruction).turns),
                "answer": answer["text"],
                "source": instruction["source"],
                "parent_id": instruction["parent"],
                "iteration": iteration,
                "left_out": next(iter(dropped), None),
                "teacher": answer["model"],
                "endpoint": answer["endpoint"],
                **{name: answer.get(name) for name in _ANSWER_COLUMNS},
            }


def _judged(source: Source, iteration: int, shards: list[Shard], *, heldout: bool = False) -> Iterator[dict[str, Any]]:
    names = (layout.student_answers(iteration, heldout=heldout), layout.verdicts(iteration, heldout=heldout))
    if "hard" not in source.manifest(names[1]):
        return  # not judged, or not completely
    tau = source.get("discrimination.tau")
    students, verdicts = map(source.store.stage, names)
    for index, shard in enumerate(shards):
        student_answers = {row["id"]: row["text"] for row in students.read_part(index).to_pylist()}
        judged = ok_rows(verdicts.read_part(index))
        gaps = zip(judged.to_pylist(), split.gaps(judged).tolist(), split.lags(judged, tau).tolist(), strict=True)
        scored = {row["id"]: (row, gap, hard) for row, gap, hard in gaps}
        for instruction, answer in _pairs(source, shard):
            if instruction["id"] not in scored:
                continue
            verdict, gap, hard = scored[instruction["id"]]
            yield {
                "id": instruction["id"],
                "instruction": instruction["text"],
                "messages": list(Prompt.of(instruction).turns),
                "source": instruction["source"],
                "parent_id": instruction["parent"],
                "iteration": iteration,
                "teacher_answer": answer["text"],
                "student_answer": student_answers[instruction["id"]],
                "teacher_score": verdict["teacher_score"],
                "student_score": verdict["student_score"],
                "gap": gap,
                "hard": hard,
                "teacher": answer["model"],
                "judge": verdict["model"],
                "judge_endpoint": verdict["endpoint"],
                **{name: verdict.get(name) for name in _VERDICT_COLUMNS},
            }


def _filtered(source: Source, shard: Shard) -> dict[str, dict[str, int]]:
    """The reason for each row that a filter removed."""
    if not source.get("imitation.filters"):
        return {}
    rows = source.store.read_table(layout.part(layout.filtered(shard.pool), shard.index)).to_pylist()
    return {row["id"]: {row["reason"]: 1} for row in rows if row["status"] == FILTERED}


def _pairs(source: Source, shard: Shard) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each instruction of a shard with the teacher's answer to it."""
    answers = {row["id"]: row for row in source.store.read_table(shard.answers).to_pylist()}
    for instruction in source.store.read_table(shard.instructions).to_pylist():
        yield instruction, answers[instruction["id"]]


class _Splits:
    """The files of one config and one iteration, one per split; each is opened at its first row."""

    def __init__(self, folder: Path, config: str, schema: pa.Schema, iteration: int, written: Written) -> None:
        self._folder = folder
        self._config = config
        self._schema = schema
        self._iteration = iteration
        self._written = written
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> _Splits:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            for split in list(self._rows):
                self._flush(split)
        for writer in self._writers.values():
            writer.close()

    def add(self, split: str, row: dict[str, Any]) -> None:
        rows = self._rows.setdefault(split, [])
        rows.append(row)
        if len(rows) == ROWS_AT_ONCE:
            self._flush(split)

    def _flush(self, split: str) -> None:
        rows = self._rows.pop(split)
        if split not in self._writers:
            name = f"{self._config}/{split}-{self._iteration}.parquet"
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writers[split] = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._written.files.setdefault(self._config, {}).setdefault(split, []).append(name)
        self._writers[split].write_table(table(rows, self._schema))
        self._written.rows[self._config, split] += len(rows)
