"""One process of a fit, forked by a test from a server that has imported everything once.

A job says what to do at a step, so that a fit can be killed at a known point: ``kill_at`` ends the process by SIGKILL
once that step's checkpoint has been kept; ``stop`` lets one stand still. What each step reported is kept as a line of
``steps-RANK.jsonl``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lion_ray.imitation.training.data import read_rows
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import LabelledLogits
from lion_ray.imitation.training.spec import TrainSpec


def main(
    spec: TrainSpec,
    keep: Path,
    rank: int,
    processes: int,
    *,
    kill_at: int | None = None,
    stop: tuple[int, int, str] | None = None,
    restore: Path | None = None,
) -> None:
    """Fit; every checkpoint is kept as ``keep/step-N``.

    `stop`: a rank stands still from a step on, after it or in the midst of it, without ending.
    """
    sys.stderr = (keep / f"stderr-{rank}").open("w", buffering=1)  # the parent shows it where this process fails
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{keep}/meeting",
            rank=rank,
            world_size=processes,
            timeout=timedelta(seconds=spec.collective_timeout_s),
        )

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        with (keep / f"steps-{rank}.jsonl").open("a") as steps:
            steps.write(json.dumps(metrics) + "\n")
        if folder is not None:
            shutil.copytree(folder, keep / f"step-{metrics['checkpoint']}", dirs_exist_ok=True)
            if processes > 1:
                dist.barrier()
        if kill_at is not None and metrics.get("checkpoint") == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if stop is not None and stop[:2] == (rank, metrics["step"]):
            stand_still() if stop[2] == "after" else setattr(LabelledLogits, "__call__", lambda *_: stand_still())

    def stand_still() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    train(spec, rows=read_rows(spec.rows), heldout_rows=read_rows(spec.heldout), report=report, restore=restore)
    if processes > 1:
        dist.destroy_process_group()
