"""One fit without Ray: ``python -m lion_ray.imitation.training SPEC.json``, or the same under torchrun.

Invariants:
- After a kill, the same command resumes from the last complete checkpoint in ``<output_dir>.progress/``; after success
  it does nothing. The checkpoints are deleted once the result is written.
- Under torchrun on several machines, `output_dir` must be on shared storage.
"""

from __future__ import annotations

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from lion_ray.core.errors import LionError
from lion_ray.core.terminal import tell
from lion_ray.imitation.training.data import read_rows
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.spec import TrainSpec


def main(arguments: list[str]) -> int:
    """Run the fit; returns the process's exit code."""
    if len(arguments) != 1:
        print("usage: python -m lion_ray.imitation.training SPEC.json", file=sys.stderr)
        return 2
    distributed = "WORLD_SIZE" in os.environ
    try:
        spec = TrainSpec.load(arguments[0])
        disable_progress_bar()
        if distributed:
            _join(spec.collective_timeout_s)
        progress = Path(f"{spec.output_dir}.progress")
        metrics = train(
            spec,
            rows=read_rows(spec.rows),
            heldout_rows=read_rows(spec.heldout) if spec.heldout else (),
            report=lambda step, folder: _report(step, folder, progress),
            restore=latest(progress),
        )
        if _rank() == 0:
            shutil.rmtree(progress, ignore_errors=True)
            tell(f"{spec.output_dir}: {_line(metrics)}")
    except LionError as error:
        tell(f"lion-ray training: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if distributed and dist.is_initialized():
            dist.destroy_process_group()
    return 0


def latest(progress: Path) -> Path | None:
    """The newest complete checkpoint."""
    return max(progress.glob("step-*"), default=None)


def _join(timeout_s: float) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _report(metrics: dict[str, Any], folder: Path | None, progress: Path) -> None:
    if _rank() == 0:
        tell(_line(metrics))
    if folder is None:
        return
    # The checkpoint gets its name only after every process has moved its part.
    partial = progress / "partial"
    if _rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _wait()
    for path in folder.iterdir():
        path.rename(partial / path.name)
    _wait()
    if _rank() == 0:
        old = list(progress.glob("step-*"))
        partial.rename(progress / f"step-{metrics['checkpoint']:08d}")
        for path in old:
            shutil.rmtree(path)
    _wait()


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _line(metrics: dict[str, Any]) -> str:
    return " ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in metrics.items())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
