"""Which verdicts make a pair of answers to learn from."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from lion_ray.core.errors import TrainingError
from lion_ray.core.records import ANSWER, INSTRUCTION, VERDICT, table
from lion_ray.imitation.pairs import pairs

SCORES: dict[str, tuple[list[int] | None, list[int] | None]] = {
    "teacher leads": ([8, 3], [7, 4]),
    "student leads": ([2, 6], [3, 5]),
    "even": ([5, 5], [5, 5]),
    "near": ([6, 5], [6, 5]),
    "order flips": ([9, 2], [3, 4]),
    "one order": ([9, 2], None),
    "unjudged": (None, None),
}
"""(teacher, student) with the teacher's answer first, and with the student's first."""


def tables(failed: int | None = None) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    rows = [{"id": f"{n:016x}", "text": name, "source": "seed", "iteration": 0} for n, name in enumerate(SCORES)]
    answers: list[list[dict[str, Any]]] = [
        [{"id": row["id"], "status": "ok", "text": f"{who} on {row['text']}", "finish_reason": "stop"} for row in rows]
        for who in ("teacher", "student")
    ]
    verdicts = []
    for row in rows:
        first, second = SCORES[str(row["text"])]
        said = [one for one in (first, second) if one]
        means = [sum(each) / len(said) for each in zip(*said, strict=True)] if said else [None, None]
        verdicts.append(
            {
                "id": row["id"],
                "status": "ok" if said else "quarantined",
                "teacher_score": means[0],
                "student_score": means[1],
                "teacher_first": first,
                "student_first": second,
            }
        )
    if failed is not None:
        answers[1][failed]["status"] = "quarantined"
    return table(rows, INSTRUCTION), table(answers[0], ANSWER), table(answers[1], ANSWER), table(verdicts, VERDICT)


def test_the_better_answer_is_the_one_the_judge_prefers_by_enough() -> None:
    found = {row["instruction"]: (row["answer"], row["rejected"]) for row in pairs(*tables(), min_gap=2.0)}
    assert found == {
        "teacher leads": ("teacher on teacher leads", "student on teacher leads"),
        "student leads": ("student on student leads", "teacher on student leads"),
        "one order": ("teacher on one order", "student on one order"),
    }


def test_a_verdict_that_the_order_decides_is_no_evidence() -> None:
    named = {row["instruction"] for row in pairs(*tables(), min_gap=0.5)}
    assert "order flips" not in named
    assert "near" in named


def test_an_answer_that_failed_makes_no_pair() -> None:
    named = {row["instruction"] for row in pairs(*tables(failed=0), min_gap=2.0)}
    assert named == {"student leads", "one order"}


def test_tables_of_other_rows_are_refused() -> None:
    instructions, teacher, student, verdicts = tables()
    with pytest.raises(TrainingError, match="have different rows"):
        pairs(instructions, teacher, student.slice(1), verdicts, min_gap=1.0)
