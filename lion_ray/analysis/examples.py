"""A few held-out instructions with the student's answers before and after the run, and the teacher's.

Invariants:
- The choice depends only on the run's seed and the rows' ids, never on the answers. A failed answer is shown as
  failed, not skipped.
- Texts are shortened but otherwise unchanged: the caller must escape them before display.

It reads only the files that contain the chosen rows. This module does not know terminals or pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lion_ray.core import layout
from lion_ray.core.records import OK, derive_seed
from lion_ray.core.store import RunStore

COUNT = 3
HOW = "chosen by a hash of the run's seed and their ids, not by their answers: neither the best nor the worst"
"""How the examples were chosen, as shown to the reader."""
LINES, CHARACTERS = 6, 480
"""Maximum lines and characters of a text."""


@dataclass(frozen=True, slots=True)
class ExampleAnswer:
    """One answer."""

    who: str
    """The teacher, or the student's iteration."""
    text: str
    """Shortened; empty if there is no answer."""
    problem: str | None
    """Why there is no answer."""
    score: float | None
    """The mean of its checks, 0 to 1; None without checks, or if they could not score it."""
    by_check: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction and its answers."""

    id: str
    instruction: str
    """Shortened."""
    answers: tuple[ExampleAnswer, ExampleAnswer, ExampleAnswer]
    """The base model, the last checkpoint, the teacher."""


def read_examples(store: RunStore, count: int = COUNT) -> list[Example]:
    """The run's examples; empty if the held-out set was not answered both before and after.

    Raises:
        InfrastructureError: a file of the run is damaged.
    """
    pool = store.stage(layout.pool(layout.HELDOUT)).manifest()
    described = store.description()
    if pool is None or described is None:
        return []
    config = described["config"]
    answered = [k for k in range(config["iterations"] + 2) if _answered(store, k)]
    if (
        not answered
        or answered[0] != 0
        or answered[-1] == 0
        or store.stage(layout.answers(layout.HELDOUT)).manifest() is None
    ):
        return []
    last = answered[-1]
    stages = (
        ("base model", layout.student_answers(0, heldout=True), layout.checks(0)),
        (f"student after iteration {last}", layout.student_answers(last, heldout=True), layout.checks(last)),
        ("teacher", layout.answers(layout.HELDOUT), layout.checks(None)),
    )
    chosen = _chosen(store, pool["parts"], config["seed"], count)
    texts = _rows(store, layout.pool(layout.HELDOUT), chosen, ("id", "text"))
    check_scores = [_checks(store, checks, chosen) for _, _, checks in stages]
    answers_by_stage = [_rows(store, answers, chosen, ("id", "text", "status", "reason")) for _, answers, _ in stages]
    examples = []
    for row in chosen:
        base, after, teacher = (
            _example_answer(who, answers[row], checks.get(row))
            for (who, _, _), answers, checks in zip(stages, answers_by_stage, check_scores, strict=True)
        )
        examples.append(Example(row, shortened(texts[row]["text"]), (base, after, teacher)))
    return examples


def shortened(text: str, lines: int = LINES, characters: int = CHARACTERS) -> str:
    """The beginning of a text, with the number of characters left out, if any."""
    kept = "\n".join(text.strip().split("\n")[:lines])[:characters].rstrip()
    left = len(text.strip()) - len(kept)
    return kept if left <= 0 else f"{kept} … ({left:,} more characters)"


def _answered(store: RunStore, iteration: int) -> bool:
    return store.stage(layout.student_answers(iteration, heldout=True)).manifest() is not None


def _chosen(store: RunStore, parts: int, seed: int, count: int) -> dict[str, int]:
    """The chosen rows' ids in the order of their hashes, each with the number of its part."""
    stage = store.stage(layout.pool(layout.HELDOUT))
    part_of = {
        row: part for part in range(parts) for row in store.read_table(stage.part_name(part), ("id",))["id"].to_pylist()
    }
    order = sorted(part_of, key=lambda row: (derive_seed("examples", seed, row), row))
    return {row: part_of[row] for row in order[:count]}


def _rows(store: RunStore, stage: str, chosen: Mapping[str, int], columns: Iterable[str]) -> dict[str, dict[str, Any]]:
    tables = (
        store.read_table(store.stage(stage).part_name(part), tuple(columns)) for part in sorted(set(chosen.values()))
    )
    return {row["id"]: row for table in tables for row in table.to_pylist() if row["id"] in chosen}


def _checks(store: RunStore, stage: str, chosen: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    if store.stage(stage).manifest() is None:
        return {}
    return {row["id"]: row for row in store.stage(stage).read_part(0).to_pylist() if row["id"] in chosen}


def _example_answer(who: str, answer: Mapping[str, Any], check_scores: Mapping[str, Any] | None) -> ExampleAnswer:
    answered = answer["status"] == OK
    return ExampleAnswer(
        who=who,
        text=shortened(answer["text"]) if answered else "",
        problem=None if answered else str(answer["reason"]),
        score=check_scores["score"] if check_scores else None,
        by_check={one["check"]: one["value"] for one in check_scores["scores"]} if check_scores else {},
    )
