"""The student's answers, shard by shard: to the Cache Pool (to be judged) and to the held-out set (to be measured)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lion_ray.config import answers_heldout, splits
from lion_ray.core import layout
from lion_ray.core.store import Manifest, RunStore
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Feed, Shard
from lion_ray.pipeline.shard_stage import shard_stage
from lion_ray.pipeline.stage import Phase, Stage, When
from lion_ray.pipeline.stages.fine_tuning import student_after

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan


class StudentAnswers(Stage):
    """The judge can start on each part as soon as it is committed (`run.parts`)."""

    name = "student answers the Cache Pool"
    phase = Phase.DISCRIMINATION
    actor = "student"
    student = True
    heldout = False

    def folder(self, iteration: int) -> str:
        return layout.student_answers(iteration, heldout=self.heldout)

    def due(self, when: When) -> bool:
        return splits(when.config, when.iteration) and not when.last

    async def run(self, run: Run, iteration: int) -> None:
        shards = run.pool(layout.HELDOUT) if self.heldout else run.cache(iteration)
        stage, parts = run.store.stage(self.folder(iteration)), run.parts(self.folder(iteration))
        if len(stage.part_indexes()) < len(shards):
            await run.actors.students.load(student_after(run, iteration), run.progress)

        async def answer(_: int, shard: Shard) -> Any:
            return await run.actors.students.answer(run.actors.run_store.load.remote(shard.instructions), iteration)

        # Not limited by the referee: the student's answers are on disk, not in memory.
        width = max(run.config.max_shards_in_flight, run.actors.students.window)
        feed = Feed.of(shards)
        await shard_stage(run, stage.name, self.title(iteration), feed, answer, width=width, committed=parts.add)
        parts.end()

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows = planner.heldout.rows if self.heldout else planner.cache_rows(iteration)
        return planner.written(planner.stage(self, iteration, rows), rows)

    def summary(self, store: RunStore, iteration: int) -> Manifest:
        """Without tokens, which no call used. If the answers were judged, the judging stage counts the failed rows."""
        manifest = self.manifest(store, iteration)
        judged = store.stage(layout.verdicts(iteration, heldout=self.heldout)).manifest() is not None
        return {} if judged else {key: manifest[key] for key in ("quarantined", "seconds") if key in manifest}


class StudentAnswersHeldout(StudentAnswers):
    name = "student answers held-out"
    phase = Phase.MEASUREMENT
    after = ("teacher answers held-out", StudentAnswers.name)
    heldout = True

    def occurs(self, iteration: int) -> bool:
        return True

    def due(self, when: When) -> bool:
        return when.heldout and answers_heldout(when.config, when.iteration, last=when.last)
