"""Pool 0 and the held-out set, from the user's files."""

from __future__ import annotations

from lion_ray.core import layout
from lion_ray.data.importing import import_lines
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stage import Phase, Stage, When


class Importing(Stage):
    name = "importing"
    phase = Phase.DATA
    actor = "run store"

    def folder(self, iteration: int) -> str:
        return layout.pool(0)

    def occurs(self, iteration: int) -> bool:
        return iteration == 0

    def due(self, when: When) -> bool:
        return True

    async def run(self, run: Run, iteration: int) -> None:
        first, heldout = (run.store.stage(layout.pool(name)) for name in (0, layout.HELDOUT))
        if first.manifest() is None:
            imported = run.actors.run_store.import_pools.options(num_returns=2).remote(run.config, run.base_dir)
            manifests = [await reference for reference in imported]
            heldout.commit(manifests[1])
            first.commit(manifests[0])
            for line in import_lines(manifests[0]):
                run.progress.say(f"data: {line}")
