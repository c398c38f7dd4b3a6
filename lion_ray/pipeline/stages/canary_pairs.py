"""Re-judge the canary pairs, whose better answer is obvious, to detect judge drift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lion_ray.config import judges_heldout, splits
from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.pipeline import estimate
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stage import Phase, Stage, When

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan

SHOWN = ("verdicts", "right", "mean_gap", "against", "drift")


class CanaryPairs(Stage):
    name = "canary pairs"
    phase = Phase.DISCRIMINATION
    actor = "referee"

    def folder(self, iteration: int) -> str:
        return layout.canaries(iteration)

    def occurs(self, iteration: int) -> bool:
        return True

    def due(self, when: When) -> bool:
        judges = splits(when.config, when.iteration) and not when.last
        measures = when.heldout and judges_heldout(when.config, when.iteration, last=when.last)
        return bool(when.config.referee.canary_pairs) and (judges or measures)

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is None:
            verdicts = run.actors.referee(0).judge_canaries.remote(iteration, stage.name)
            stage.commit(await run.actors.run_store.commit_canaries.remote(iteration, verdicts))

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        pairs = planner.canaries
        shown = (sum(len(one.instruction) for one in pairs), sum(len(one.good + one.poor) for one in pairs))
        mean, answers = (length / estimate.CHARACTERS_PER_TOKEN / len(pairs) for length in shown)
        plan = planner.stage(self, iteration, len(pairs))
        return planner.called(plan, "referee", 2 * len(pairs), mean, answers)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        return {"canaries": {name: found.get(name) for name in SHOWN}}
