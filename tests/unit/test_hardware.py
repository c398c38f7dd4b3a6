"""What a run takes of GPUs and memory on paper, against sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.core.room import GIB
from lion_ray.pipeline import hardware
from lion_ray.pipeline.hardware import memory
from lion_ray.pipeline.plan import make_plan, plan_table
from tests.unit.test_plan import configured

SEVEN = 7e9
"""The parameters of `absent-7b`, by its name."""


def on_gpus(folder: Path, **imitation: Any) -> RunConfig:
    values = configured(folder).model_dump()
    values["student"] |= {"use_gpu": True, "dtype": "float16", "tensor_parallel_size": 2}
    values["imitation"] |= {"use_gpu": True, "precision": "bf16", "workers": 8, "sharding": "full"} | imitation
    return RunConfig.model_validate(values)


def test_a_sharded_students_memory(tmp_path: Path) -> None:
    found = memory(on_gpus(tmp_path), SEVEN)
    assert found.training == pytest.approx((16 * SEVEN / 8 + 0.15 * SEVEN * 2) / GIB, abs=0.05)
    assert found.engine == pytest.approx(2 * SEVEN / 2 / GIB, abs=0.05)
    assert found.host == pytest.approx(12 * SEVEN / GIB, abs=0.05)
    replicas = memory(on_gpus(tmp_path, replicas=2), SEVEN)
    assert replicas.training == pytest.approx((16 * SEVEN / 4 + 0.15 * SEVEN * 2) / GIB, abs=0.05)
    assert replicas.host == pytest.approx(2 * found.host, abs=0.1), "each replica keeps a copy"


def test_frozen_weights_have_no_copies(tmp_path: Path) -> None:
    config = on_gpus(tmp_path, lora={"rank": 8}, sharding="none", workers=1)
    found = memory(config, SEVEN)
    assert found.training == pytest.approx(2 * SEVEN / GIB, abs=0.05)
    assert found.host == 0
    assert found.lines(config)[0].startswith("memory of a training worker: each frozen parameter takes 2 bytes")


def test_gpu_time_of_every_stage_that_uses_one(tmp_path: Path) -> None:
    plan = make_plan(on_gpus(tmp_path), tmp_path)
    seconds = {(stage.iteration, stage.stage): stage.gpu_s for stage in plan.stages if stage.gpu_s is not None}
    assert {name for _, name in seconds} == {"fine-tuning", "student answers the Cache Pool"}
    # 100 rows of 5 and 160 tokens, three times; then 160 tokens for each of 100 rows.
    fit = 3 * 100 * 165 * 6 * SEVEN / (hardware.TRAINING * 989e12)
    assert seconds[1, "fine-tuning"] == pytest.approx(fit)
    assert seconds[1, "student answers the Cache Pool"] == pytest.approx(
        100 * 160 * 2 * SEVEN / (hardware.SAMPLING * 989e12)
    )
    hours = json.loads(json.dumps(plan.to_json()))["totals"]["gpu_s"] / 3600
    assert hours == pytest.approx(sum(seconds.values()) / 3600)
    (line,) = [note for note in plan.notes if "GPU-hours" in note]
    assert line.startswith(f"about {hours:.1f} GPU-hours of an H100")
    assert "GPU-minutes (about)" in [column.header for column in plan_table(plan).columns]
    adapters = make_plan(on_gpus(tmp_path, lora={"rank": 8}), tmp_path)
    assert next(one.gpu_s for one in adapters.stages if one.steps) == pytest.approx(fit * 4 / 6)


def test_a_cpu_takes_no_gpu_time(tmp_path: Path) -> None:
    plan = make_plan(configured(tmp_path), tmp_path)
    assert plan.to_json()["totals"]["gpu_s"] is None
    assert not any("GPU-hours" in note for note in plan.notes)
    assert "GPU-minutes (about)" not in [column.header for column in plan_table(plan).columns]


def test_rounds_take_the_time_of_their_answers_and_steps(tmp_path: Path) -> None:
    values = on_gpus(tmp_path).model_dump()
    values["on_policy"] = {"rounds": 2, "prompts": 10, "samples": 4, "allow_same_judge": True}
    plan = make_plan(RunConfig.model_validate(values), tmp_path)
    rounds = next(stage for stage in plan.stages if stage.stage == "on-policy rounds")
    sampled = 2 * 10 * 4
    answers = sampled * 160 * 2 * SEVEN / (hardware.SAMPLING * 989e12)
    assert rounds.gpu_s == pytest.approx(answers + sampled * 165 * 6 * SEVEN / (hardware.TRAINING * 989e12))
    assert rounds.student_tokens == sampled * 1024
    assert rounds.calls == 2 * 10 * 2
