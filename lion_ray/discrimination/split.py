"""Hard and easy rows (paper, section 3.2): where the student lags, and where it keeps up.

A row is hard where the judge says so itself, else where the teacher's answer is better by at least tau. Pure.
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
"""What a split needs of VERDICT rows."""
OWN_COLUMNS = ("gap", "hard")
"""What it takes beside them, where a judge of the user's own wrote it."""


def gaps(verdicts: pa.Table) -> npt.NDArray[np.float64]:
    """By how much the teacher's answer is better in each row, NaN where that is not known."""
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
    """Relative quality with its interval, over the rows with two scores; None where there are none."""
    scored = verdicts.filter(pc.and_(verdicts["teacher_score"].is_valid(), verdicts["student_score"].is_valid()))
    found = relative_quality(
        numbers(scored["teacher_score"]), numbers(scored["student_score"]), seed=derive_seed(seed, stage)
    )
    return None if found is None else {"ratio": found.ratio, "low": found.low, "high": found.high}


def leads(verdicts: pa.Table) -> list[npt.NDArray[np.float64]]:
    """The teacher's score less the student's, in each order of the answers; NaN where that order was not asked."""
    orders = [verdicts[order] for order in ORDERS]
    return [np.subtract(*(pc.list_element(order, place).to_numpy() for place in (0, 1))) for order in orders]


def order_flips(verdicts: pa.Table) -> dict[str, Any]:
    """Rows with a score in both orders, and of them those with different winners."""
    first, second = leads(verdicts)
    both = first * second  # NaN is neither more nor less than anything
    return {"order_flips": int((both < 0).sum()), "both_orders": int((~np.isnan(both)).sum())}


def numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A column of numbers, NaN where it is null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(), np.float64)
