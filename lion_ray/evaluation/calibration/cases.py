"""Cases for measuring a judge: labelled pairs from a file, and a run's own rows.

Invariants:
- An invalid line is an error with its file and line; nothing is guessed or skipped.
- In a run's rows, answer 1 is the teacher's and answer 2 the student's; they have no label.

This module only reads; it calls no judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lion_ray.analysis.lineage import judged_iterations
from lion_ray.core import layout
from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.records import OK, ORDERS, derive_seed
from lion_ray.core.store import RunStore
from lion_ray.data.pools import cache_pools
from lion_ray.data.sources import SourceRow, rows_of
from lion_ray.discrimination.orders import BothOrders
from lion_ray.discrimination.pairwise import Comparison
from lion_ray.discrimination.scores import Pair

LABELS = {"1": "1", "2": "2", "tie": "tie", "model_a": "1", "model_b": "2", "tie (bothbad)": "tie"}
"""Accepted values of a label, mapped to answer 1, answer 2, or a tie."""
_WINNERS = ("label", "winner")
_INSTRUCTIONS = ("instruction", "prompt", "question")
_FIRST = ("first", "answer_1", "response_a", "answer_a")
_SECOND = ("second", "answer_2", "response_b", "answer_b")


@dataclass(frozen=True, slots=True)
class Case:
    """Two answers to one instruction, and the one that people prefer."""

    comparison: Comparison
    """`teacher` is answer 1, `student` answer 2."""
    label: str | None = None
    """1, 2 or tie; None without a label."""

    @property
    def id(self) -> str:
        return self.comparison.id

    @property
    def longer(self) -> int:
        """How many characters longer answer 1 is than answer 2."""
        return len(self.comparison.teacher) - len(self.comparison.student)


@dataclass(frozen=True, slots=True)
class Judged:
    """A run's row with its referee's recorded verdict."""

    case: Case
    orders: Mapping[str, Pair]
    """The readable scores (teacher, student) by order."""
    reason: str
    """Why the row is quarantined; empty if it is not."""
    calls: int
    weighted: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


def read_pairs(path: Path) -> list[Case]:
    """Labelled pairs from JSON Lines.

    A line has `instruction`, `first` and `second` (or `answer_1` and `answer_2`), `label` (1, 2 or "tie") and
    optionally `id`. FastChat's format is accepted too: `winner` is model_a, model_b or tie, and the answers are
    `conversation_a` and `conversation_b` (lists of role and content, of one turn), or `response_a` and `response_b`
    with a `prompt`.

    Raises:
        ConfigError: the file does not exist, or is not named .jsonl.
        DataError: a line is invalid, or an id is a duplicate; with the file and the line.
    """
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: labelled pairs must be JSON Lines, in a file named .jsonl")
    found: dict[str, Case] = {}
    for number, row in enumerate(rows_of(str(path), Path()), start=1):
        case = _case(row, f"pair-{number}")
        if case.id in found:
            raise DataError(f"{row.where}: duplicate id {case.id!r}; every pair needs a unique one")
        found[case.id] = case
    return list(found.values())


def _case(row: SourceRow, default_id: str) -> Case:
    value = row.value
    if row.problem or not isinstance(value, dict):
        raise DataError(f"{row.where}: {row.problem or 'not an object'}; correct the line")
    question, first = _conversation(value.get("conversation_a"), row.where, "conversation_a")
    _, second = _conversation(value.get("conversation_b"), row.where, "conversation_b")
    label = next((str(value[key]).lower() for key in _WINNERS if key in value), None)
    if label not in LABELS:
        raise DataError(f"{row.where}: `label` (or `winner`) is {label}; use 1, 2 or tie, or model_a or model_b")
    comparison = Comparison(
        id=str(value.get("id", default_id)),
        instruction=_text(value, _INSTRUCTIONS, question, row.where),
        teacher=_text(value, _FIRST, first, row.where),
        student=_text(value, _SECOND, second, row.where),
    )
    return Case(comparison, LABELS[label])


def _conversation(turns: Any, where: str, name: str) -> tuple[str | None, str | None]:
    """The question and its answer; both None without a conversation."""
    if turns is None:
        return None, None
    texts = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: `{name}` is not one question and its answer; only single turns can be judged")
    return texts[0], texts[1]


def _text(value: Mapping[str, Any], keys: Sequence[str], default: str | None, where: str) -> str:
    text = next((value[key] for key in keys if key in value), default)
    if not isinstance(text, str):
        raise DataError(f"{where}: `{keys[0]}` is missing or not a string")
    return text


# -- a run's rows ----------------------------------------------------------------------------------------------------


def judged_rows(store: RunStore, iteration: int, count: int | None = None) -> list[Judged]:
    """Rows of the Cache Pool that an iteration's referee judged; a deterministic sample of `count` of them.

    Raises:
        DataError: the run has no such verdicts.
    """
    if iteration not in judged_iterations(store):
        raise DataError(f"{store.root}: iteration {iteration} has not finished judging the Cache Pool yet")
    rows = list(_joined(store, iteration))
    chosen = {row.case.id for row in sorted(rows, key=lambda row: derive_seed("judge", row.case.id))[:count]}
    return [row for row in rows if row.case.id in chosen]


def both_orders(judged: Iterable[Judged]) -> list[BothOrders]:
    """The rows with readable scores in both orders."""
    return [
        BothOrders(row.case.id, row.orders[ORDERS[0]], row.orders[ORDERS[1]], row.calls, row.cost_usd)
        for row in judged
        if row.orders.keys() >= set(ORDERS)
    ]


def _joined(store: RunStore, iteration: int) -> Iterator[Judged]:
    """Instructions, answers and verdicts, row by row: part i of the verdicts belongs to the Cache Pool's shard i."""
    part = 0
    for pool in cache_pools(iteration):
        manifest = store.stage(layout.pool(pool)).manifest()
        if manifest is None:
            raise DataError(f"{store.path(layout.pool(pool))}: this pool is incomplete")
        for index in range(manifest["parts"]):
            folders = (layout.pool(pool), layout.answers(pool))
            instructions, teacher = (store.stage(name).read_part(index).to_pylist() for name in folders)
            folders = (layout.student_answers(iteration), layout.verdicts(iteration))
            student, verdicts = (store.stage(name).read_part(part).to_pylist() for name in folders)
            for row, first, second, verdict in zip(instructions, teacher, student, verdicts, strict=True):
                if first["status"] == OK and second["status"] == OK:
                    yield _judged(Comparison(row["id"], row["text"], first["text"], second["text"]), verdict)
            part += 1


def _judged(comparison: Comparison, verdict: Mapping[str, Any]) -> Judged:
    return Judged(
        case=Case(comparison),
        orders={order: (pair[0], pair[1]) for order in ORDERS if (pair := verdict[order])},
        reason=verdict["reason"] or "",
        calls=len(verdict["calls"] or ()),
        weighted=verdict.get("weighted") or 0,
        prompt_tokens=verdict["prompt_tokens"] or 0,
        completion_tokens=verdict["completion_tokens"] or 0,
        cost_usd=verdict["cost_usd"],
    )
