"""One process of a fit, started by a test: ``python worker.py JOB.json``.

The job says what to do at a step, so that a fit can be killed at a known point: ``kill_at`` ends the process by
SIGKILL once that step's checkpoint has been kept in ``keep``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lion_ray.training.data import read_rows
from lion_ray.training.fit import train
from lion_ray.training.spec import TrainSpec


def main(path: str) -> None:
    torch.set_num_threads(1)
    job = json.loads(Path(path).read_text())
    spec = TrainSpec.load(job["spec"])
    keep = Path(job["keep"])
    if "RANK" in os.environ:
        dist.init_process_group("gloo")

    def report(metrics, folder):
        if folder is not None:
            target = keep / f"step-{metrics['step']}"
            shutil.copytree(folder, target, dirs_exist_ok=True)
            if dist.is_initialized():
                dist.barrier()
        if metrics["step"] == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    restore = Path(job["restore"]) if job.get("restore") else None
    heldout = read_rows(spec.heldout) if spec.heldout else ()
    metrics = train(spec, rows=read_rows(spec.rows), heldout_rows=heldout, report=report, restore=restore)
    if not dist.is_initialized() or dist.get_rank() == 0:
        (keep / "metrics.json").write_text(json.dumps(metrics))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
