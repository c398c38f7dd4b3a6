"""New instructions from hard and easy ones (paper, 3.3): they are the next Train Pool and join the Cache Pool."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lion_ray.config import splits
from lion_ray.core import layout
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import cache_pools
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Shard
from lion_ray.pipeline.stage import Phase, Stage, When, since

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan


class Generating(Stage):
    """The teacher can answer each part as soon as it is full (`run.feed`)."""

    name = "generating"
    phase = Phase.GENERATION
    actor = "generator"
    after = ("judging the Cache Pool",)

    def folder(self, iteration: int) -> str:
        return layout.pool(iteration)

    def due(self, when: When) -> bool:
        return splits(when.config, when.iteration) and not when.last

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is not None:
            return
        accepted = run.feed(iteration)
        wanted = run.config.generation.hard + run.config.generation.easy
        verdicts = layout.verdicts(iteration)
        load, commit = run.actors.run_store.load.remote, run.actors.run_store.commit_generated.remote
        began = time.time()
        manifest: Manifest = {"rows": 0, "parts": 0}
        known = [shard.instructions for shard in run.cache(iteration)]
        rows = sum(self.manifest(run.store, number)["rows"] for number in cache_pools(iteration))
        with (
            run.actors.novelty_shards(iteration, known, rows) as shards,
            run.progress.stage(self.title(iteration), wanted, "instructions") as shown,
        ):
            pieces = run.actors.generator.create.remote(
                load(layout.hard(verdicts)),
                load(layout.easy(verdicts)),
                load(*([] if shards else known)),
                load(*(shard.instructions for shard in run.pool(layout.HELDOUT))),
                load(*([layout.QUESTIONS] if run.store.exists(layout.QUESTIONS) else [])),
                iteration,
                run.config.rows_per_shard(wanted),
                shards,
            )

            async def take() -> None:
                async for piece in pieces:
                    part = await commit(iteration, piece)
                    if "part" in part:
                        manifest["rows"] += part["rows"]
                        manifest["parts"] += 1
                        accepted.put(Shard(str(iteration), part["part"]))
                    else:
                        manifest.update(part)

            await run.progress.follow(take(), shown, run.actors.generator.accepted.remote)
            shown.update(manifest["rows"])
        manifest |= since(began)
        # Commit before the feed ends: the answers' manifest must not exist before the pool's.
        stage.commit(manifest)
        accepted.end()

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        plan = planner.called(
            planner.stage(self, iteration, planner.new_rows), "generator", planner.new_rows, planner.pool.mean
        )
        attempts = planner.config.generation.max_attempts
        return replace(plan, usd_worst=None if plan.usd_worst is None else attempts * plan.usd_worst)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        return {"generation": self.manifest(store, iteration).get("kinds", {})}
