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


def drawn(store: RunStore, tmp_path: Path, number: int) -> list[str]:
    config = RunConfig.model_validate(
        {"run_name": "r", "data": {"pool": "p"}, "endpoints": {"default": {"model": "m"}}, "student": {"model": "s"}}
    )
    count = Rewarder(config, store, {}, tmp_path).draw(1, number, [("instructions", "answers", "answers")], 3)
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


def test_a_row_whose_criteria_told_nothing_is_not_drawn_again(store: RunStore, tmp_path: Path) -> None:
    first = drawn(store, tmp_path, 1)
    rubrics(store, first)
    rewarded(store, first, met=[True, True])
    assert set(drawn(store, tmp_path, 2)) == set(IDS[:-1]) - set(first)


def test_a_discriminator_has_no_rubrics(store: RunStore, tmp_path: Path) -> None:
    first = drawn(store, tmp_path, 1)
    rewarded(store, first, met=[True, True])
    assert len(drawn(store, tmp_path, 2)) == 3
