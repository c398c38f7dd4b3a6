"""Ending early: the decision as a function, and as a run folder has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig, answers_heldout, judges_heldout
from lion_ray.core import layout
from lion_ray.pipeline.early_stop import measured, on_plateau, read_stop, stop_reason
from lion_ray.pipeline.results import finished
from lion_ray.pipeline.status import read_status
from tests.run_folder import RunFolder


@pytest.mark.parametrize(
    ("values", "rounds", "min_gain", "stops"),
    [
        ([0.8], 1, 0.01, False),
        ([0.8, 0.9], 1, 0.01, False),
        ([0.8, 0.805], 1, 0.01, True),
        ([0.8, 0.9, 0.85], 1, 0.01, True),
        ([0.8, 0.9, 0.85], 2, 0.01, False),
        ([0.8, 0.9, 0.85, 0.9], 2, 0.01, True),
        # Small rises together are a gain over the best.
        ([0.8, 0.806, 0.812], 2, 0.01, False),
        ([0.8, None, 0.805], 1, 0.01, True),
        ([None, None], 1, 0.01, False),
        ([0.8, 0.8], 1, 0.0, True),
        ([0.8, 0.8001], 1, 0.0, False),
        ([-2.0, -1.5, -1.49], 1, 0.05, True),
        ([], 1, 0.0, False),
    ],
)
def test_a_plateau(values: list[float | None], rounds: int, min_gain: float, stops: bool) -> None:
    assert on_plateau(values, rounds=rounds, min_gain=min_gain) is stops


def small(tmp_path: Path, plateau: dict[str, Any] | None, judge: str = "every") -> RunFolder:
    config = {"stop": {"plateau": plateau}, "discrimination": {"judge_heldout": judge}}
    return RunFolder(tmp_path / "run", iterations=3, config=config).begin()


def set_quality(folder: RunFolder, iteration: int, ratio: float | None) -> None:
    stage = folder.store.stage(f"iteration-{iteration}/heldout/verdicts")
    quality = ratio and {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    stage.commit((stage.manifest() or {}) | {"relative_quality": quality})


def test_off_by_default(tmp_path: Path) -> None:
    folder = small(tmp_path, None)
    folder.iterate(1)
    set_quality(folder, 0, 0.9)
    set_quality(folder, 1, 0.1)
    assert stop_reason(folder.store, folder.settings, 1) is None
    assert not folder.store.exists(layout.STOPPED)


def test_quality_that_does_not_rise_ends_the_run(tmp_path: Path) -> None:
    folder = small(tmp_path, {"rounds": 1, "min_gain": 0.01})
    set_quality(folder, 0, 0.8)
    folder.iterate(1)
    set_quality(folder, 1, 0.9)
    assert stop_reason(folder.store, folder.settings, 1) is None
    folder.fit(2)
    folder.judge(2, "heldout", ["heldout"])
    set_quality(folder, 2, 0.905)
    reason = stop_reason(folder.store, folder.settings, 2)
    assert reason == "held-out relative quality rose by less than 1.0% in an iteration: 90.5%, previous best 90.0%"
    stopped = read_stop(folder.store)
    assert stopped is not None
    assert (stopped["iteration"], stopped["measure"], stopped["values"]) == (2, "quality", [0.8, 0.9, 0.905])
    assert not finished(folder.store, 3), "its result is not written yet"
    folder.conclude(2)
    assert finished(folder.store, 3)
    found = read_status(folder.store)
    assert found.stopped == reason
    assert reason in found.sentence()
    assert found.to_json()["stopped"] == reason


def test_a_resumed_run_decides_the_same(tmp_path: Path) -> None:
    folder = small(tmp_path, {"rounds": 1, "min_gain": 0.01})
    set_quality(folder, 0, 0.8)
    folder.iterate(1)
    set_quality(folder, 1, 0.7)
    reason = stop_reason(folder.store, folder.settings, 1)
    first = folder.store.read_bytes(layout.STOPPED)
    assert stop_reason(folder.store, folder.settings, 1) == reason
    assert folder.store.read_bytes(layout.STOPPED) == first
    # Killed before it was written down: the numbers are the same, and so is the decision.
    folder.store.delete(layout.STOPPED)
    assert stop_reason(folder.store, folder.settings, 1) == reason
    assert folder.store.read_bytes(layout.STOPPED) == first


def test_loss_where_not_every_checkpoint_is_judged(tmp_path: Path) -> None:
    folder = small(tmp_path, {"rounds": 1, "min_gain": 0.2}, judge="ends")
    folder.fit(1)
    assert measured(folder.store, folder.settings, 1) == ("loss", [2.0, 1.5])
    assert stop_reason(folder.store, folder.settings, 1) is None
    folder.fit(2)
    reason = stop_reason(folder.store, folder.settings, 2)
    assert reason == "held-out loss fell by less than 0.2 in an iteration: 1.333, previous best 1.500"
    assert judges_heldout(folder.settings, 2, last=True), "where it ends it is judged"
    assert not judges_heldout(folder.settings, 2)


def test_checks_go_before_the_judge_and_say_so(tmp_path: Path) -> None:
    checks = [{"type": "contains", "text": "answer"}]
    config = {
        "stop": {"plateau": {"rounds": 1, "min_gain": 0.2}},
        "evaluation": {"checks": checks},
        "discrimination": {"judge_heldout": "never"},
    }
    folder = RunFolder(tmp_path / "run", iterations=3, config=config).begin()
    folder.iterate(1)
    # Of six rows one says it of the base model, and two after the first iteration.
    measure, values = measured(folder.store, folder.settings, 1)
    assert measure == "checks"
    assert values == pytest.approx([1 / 6, 2 / 6])
    reason = stop_reason(folder.store, folder.settings, 1)
    assert reason == "the checks' held-out score rose by less than 0.2 in an iteration: 0.333, previous best 0.167"
    stopped = read_stop(folder.store)
    assert stopped is not None
    assert stopped["measure"] == "checks"
    for iteration in (1, 2):
        assert answers_heldout(folder.settings, iteration)
        assert not judges_heldout(folder.settings, iteration)


def test_a_checkpoint_that_was_not_measured_decides_nothing(tmp_path: Path) -> None:
    folder = small(tmp_path, {"rounds": 1, "min_gain": 0.01})
    folder.iterate(1)
    set_quality(folder, 1, None)
    assert stop_reason(folder.store, folder.settings, 1) is None


def test_a_plateau_needs_a_held_out_set() -> None:
    with pytest.raises(ValueError, match=r"stop\.plateau: data\.heldout is 0"):
        RunConfig.model_validate(
            {
                "run_name": "r",
                "data": {"pool": "p.jsonl"},
                "endpoints": {"default": {"model": "m"}},
                "student": {"model": "s"},
                "stop": {"plateau": {}},
            }
        )
