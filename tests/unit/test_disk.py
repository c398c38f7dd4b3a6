"""The disk that a run takes: by arithmetic, and refused in one line before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.core import layout, room
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.room import GIB
from lion_ray.core.store import RunStore
from lion_ray.pipeline import disk
from lion_ray.pipeline.disk import check_disk, disk_line, disk_plan


def configured(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_name": "r",
            "iterations": 3,
            "storage_path": str(folder / "runs"),
            "data": {"pool": "pool.jsonl"},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "absent-7b"},
        }
        | changes
    )


def test_students_stay_and_a_fit_has_two_checkpoints_of_weights_and_moments(tmp_path: Path) -> None:
    plan = disk_plan(configured(tmp_path), 7e9)
    assert (plan.students, plan.fit, plan.scratch) == (4 * 28e9, 2 * 84e9, 0)
    plan = disk_plan(configured(tmp_path), 7e9, done=3)
    assert (plan.students, plan.fit) == (28e9, 2 * 84e9)
    assert disk_plan(configured(tmp_path), 7e9, done=4) == disk.DiskPlan(0, 0, 0)
    adapters = disk_plan(configured(tmp_path, imitation={"lora": {}}), 7e9)
    assert (adapters.students, adapters.fit) == (4 * 28e9, 0)
    bucket = disk_plan(configured(tmp_path, storage_path="s3://bucket/runs"), 7e9)
    assert (bucket.students, bucket.scratch) == (4 * 28e9, 4 * 28e9 + 84e9)


def test_a_disk_that_is_too_small_is_one_line_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, free = configured(tmp_path), 100 * GIB
    monkeypatch.setattr(disk, "free_disk", lambda _: free)
    store = RunStore(str(tmp_path / "runs" / "r"))
    with pytest.raises(InfrastructureError) as caught:
        check_disk(config, tmp_path, store)
    assert str(caught.value) == (
        f"{tmp_path}/runs: 100.0 GiB are free, and this run may need 260.8 GiB there for its students and a fit's "
        "checkpoints; free some, set storage_path to a larger disk, or train adapters (imitation.lora)"
    )
    # What is there already is not needed again.
    store.claim()
    for iteration in (1, 2, 3, 4):
        store.stage(layout.checkpoint(iteration)).commit({})
    check_disk(config, tmp_path, store)
    assert "104.3 GiB at" in disk_line(config, disk_plan(config, 7e9))
    assert "100.0 GiB are free at" in disk_line(config, disk_plan(config, 7e9))


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path: Path) -> None:
    assert room.free_disk(tmp_path / "a" / "b") == pytest.approx(room.free_disk(tmp_path), rel=0.2)
    assert 0 < room.free_memory() < 2**50
