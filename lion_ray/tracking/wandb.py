"""Weights & Biases.

Invariants:
- All attempts log to one W&B run, which is resumed; its id is the run's name and id.
- Existing data is not logged again: the position comes from the server or, offline, from a file beside W&B's.
- Only metrics and the configuration are sent: no console output, no code, no data about the machine or git.
- The key comes from WANDB_API_KEY, and the folder of W&B's files from WANDB_DIR.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lion_ray.core.iteration_result import IterationResult
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, Tracker, TrainingStep
from lion_ray.tracking.numbers import ITERATION, SPENT_AT, STEP, result_numbers, spend_numbers, step_numbers


class Wandb(Tracker):
    """Logs a run's metrics to Weights & Biases."""

    def __init__(self, project: str = "lion-ray", entity: str | None = None, mode: str = "online") -> None:
        """As in the configuration (`config.tracking.WandbTracking`)."""
        self._project, self._entity, self._mode = project, entity, mode
        self._run: Any = None
        self._note = Path()
        self._held = Held()
        self._began = 0.0

    def begin(self, run: RunInfo) -> Held | None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no crash reports to W&B's vendor
        import wandb

        self._began = run.began
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=self._mode,  # type: ignore[arg-type]
            id=f"{run.name}-{run.id}",
            name=run.name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR"),  # the current value; W&B itself reads it only once per process
            config=dict(run.config),
            # The user's program may have its own W&B run open, which must be neither used nor ended.
            reinit="create_new",
            settings=wandb.Settings(
                host="",
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
                silent=True,
            ),
        )
        for by in (STEP, ITERATION, SPENT_AT):
            self._run.define_metric(f"{by.partition('/')[0]}/*", step_metric=by)
        self._note = Path(self._run.settings.wandb_dir) / f"lion-ray-{run.name}-{run.id}.json"
        noted = Held(*json.loads(self._note.read_text())) if self._note.exists() else Held()
        there = Held(int(self._run.summary.get(STEP) or 0), int(self._run.summary.get(ITERATION, -1)))
        self._held = Held(max(noted.step, there.step), max(noted.iteration, there.iteration))
        return self._held

    def step(self, step: TrainingStep) -> None:
        self._run.log(step_numbers(step) | {"_timestamp": step.time})
        self._save_position(self._held._replace(step=step.number))

    def iteration(self, result: IterationResult) -> None:
        self._run.log(result_numbers(result))
        self._save_position(self._held._replace(iteration=result.iteration))

    def spend(self, spend: Spend) -> None:
        self._run.log(spend_numbers(spend, self._began))

    def end(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=0 if outcome.error is None else 1)

    def _save_position(self, held: Held) -> None:
        self._held = held
        aside = self._note.with_suffix(".new")
        aside.write_text(json.dumps(held))
        aside.replace(self._note)
