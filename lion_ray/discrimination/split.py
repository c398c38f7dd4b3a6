"""The split into hard and easy rows (paper, section 3.2).

A row is hard if the judge says so itself; without such a decision, if the teacher's answer is better by at least tau.
Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core.records import ORDERS, derive_seed
from lion_ray.discrimination.quality import relative_quality
from lion_ray.discrimination.scores import is_hard

COLUMNS = ("id", "status", "teacher_score", "student_score", "model", *ORDERS)
"""The VERDICT columns that a split needs."""
OWN_COLUMNS = ("gap", "hard")
"""Further columns that it uses if a user's judge wrote them."""


def gaps(verdicts: pa.Table) -> npt.NDArray[np.float64]:
    """How much better the teacher's answer is in each row; NaN if unknown."""
    found = [np.subtract(*(numbers(verdicts[name]) for name in ("teacher_score", "student_score")))]
    if "gap" in verdicts.column_names:
        own = numbers(verdicts["gap"])
        found.append(np.where(np.isnan(own), found[0], own))
    return np.asarray(found[-1], np.float64)


def lags(verdicts: pa.Table, tau: float) -> npt.NDArray[np.bool_]:
    """Which rows are hard; each must be `ok`."""
    hard = is_hard(gaps(verdicts), np.zeros(verdicts.num_rows), tau)
    if "hard" in verdicts.column_names:
        said = verdicts["hard"]
        hard = np.where(said.is_null().to_numpy(), hard, pc.fill_null(said, False).to_numpy(zero_copy_only=False))
    return np.asarray(hard, np.bool_)


def quality(verdicts: pa.Table, *, seed: int, stage: str) -> dict[str, float] | None:
    """Relative quality with its interval, over the rows with two scores. Returns None without such rows."""
    scored = verdicts.filter(pc.and_(verdicts["teacher_score"].is_valid(), verdicts["student_score"].is_valid()))
    found = relative_quality(
        numbers(scored["teacher_score"]), numbers(scored["student_score"]), seed=derive_seed(seed, stage)
    )
    return None if found is None else {"ratio": found.ratio, "low": found.low, "high": found.high}


def leads(verdicts: pa.Table) -> list[npt.NDArray[np.float64]]:
    """The teacher's score minus the student's, in each order of the answers; NaN if that order was not judged."""
    orders = [verdicts[order] for order in ORDERS]
    return [np.subtract(*(pc.list_element(order, place).to_numpy() for place in (0, 1))) for order in orders]


def order_flips(verdicts: pa.Table) -> dict[str, Any]:
    """The number of rows with scores in both orders, and of those with different winners."""
    first, second = leads(verdicts)
    both = first * second  # comparisons with NaN are false
    return {"order_flips": int((both < 0).sum()), "both_orders": int((~np.isnan(both)).sum())}


def numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A column of numbers; null becomes NaN."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(), np.float64)
