"""When a fit writes checkpoints, and the one that is being written.

Invariants:
- Training goes on while a checkpoint is written: only its copy in main memory delays a step. Where main memory cannot
  hold a copy, the step waits for the disk instead.
- One checkpoint is written at a time. It is reported once every process has written its part.
- By time, writing takes at most `SHARE` of a fit: the measured time of a write delays the next one.
- All processes decide alike: time is the first process's, and nothing is decided without a collective.

This module does not know where checkpoints are kept.
"""

from __future__ import annotations

import copy
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from lion_ray.config.section import seconds_of
from lion_ray.core.errors import TrainingError, first_line
from lion_ray.core.room import free_memory
from lion_ray.core.terminal import tell
from lion_ray.imitation.training import state
from lion_ray.imitation.training.roll import Roll
from lion_ray.imitation.training.spec import TrainSpec

SHARE = 0.05
"""The largest share of a fit's time for writing checkpoints."""
FIRST_GUESS = 1e9
"""Bytes per second of all processes together, before the first write is measured."""
OF_MEMORY = 0.5
"""The largest share of a machine's free main memory for copies."""

Report = Callable[[dict[str, Any], Path | None], None]
"""Called on every process after every step with the step's metrics, and with a folder once a checkpoint is written.

The folder is this process's part of the checkpoint, which was begun after the step `checkpoint` of the metrics, at or
before their own. The callable may move or copy it before it returns.
"""


class Schedule:
    """Decides when the next checkpoint is due: by steps if their number is given, else by time and cost."""

    def __init__(self, every_s: float, every_steps: int | None, guess_s: float, now: float) -> None:
        """`guess_s`: the time of a write before one is measured. `now`: seconds on the clock of the other calls."""
        self.every_s, self._every_steps = every_s, every_steps
        self._began = self._last = now
        self._cost_s, self._spent_s = guess_s, 0.0

    def due(self, step: int, now: float) -> bool:
        if self._every_steps is not None:
            return step % self._every_steps == 0
        return now - self._last >= self.every_s and self._spent_s + self._cost_s <= SHARE * (now - self._began)

    def wrote(self, seconds: float, now: float) -> None:
        """A write has ended; `seconds` is its time from the first copy to the report's end."""
        self._cost_s, self._spent_s, self._last = seconds, self._spent_s + seconds, now

    @property
    def interval_s(self) -> float:
        """Seconds between two checkpoints in the long run."""
        return max(self.every_s, self._cost_s / SHARE)


@dataclass
class _Writing:
    """A checkpoint that is being written."""

    step: int
    folder: Path
    done: Future[Any]
    began: float


class Checkpoints:
    """The checkpoints of one fit. Every process calls the same methods at the same steps."""

    def __init__(
        self, spec: TrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, report: Report, roll: Roll
    ) -> None:
        """Collective."""
        world = roll.world
        self._spec, self._model, self._optimizer, self._report = spec, model, optimizer, report
        self._roll, self._world = roll, world
        self._writing: _Writing | None = None
        self._told = 0.0
        mine = _bytes_to_save(model)
        total, self._copies_fit = mine, mine <= OF_MEMORY * free_memory()
        # The writing thread has a group of its own: collectives of two threads in one group could be mixed up.
        self._group = None
        if world.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=spec.collective_timeout_s))
            parts: list[Any] = [None] * world.size
            dist.all_gather_object(parts, (socket.gethostname(), mine, free_memory()), group=self._group)
            total = sum(size for _, size, _ in parts)
            self._copies_fit = all(
                sum(size for other, size, _ in parts if other == host) <= OF_MEMORY * free for host, _, free in parts
            )
        self._schedule = Schedule(
            seconds_of(spec.checkpoint_every), spec.checkpoint_every_steps, total / FIRST_GUESS, time.monotonic()
        )

    def after_step(self, metrics: dict[str, Any], progress: state.Progress) -> None:
        """Report a step. Begins a checkpoint if one is due, and reports the one before it once it is written."""
        last = progress.step == metrics["steps"]
        due = not last and self._schedule.due(progress.step, time.monotonic())
        # The first process's clock decides, and a write ends with its last part.
        due, written = self._roll.all(
            due or self._world.rank > 0, self._writing is not None and self._writing.done.done()
        )
        if self._writing is not None and (due or written or last):
            self._finish(metrics)
        else:
            self._report(metrics, None)
        if due:
            self._begin(progress)

    def _begin(self, progress: state.Progress) -> None:
        began = time.monotonic()
        folder = Path(f"{self._spec.output_dir}.checkpoint-{self._world.rank}")
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed attempt
        folder.mkdir(parents=True)
        done = state.save(
            folder,
            self._model,
            self._optimizer,
            copy.deepcopy(progress),
            self._world,
            group=self._group,
            background=self._copies_fit,
        )
        self._writing = _Writing(progress.step, folder, done, began)

    def _finish(self, metrics: dict[str, Any]) -> None:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        try:
            writing.done.result()
        except (OSError, CheckpointException) as error:
            if isinstance(first := state.first_failure(error), OSError):
                raise TrainingError(
                    f"the checkpoint after step {writing.step} could not be written beside {self._spec.output_dir}: "
                    f"{first_line(first)}; the same command resumes once that is mended"
                ) from None
            raise
        self._report(metrics | {"checkpoint": writing.step}, writing.folder)
        shutil.rmtree(writing.folder, ignore_errors=True)  # unless it was moved
        now = time.monotonic()
        self._schedule.wrote(now - writing.began, now)
        self._tell(now - writing.began)

    def _tell(self, seconds: float) -> None:
        """Say once, and again if it doubles, that writing is too slow for the configured interval."""
        interval = self._schedule.interval_s
        if self._world.rank or self._spec.checkpoint_every_steps is not None:
            return
        if interval > max(self._schedule.every_s, 2 * self._told):
            self._told = interval
            tell(
                f"imitation.checkpoint_every: a checkpoint takes {seconds:.3g} s to write, so there is one every "
                f"{interval:.3g} s instead of every {self._schedule.every_s:g} s: writing may take {SHARE:.0%} of a fit"
            )


def _bytes_to_save(model: nn.Module) -> int:
    """Bytes of this process's part of a checkpoint: trained weights and AdamW's two moments."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(3 * _local(p).numel() * _local(p).element_size() for p in trained)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
