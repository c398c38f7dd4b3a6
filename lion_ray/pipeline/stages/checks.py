"""Score held-out answers by checks: the student's after each iteration, and once the teacher's."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stage import Phase, Stage, When, since

SHOWN = (
    "rows",
    "scored",
    "unanswered",
    "quarantined",
    "mean",
    "by_check",
    "gain",
    "gain_over_base",
    "teacher",
    "share_of_teacher",
)
"""The manifest's keys that a result repeats."""


class Checks(Stage):
    name = "checks"
    phase = Phase.MEASUREMENT
    actor = "run store"
    after: ClassVar[tuple[str, ...]] = ("student answers held-out", "teacher checks")

    def of(self, iteration: int) -> int | None:
        """The source of the answers: an iteration's student, or the teacher (None)."""
        return iteration

    def folder(self, iteration: int) -> str:
        return layout.checks(self.of(iteration))

    def occurs(self, iteration: int) -> bool:
        return True

    def due(self, when: When) -> bool:
        return when.heldout and bool(when.config.evaluation.checks)

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is None:
            began = time.time()
            found = await run.actors.run_store.check_answers.remote(run.config, run.base_dir, self.of(iteration))
            stage.commit(found | since(began))

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        return {"checks": {name: found.get(name) for name in SHOWN}}


class TeacherChecks(Checks):
    name = "teacher checks"
    after = ("teacher answers held-out",)

    def of(self, iteration: int) -> int | None:
        return None

    def occurs(self, iteration: int) -> bool:
        return iteration == 0

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        return {}
