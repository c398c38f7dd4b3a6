"""Apply the configured filters to the teacher's answers: which ones to train on."""

from __future__ import annotations

from typing import Any

from lion_ray.core import layout
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import train_pool
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Shard
from lion_ray.pipeline.shard_stage import shard_stage
from lion_ray.pipeline.stage import Phase, Stage, When


class Filtering(Stage):
    """Dropped rows are `filtered`, counted separately from failures."""

    name = "filtering the answers"
    phase = Phase.IMITATION
    actor = "run store"
    after = ("teacher answers the Train Pool",)

    def folder(self, iteration: int) -> str:
        return layout.filtered(train_pool(iteration))

    def due(self, when: When) -> bool:
        return bool(when.config.imitation.filters)

    async def run(self, run: Run, iteration: int) -> None:
        async def keep(_: int, shard: Shard) -> Any:
            return run.actors.run_store.filter_answers.remote(
                run.config, run.base_dir, shard.instructions, shard.answers
            )

        await shard_stage(run, self.folder(iteration), self.title(iteration), run.feed(train_pool(iteration)), keep)

    def summary(self, store: RunStore, iteration: int) -> Manifest:
        """Without the failed rows, which the teacher's stage counts."""
        return {key: value for key, value in self.manifest(store, iteration).items() if key != "quarantined"}
