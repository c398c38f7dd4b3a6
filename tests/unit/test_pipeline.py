"""The one list of stages: a new one is seen by loop, plan, results, status, report and export."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.core.progress import Progress
from lion_ray.export.model_card import model_card
from lion_ray.export.source import Source
from lion_ray.pipeline.loop import iterate
from lion_ray.pipeline.plan import Planner, StagePlan, make_plan
from lion_ray.pipeline.results import summarise
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import run_stages
from lion_ray.pipeline.stage import Phase, Stage, When
from lion_ray.pipeline.stages import PIPELINE, due, named, of_iteration
from lion_ray.pipeline.status import read_status
from lion_ray.report import render
from tests.run_folder import RunFolder

CONFIG = {
    "run_name": "small",
    "data": {"pool": "pool.jsonl"},
    "endpoints": {"default": {"model": "m"}},
    "student": {"model": "./student"},
}


class Translating(Stage):
    """A toy: what a stage must have and no more."""

    name = "translating"
    phase = Phase.GENERATION
    actor = "generator"
    after = ("generating",)

    def folder(self, iteration: int) -> str:
        return f"iteration-{iteration}/translations"

    def due(self, when: When) -> bool:
        return when.iteration <= when.config.iterations

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is None:
            with run.progress.stage(self.title(iteration), 1, "rows") as shown:
                shown.advance(1)
            stage.commit({"rows": 3, "quarantined": {"no such language": 1}, "calls": 7, "began": 5.0, "seconds": 2.5})

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        return replace(planner.stage(self, iteration, 3), calls=7)


@pytest.fixture
def toy() -> Iterator[Stage]:
    stage = Translating()
    PIPELINE.append(stage)
    yield stage
    PIPELINE.remove(stage)


async def test_the_loop_runs_a_new_stage_once(toy: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, iterations=1)
    folder.begin()
    folder.iterate(1)
    log = io.StringIO()
    run = Run(folder.settings, tmp_path, folder.store, Progress(log), SimpleNamespace())
    for _ in range(2):
        await iterate(run, 1, Phase.GENERATION)
    assert toy.manifest(folder.store, 1)["rows"] == 3
    assert log.getvalue().count("iteration 1: translating: done") == 1


def test_everything_that_reads_the_pipeline_knows_a_new_stage(toy: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", iterations=1).finish()
    run = Run(folder.settings, tmp_path, folder.store, Progress(io.StringIO()), SimpleNamespace())
    asyncio.run(toy.run(run, 1))
    # results
    found = summarise(folder.store, 1)
    assert found.stages["translating"] == {"calls": 7, "seconds": 2.5}
    assert found.quarantined["translating: no such language"] == 1
    # status
    before = sum(one.stages.get("translating", {}).get("calls", 0) for one in read_status(folder.store).results)
    assert before == 7
    assert named(toy.folder(1)) == "translating"
    # report
    assert "1 · translating" in render(folder.store)
    # export
    assert "| translating | 2.5 | 7 |" in model_card(Source.open(folder.store))
    # plan
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Say something about the sea."}\n')
    config = RunConfig.model_validate(CONFIG | {"iterations": 2, "data": {"pool": "pool.jsonl", "heldout": 0}})
    planned = [(one.iteration, one.calls) for one in make_plan(config, tmp_path).stages if one.stage == "translating"]
    assert planned == [(1, 7), (2, 7)]


def test_every_stage_has_a_name_and_a_folder_of_its_own() -> None:
    for iteration in range(4):
        stages = of_iteration(iteration)
        assert len({stage.name for stage in stages}) == len(stages)
        assert len({stage.folder(iteration) for stage in stages}) == len(stages)
        for stage in stages:
            assert named(stage.folder(iteration)) == stage.name or stage.folder(iteration) == "pool-0"
            unknown = set(stage.after) - {one.name for one in PIPELINE}
            assert unknown == set(), "it waits for a stage that there is not"


@pytest.mark.parametrize(
    ("iteration", "last", "expected"),
    [
        (0, False, {"importing", "teacher answers held-out", "student answers held-out", "judging held-out"}),
        (
            1,
            False,
            {"student answers the Cache Pool", "judging the Cache Pool", "generating", "student answers held-out"}
            | {"judging held-out", "teacher answers the Train Pool", "fine-tuning"},
        ),
        (
            1,
            True,
            {"teacher answers the Train Pool", "fine-tuning", "student answers held-out", "judging held-out"},
        ),
    ],
)
def test_what_an_iteration_has(iteration: int, last: bool, expected: set[str]) -> None:
    config = RunConfig.model_validate(CONFIG | {"iterations": 1, "referee": {"canary_pairs": 0}})
    assert {stage.name for stage in due(When(config, iteration, heldout=True, last=last))} == expected
    without = due(When(config, iteration, heldout=False, last=last))
    assert not {stage.name for stage in without} & {"student answers held-out", "judging held-out", "checks"}


class Noted(Stage):
    """A stage that says when it begins and ends, and lets others go on in between."""

    phase = Phase.MEASUREMENT
    actor = "run store"

    def __init__(self, name: str, after: tuple[str, ...], notes: list[str]) -> None:
        self.name, self.after, self._notes = name, after, notes  # type: ignore[misc]

    def folder(self, iteration: int) -> str:
        return self.name

    def due(self, when: When) -> bool:
        return True

    async def run(self, run: Run, iteration: int) -> None:
        self._notes.append(f"+{self.name}")
        for _ in range(3):
            await asyncio.sleep(0)
        self._notes.append(f"-{self.name}")


@pytest.mark.parametrize("overlap", [True, False])
async def test_a_stage_begins_after_those_that_it_names(overlap: bool, tmp_path: Path) -> None:
    notes: list[str] = []
    stages = [Noted("a", (), notes), Noted("b", (), notes), Noted("c", ("a", "b", "elsewhere"), notes)]
    run: Any = SimpleNamespace(config=RunConfig.model_validate(CONFIG | {"overlap": overlap}))
    await run_stages(run, [(stage, 1) for stage in stages])
    assert notes[-2:] == ["+c", "-c"]
    assert (notes[:2] == ["+a", "+b"]) is overlap
