"""Which instructions a round draws: a Rewarder on a run folder, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_ray.actors.rewarder import Rewarder
from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.records import ANSWER, INSTRUCTION, OK, REWARD, RUBRIC, table
from lion_ray.core.store import RunStore

IDS = [f"i{number}" for number in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    found = RunStore(str(tmp_path))
    found.claim()
    rows: Any = [{"id": one, "text": f"Say {one}.", "source": "seed", "iteration": 0} for one in IDS]
    answers: Any = [{"id": one, "text": one, "status": OK} for one in IDS[:-1]]
    answers.append({"id": IDS[-1], "text": "", "status": "quarantined", "reason": "empty"})
    found.write_table("instructions", table(rows, INSTRUCTION))
    found.write_table("answers", table(answers, ANSWER))
    return found


def rewarder(store: RunStore, folder: Path, **reward: str) -> Rewarder:
    values: Any = {"run_name": "r", "data": {"pool": "p"}, "endpoints": {"default": {"model": "m"}}}
    values |= {
        "student": {"model": "s"},
        "on_policy": {"reward": {"type": "rubric"} | reward, "allow_same_judge": True},
    }
    return Rewarder(RunConfig.model_validate(values), store, {}, folder)


def drawn(store: RunStore, tmp_path: Path, number: int, **reward: str) -> list[str]:
    parts = [("instructions", "answers", "answers")]
    count = rewarder(store, tmp_path, **reward).draw(1, number, parts, 3)
    ids: list[str] = store.read_table(layout.round_prompts(1, number))["id"].to_pylist()
    assert count == len(ids)
    return ids


def rewarded(store: RunStore, ids: list[str], *, met: list[bool]) -> None:
    """Commit the rewards of a first round: an answer for each of `met`, which has its only criterion or not."""
    rewards: Any = [
        {"id": one, "sample": number, "status": OK, "score": float(each), "met": [each]}
        for one in ids
        for number, each in enumerate(met)
    ]
    stage = store.stage(layout.round_rewards(1, 1))
    store.write_table(stage.part_name(0), table(rewards, REWARD))
    stage.commit({"parts": 1})


def rubrics(store: RunStore, ids: list[str]) -> None:
    rows: Any = [{"id": one, "status": OK, "criteria": [{"text": "It is short.", "points": 1}]} for one in ids]
    stage = store.stage(layout.round_rubrics(1, 1))
    store.write_table(stage.part_name(0), table(rows, RUBRIC))
    stage.commit({"parts": 1})


def test_rounds_draw_answered_rows_one_after_another(store: RunStore, tmp_path: Path) -> None:
    first = drawn(store, tmp_path, 1)
    assert len(first) == 3
    assert set(first) < set(IDS[:-1]), "the quarantined row is not drawn"
    assert drawn(store, tmp_path, 1) == first
    rubrics(store, first)
    rewarded(store, first, met=[True, False])
    second = drawn(store, tmp_path, 2)
    assert set(second[:2]) == set(IDS[:-1]) - set(first)
    assert second[2] == first[0], "and then from the beginning"


@pytest.mark.parametrize(
    ("met", "leave_out", "again"),
    [
        ([True, True], "untelling", False),
        ([False, False], "untelling", False),
        ([True, True], "fulfilled", False),
        ([False, False], "fulfilled", True),
        ([True, False], "fulfilled", True),
    ],
)
def test_a_row_whose_criteria_are_settled_is_not_drawn_again(
    store: RunStore, tmp_path: Path, met: list[bool], leave_out: str, again: bool
) -> None:
    first = drawn(store, tmp_path, 1)
    rubrics(store, first)
    rewarded(store, first, met=met)
    second = drawn(store, tmp_path, 2, leave_out=leave_out)
    assert set(second) >= set(IDS[:-1]) - set(first)
    assert bool(set(second) & set(first)) is again


def test_no_row_is_drawn_if_all_are_settled(store: RunStore, tmp_path: Path) -> None:
    rubrics(store, IDS[:-1])
    rewarded(store, IDS[:-1], met=[True, True])
    assert drawn(store, tmp_path, 2) == []


def test_a_discriminator_has_no_rubrics(store: RunStore, tmp_path: Path) -> None:
    first = drawn(store, tmp_path, 1, type="discriminator")
    rewarded(store, first, met=[True, True])
    assert len(drawn(store, tmp_path, 2, type="discriminator")) == 3
