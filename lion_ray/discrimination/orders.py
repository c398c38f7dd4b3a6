"""The order in which a row is judged first, when the second order is judged too, and what skipping it saves.

Invariants:
- The first order depends on the row's id alone: it is the same in every attempt, and each order comes first for half of
  a pool, so that the judge's position bias cancels over rows judged in one order.
- A row whose first verdict is near tau is judged in both orders. A row far from tau uses one order and records that.

The paper judges every row in both orders (section 3.2). From such verdicts, `replay` computes what skipping would have
changed. This module does not know judges, calls or tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lion_ray.core.records import ORDERS, derive_seed
from lion_ray.discrimination.scores import Pair, combine, is_hard

MARGINS = (0.0, 0.5, 1.0, 2.0, 3.0)
"""The margins that a replay reports."""


def first_order(row_id: str) -> str:
    """The one of ORDERS in which a row is judged first."""
    return ORDERS[derive_seed("first order", row_id) % len(ORDERS)]


def needs_second(pair: Pair, tau: float, margin: float) -> bool:
    """Whether the first order's (teacher, student) scores are so near to `tau` that the second order is needed."""
    return abs(pair[0] - pair[1] - tau) <= margin


@dataclass(frozen=True, slots=True)
class BothOrders:
    """A row that was judged in both orders."""

    id: str
    teacher_first: Pair
    """(teacher, student), like `student_first`."""
    student_first: Pair
    calls: int = 2
    """Calls made, including verdicts that could not be read."""
    cost_usd: float | None = None

    @property
    def means(self) -> Pair:
        found = combine(self.teacher_first, self.student_first)
        assert found is not None
        return found

    @property
    def gap(self) -> float:
        """score(teacher) - score(student), the mean of both orders."""
        return self.means[0] - self.means[1]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What `near_threshold` with one margin would have saved and changed."""

    margin: float
    rows: int
    asked_second: int
    calls_saved: int
    calls_share: float
    """Calls saved as a share of all calls."""
    usd_saved: float | None
    """An estimate that assumes equal cost of a row's calls. None if a verdict has no price."""
    hard: int
    hard_always: int
    became_hard: int
    """Easy by both orders, hard by one order."""
    became_easy: int

    @property
    def changed(self) -> int:
        """Decisions that change."""
        return self.became_hard + self.became_easy

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"changed": self.changed}


def replay(rows: Sequence[BothOrders], tau: float, margins: Iterable[float] = MARGINS) -> list[Replayed]:
    """What each margin would have saved on rows judged in both orders, and how many decisions would change."""
    return [_replay(rows, tau, margin) for margin in margins]


def _replay(rows: Sequence[BothOrders], tau: float, margin: float) -> Replayed:
    asked = saved = hard = hard_always = became_hard = became_easy = 0
    usd = 0.0
    for row in rows:
        first: Pair = getattr(row, first_order(row.id))
        always = bool(is_hard(row.means[0], row.means[1], tau))
        if needs_second(first, tau, margin):
            asked += 1
            now = always
        else:
            now = bool(is_hard(first[0], first[1], tau))
            saved += 1
            usd += (row.cost_usd or 0.0) / row.calls
        hard, hard_always = hard + now, hard_always + always
        became_hard, became_easy = became_hard + (now and not always), became_easy + (always and not now)
    calls = sum(row.calls for row in rows)
    return Replayed(
        margin=margin,
        rows=len(rows),
        asked_second=asked,
        calls_saved=saved,
        calls_share=saved / calls if calls else 0.0,
        usd_saved=usd if rows and all(row.cost_usd is not None for row in rows) else None,
        hard=hard,
        hard_always=hard_always,
        became_hard=became_hard,
        became_easy=became_easy,
    )
