"""The teacher's answers, shard by shard: to the Train Pool of every iteration, and once to the held-out set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.data.pools import train_pool
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Shard
from lion_ray.pipeline.shard_stage import shard_stage
from lion_ray.pipeline.stage import Phase, Stage, When

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan


class TeacherAnswers(Stage):
    """The answers that the student imitates. It starts on each generated part as soon as it is full."""

    name = "teacher answers the Train Pool"
    phase = Phase.IMITATION
    actor = "teacher"
    ahead = True

    def pool(self, iteration: int) -> int | str:
        return train_pool(iteration)

    def folder(self, iteration: int) -> str:
        return layout.answers(self.pool(iteration))

    def due(self, when: When) -> bool:
        return True

    async def run(self, run: Run, iteration: int) -> None:
        pool = self.pool(iteration)

        async def answer(_: int, shard: Shard) -> Any:
            instructions = run.actors.run_store.load.remote(shard.instructions)
            return run.actors.teacher(shard.index).answer.remote(instructions, self.folder(iteration))

        batched = run.config.teacher.mode == "batch"
        await shard_stage(run, self.folder(iteration), self.title(iteration), run.feed(pool), answer, batched=batched)

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows = planner.train_rows(iteration)
        return planner.called(planner.stage(self, iteration, rows), "teacher", rows, planner.pool.mean)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        return {"train_rows": self.manifest(store, iteration).get("rows")}


class TeacherAnswersHeldout(TeacherAnswers):
    """The reference for the student on held-out instructions."""

    name = "teacher answers held-out"
    phase = Phase.MEASUREMENT
    ahead = False

    def pool(self, iteration: int) -> int | str:
        return layout.HELDOUT

    def occurs(self, iteration: int) -> bool:
        return iteration == 0

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows = planner.heldout.rows
        return planner.called(planner.stage(self, iteration, rows), "teacher", rows, planner.heldout.mean)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        return {}
