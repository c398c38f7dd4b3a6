"""The student learns from the teacher's answers to the Train Pool, starting from the last checkpoint (paper, 3.1), or
from the base model on all rows so far (``imitation.start``)."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lion_ray.config.plugins import PreferenceConfig
from lion_ray.core import layout
from lion_ray.core.errors import TrainingError
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import train_pool
from lion_ray.models.checkpoints import last_fit, student_ref
from lion_ray.models.model_ref import ModelRef
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stage import Phase, Stage, When, since

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan


class FineTuning(Stage):
    name = "fine-tuning"
    phase = Phase.IMITATION
    actor = "trainer"
    after = ("teacher answers the Train Pool", "filtering the answers")

    def folder(self, iteration: int) -> str:
        return layout.checkpoint(iteration)

    def due(self, when: When) -> bool:
        return True

    async def run(self, run: Run, iteration: int) -> None:
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is None:
            if run.handoff:
                await run.actors.students.stop()
            stage.commit(await self.fit(run, iteration))
            run.trackers.wake()
        # Weights and optimizer state, three times the model's size, which are not needed once the result is committed.
        await asyncio.to_thread(run.store.delete_folder, layout.fit(iteration))

    async def fit(self, run: Run, iteration: int) -> Manifest:
        """Fine-tune the student and write the model to `layout.model(iteration)`.

        Returns:
            The metrics of `imitation.training.fit.train`: steps, tokens per second, held-out loss before and after, …

        Raises:
            TrainingError: the workers failed more often than `max_restarts`.
        """
        return await run_fit(run, job_of(run, iteration), self.title(iteration))

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        rows, config = planner.train_rows(iteration), planner.config.imitation
        # The number of clear verdicts is unknown in advance: half of them is a guess.
        paired = isinstance(config.objective, PreferenceConfig) and iteration > 1
        pairs = planner.cache_rows(iteration - 1) // 2 if paired else 0
        if iteration > 1:
            known = planner.cache_rows(iteration - 1)
            rows += known if config.start == "base" else min(round(config.replay * rows), known)
        steps = math.ceil((rows + pairs) / config.batch_size) * config.epochs
        plan = replace(planner.stage(self, iteration, rows), steps=steps)
        return planner.fitted(plan, config.epochs * (rows + 2 * pairs), "teacher")

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        return {
            "loss_before": found.get("heldout_loss_before"),
            "loss_after": found.get("heldout_loss_after"),
            "loss_served": found.get("heldout_loss_served"),
            "pairs": found.get("pairs"),
            "model": store.path(layout.model(iteration)),
        }


async def run_fit(run: Run, job: dict[str, Any], title: str) -> Manifest:
    """Run a job under Ray Train and show its progress. Returns its metrics. Raises TrainingError."""
    # Imported here, because readers of the pipeline need no Ray.
    from lion_ray.actors.resources import group_waits, scarce
    from lion_ray.actors.trainer import fit, in_thread, torch_trainer

    trainer = torch_trainer(run.store, job)
    config = job["config"]
    began = time.time()
    with run.progress.stage(title, 0, "steps") as shown:

        async def look() -> int:
            resources = trainer.scaling_config.resources_per_worker or {}
            waits = group_waits(resources, config.workers)
            shown.waits_for = f"{config.workers} × {scarce(resources)}" if waits else ""
            if (seen := run.store.read_json(layout.progress(job["stage"]))) is None:
                return 0
            shown.total = seen["steps"]
            over = seen["step"] == seen["steps"]
            shown.note = "writing and measuring the student" if over else f"loss {seen['loss']:.3f}"
            run.trackers.wake()
            return int(seen["step"])

        await run.progress.follow(in_thread(partial(fit, trainer)), shown, look)
        written = run.store.read_json(f"{job['target']}/{layout.TRAINING}")
        if written is None:
            raise TrainingError(f"{title}: it ended without writing a model")
        metrics = written["metrics"]
        shown.total = metrics["steps"]
        shown.update(metrics["steps"], f"held-out loss {_arrow(metrics)}")
    return metrics | {"fit_seconds": metrics["seconds"]} | since(began)


def student_after(run: Run, iteration: int) -> ModelRef:
    """The student after an iteration, as far as it is committed; iteration 0 is the base model."""
    if iteration == 0:
        return ModelRef("base", source=run.config.student.model)
    return student_ref(run.store, iteration)


def job_of(run: Run, iteration: int) -> dict[str, Any]:
    """The job passed to each worker of an iteration's fit. Workers and driver share only the run folder."""
    config = run.config.imitation.of_iteration(iteration)
    anew = config.start == "base"
    earlier, new = range(1, iteration), [iteration]
    pools, replayed = ((*earlier, *new), ()) if anew else (new, earlier)
    job: dict[str, Any] = {
        "run": run.config.run_name,
        "iteration": iteration,
        "fit": layout.fit_name(iteration),
        "stage": layout.checkpoint(iteration),
        "store": run.store,
        "base_dir": run.base_dir,
        "start": student_after(run, 0 if anew else iteration - 1),
        "target": layout.model(iteration),
        "rows": [part for k in pools for part in _rows(run, train_pool(k))],
        "kept": [part for k in pools for part in _kept(run, train_pool(k))],
        "earlier": [part for k in replayed for part in _rows(run, train_pool(k))],
        "earlier_kept": [part for k in replayed for part in _kept(run, train_pool(k))],
        "judged": judged_parts(run, iteration - 1),
        "heldout": _rows(run, layout.HELDOUT),
        "config": config,
        "prompt": run.config.student.prompt,
        "serve_dtype": run.config.student.dtype,
        "seed": run.config.seed + iteration,
        "workers": config.workers,
        "gpus": run.worker_gpus,
    }
    if iteration > 1:
        job["heldout_before"] = heldout_loss(run, iteration - 1)
    return job


def heldout_loss(run: Run, iteration: int) -> float | None:
    """The held-out loss of the student after an iteration, as its last fit measured it."""
    return (run.store.stage(last_fit(run.store, iteration)).manifest() or {}).get("heldout_loss_after")


def judged_parts(run: Run, iteration: int) -> list[tuple[str, str, str, str]]:
    """The instructions, both answers and verdicts of each part of the Cache Pool that an iteration judged, if any."""
    verdicts, student = (
        run.store.stage(folder) for folder in (layout.verdicts(iteration), layout.student_answers(iteration))
    )
    if verdicts.manifest() is None:
        return []
    return [
        (shard.instructions, shard.answers, student.part_name(index), verdicts.part_name(index))
        for index, shard in enumerate(run.cache(iteration))
    ]


def _rows(run: Run, pool: int | str) -> list[tuple[str, str]]:
    """For each part of a pool: its instructions and the teacher's answers."""
    return [(shard.instructions, shard.answers) for shard in run.pool(pool)]


def _kept(run: Run, pool: int) -> list[str]:
    """The filters' decisions, part by part; empty if there are no filters."""
    if not run.config.imitation.filters:
        return []
    return [layout.part(layout.filtered(pool), shard.index) for shard in run.pool(pool)]


def _arrow(metrics: dict[str, Any]) -> str:
    before, after = metrics.get("heldout_loss_before"), metrics.get("heldout_loss_after")
    return "not measured" if before is None or after is None else f"{before:.3f} → {after:.3f}"
