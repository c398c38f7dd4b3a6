"""Preference pairs from the verdicts of discrimination, without additional calls.

Invariants:
- A pair is an instruction with both answers and a verdict whose gap is at least `min_gap`.
- A verdict whose winner depends on the order of the answers makes no pair.

METHODS: preference pairs from an external judge, as in direct preference optimisation (Rafailov et al., 2023).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from lion_ray.core.errors import TrainingError
from lion_ray.core.records import OK
from lion_ray.discrimination.split import gaps, leads


def pairs(
    instructions: pa.Table, teacher: pa.Table, student: pa.Table, verdicts: pa.Table, *, min_gap: float
) -> list[dict[str, Any]]:
    """Training rows, each with a `rejected` answer: the student's if the teacher leads, else the teacher's.

    Args:
        instructions, teacher, student, verdicts: INSTRUCTION, ANSWER, ANSWER and VERDICT rows in the same order.
        min_gap: in points of the judge's scale; greater than 0.

    Raises:
        TrainingError: the tables have different rows.
    """
    ids = [table["id"].to_pylist() for table in (instructions, teacher, student, verdicts)]
    if any(other != ids[0] for other in ids[1:]):
        raise TrainingError("instructions, answers and verdicts of a part have different rows")
    gap = gaps(verdicts)
    first, second = leads(verdicts)
    decided = (np.abs(gap) >= min_gap) & ~(first * second < 0)  # an unknown gap (NaN) is not decided
    for table in (verdicts, teacher, student):
        decided &= np.asarray(table["status"].to_numpy(zero_copy_only=False) == OK)
    rows = []
    for place in np.flatnonzero(decided).tolist():
        row = {name: instructions[name][place].as_py() for name in instructions.column_names}
        better, worse = (teacher, student) if gap[place] > 0 else (student, teacher)
        rows.append(
            {
                "instruction": row["text"],
                "messages": row.get("messages") or (),
                "answer": better["text"][place].as_py(),
                "finish_reason": better["finish_reason"][place].as_py(),
                "rejected": worse["text"][place].as_py(),
                "rejected_finish_reason": worse["finish_reason"][place].as_py(),
            }
        )
    return rows
