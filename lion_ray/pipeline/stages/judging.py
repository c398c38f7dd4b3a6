"""Judge the student's answers against the teacher's, shard by shard, and split the rows.

The referee judges one shard while the student answers the next. A row of the Cache Pool is hard if the student lags by
τ or more (paper, section 3.2). On the held-out set, verdicts are only a measurement.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lion_ray.config import judges_heldout, splits
from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.discrimination.pairwise import JUDGED
from lion_ray.discrimination.win_rate import JudgeErrors, corrected
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Feed, Shard
from lion_ray.pipeline.shard_stage import shard_stage
from lion_ray.pipeline.stage import Phase, Stage, When

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan


class Judging(Stage):
    name = "judging the Cache Pool"
    phase = Phase.DISCRIMINATION
    actor = "referee"
    heldout = False

    def folder(self, iteration: int) -> str:
        return layout.verdicts(iteration, heldout=self.heldout)

    def due(self, when: When) -> bool:
        return splits(when.config, when.iteration) and not when.last

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if "hard" in (stage.manifest() or {}):
            return
        shards = run.pool(layout.HELDOUT) if self.heldout else run.cache(iteration)
        student = run.store.stage(layout.student_answers(iteration, heldout=self.heldout))

        async def judge(index: int, shard: Shard) -> Any:
            await run.parts(student.name).wait(index)
            names = (shard.instructions, shard.answers, student.part_name(index))
            tables = run.actors.run_store.load_each.options(num_returns=len(names)).remote(
                *zip(names, JUDGED, strict=True)
            )
            return run.actors.referee(index).judge.remote(*tables, stage.name, both_orders=self.heldout)

        batched = run.config.referee.mode == "batch"
        judged = await shard_stage(run, stage.name, self.title(iteration), Feed.of(shards), judge, batched=batched)
        names = [shard.instructions for shard in shards]
        tau, seed = run.config.discrimination.tau, run.config.seed
        found = await run.actors.run_store.split_verdicts.remote(stage.name, names, tau, seed)
        if self.heldout:
            found |= await run.actors.run_store.heldout_figures.remote(iteration, seed)
        stage.commit(judged | found)

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows = planner.cache_rows(iteration)
        return planner.called(planner.stage(self, iteration, rows), "referee", 2 * rows, planner.pool.mean)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        return {
            "cache_rows": found.get("rows"),
            "hard": found.get("hard"),
            "easy": found.get("easy"),
            "quality_cache": found.get("relative_quality"),
        }


class JudgingHeldout(Judging):
    name = "judging held-out"
    phase = Phase.MEASUREMENT
    after = ("teacher answers held-out",)
    heldout = True

    def occurs(self, iteration: int) -> bool:
        return True

    def due(self, when: When) -> bool:
        return when.heldout and judges_heldout(when.config, when.iteration, last=when.last)

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows = planner.heldout.rows
        return planner.called(planner.stage(self, iteration, rows), "referee", 2 * rows, planner.heldout.mean)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        rate = found.get("win_rate")
        return {
            "quality_heldout": found.get("relative_quality"),
            "win_rate": None if rate is None else rate | corrected_for(store, rate),
            "gain_heldout": found.get("gain"),
        }


def corrected_for(store: RunStore, rate: dict[str, Any]) -> dict[str, Any]:
    """The shares of rows on which each side's answer is better, corrected by the judge's calibration in this run.

    Empty if `lion-ray judge calibrate` has not measured the judge on labelled pairs.
    """
    calibration = store.read_json(layout.evaluation(layout.CALIBRATION)) or {}
    judge = JudgeErrors.of((calibration.get("labelled") or {}).get("confusion") or {})
    if judge is None:
        return {}
    rows = rate["rate"]["n"]
    found = {name: corrected(rate[name] / rows, rows, judge) for name in ("wins", "losses")}
    return {f"{name}_corrected": None if one is None else asdict(one) for name, one in found.items()}
