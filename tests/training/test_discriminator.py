"""The discriminator: its scores and loss by hand, what it learns, and that it goes on where it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lion_ray.core.errors import ModelError, TrainingError
from lion_ray.imitation.training.data import Sample
from lion_ray.imitation.training.discriminator import WEIGHTS, Settings, load, loss, save, score, scored, train

CPU = torch.device("cpu")
SETTINGS = Settings(learning_rate=1e-3, epochs=3, batch=4, seed=3)


def groups(count: int = 8) -> list[tuple[Sample, list[Sample]]]:
    """The teacher's answers end with one token, the student's with another."""
    found = []
    for number in range(count):
        prompt = [3, 4 + number, 5]
        students = [Sample([*prompt, 9, 20 + k], 3) for k in range(3)]
        found.append((Sample([*prompt, 7, 8, 30], 3), students))
    return found


def test_every_answer_starts_with_the_same_score(tiny: Path) -> None:
    found = load(tiny, None, CPU)
    assert score(found, groups(2), CPU) == [[0.0] * 3] * 2
    value, right = loss(found, *groups(1)[0], CPU)
    assert float(value.detach()) == pytest.approx(math.log(2))
    assert right == 0


def test_scores_do_not_depend_on_what_else_is_scored(tiny: Path) -> None:
    found = load(tiny, None, CPU)
    torch.nn.init.normal_(found.head.weight, generator=torch.Generator().manual_seed(1))
    short, long = Sample([3, 4, 5], 2), Sample([3, 4, 5, 6, 7, 8, 9], 2)

    def alone(one: Sample) -> float:
        hidden = found.body(input_ids=torch.tensor([one.ids])).last_hidden_state[0, -1]
        return float(found.head.weight[0] @ hidden)

    with torch.no_grad():
        both = found([short, long], CPU).tolist()
        assert both == pytest.approx([alone(short), alone(long)], rel=1e-5)
        leads = [both[1] - both[0]]
        value, right = loss(found, long, [short], CPU)
    assert float(value) == pytest.approx(math.log(1 + math.exp(-leads[0])), rel=1e-4)
    assert right == (leads[0] > 0)


def test_it_learns_to_tell_teacher_from_student(tiny: Path) -> None:
    found = load(tiny, None, CPU)
    metrics = train(found, groups(), replace(SETTINGS, epochs=8), CPU)
    assert metrics["steps"] == 16
    assert metrics["pairs_right"] > 0.9
    assert metrics["loss"] < math.log(2)
    teacher = [float(found([one], CPU)) for one, _ in groups()]
    students = score(found, groups(), CPU)
    assert min(teacher) > max(max(row) for row in students)


def test_equal_answers_are_computed_once_and_make_no_pairs(tiny: Path) -> None:
    (teacher, students), *_ = groups(1)
    found, plain = load(tiny, None, CPU), load(tiny, None, CPU)
    for one in (found, plain):
        torch.nn.init.normal_(one.head.weight, generator=torch.Generator().manual_seed(1))
    sizes: list[int] = []
    found.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    many = [students[0], teacher, students[0], students[1], teacher]
    with torch.no_grad():
        assert scored(found, many, CPU).tolist() == pytest.approx(plain(many, CPU).tolist(), rel=1e-5)
    assert sizes == [3]
    mixed = train(found, [(teacher, many)], replace(SETTINGS, epochs=1), CPU)
    alone = train(plain, [(teacher, [many[0], many[2], many[3]])], replace(SETTINGS, epochs=1), CPU)
    assert mixed == alone
    assert mixed["pairs"] == 3
    assert score(found, groups(1), CPU) == score(plain, groups(1), CPU)
    before = score(found, groups(1), CPU)
    nothing = train(found, [(teacher, [teacher, teacher])], SETTINGS, CPU)
    assert nothing == {"steps": 0, "pairs": 0, "loss": None, "pairs_right": None}
    assert score(found, groups(1), CPU) == before


def test_the_same_training_ends_with_the_same_bits_and_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    first, second = load(tiny, None, CPU), load(tiny, None, CPU)
    for one in (first, second):
        train(one, groups(), SETTINGS, CPU)
    assert score(first, groups(), CPU) == score(second, groups(), CPU)
    save(first, tmp_path / "d", {"round": 1})
    again = load(tiny, tmp_path / "d", CPU)
    assert score(again, groups(), CPU) == score(first, groups(), CPU)


def test_what_cannot_be_used_is_told_in_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ModelError, match=WEIGHTS):
        load(tiny, tmp_path, CPU)
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(load(tiny, None, CPU), groups(), replace(SETTINGS, learning_rate=math.inf), CPU)
