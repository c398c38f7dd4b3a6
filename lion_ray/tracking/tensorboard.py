"""TensorBoard's event files.

Invariants:
- A run has one folder, to which every attempt adds a file; TensorBoard shows them as one curve.
- Existing files are read when an attempt begins, and their data is not written again.
- A step's or an iteration's metrics are one record, so a truncated file never holds a part of them.

This module does not import TensorFlow or torch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lion_ray.core import layout
from lion_ray.core.iteration_result import IterationResult
from lion_ray.tracking.base import Held, Outcome, RunInfo, Spend, Tracker, TrainingStep
from lion_ray.tracking.numbers import ITERATION, SPENT_AT, STEP, result_numbers, spend_numbers, step_numbers


class TensorBoard(Tracker):
    """Writes a run's metrics for TensorBoard.

    The x-axis is the step for training, the number for iterations, and the seconds since the run began for spending.
    """

    def __init__(self, folder: str | None = None) -> None:
        """`folder`: as in the configuration (`config.tracking.TensorBoardTracking`)."""
        self._folder = folder
        self._writer: Any = None
        self._began = 0.0

    def begin(self, run: RunInfo) -> Held | None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._began = run.began
        folder = folder_of(run, self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        held = _held(folder)
        self._writer = EventFileWriter(str(folder))
        return held

    def step(self, step: TrainingStep) -> None:
        self._write(step.number, step_numbers(step), step.time)

    def iteration(self, result: IterationResult) -> None:
        self._write(result.iteration, result_numbers(result))

    def spend(self, spend: Spend) -> None:
        shown = spend_numbers(spend, self._began)
        self._write(int(shown.pop(SPENT_AT)), shown, spend.time)

    def flush(self) -> None:
        self._writer.flush()

    def end(self, outcome: Outcome) -> None:
        self._writer.close()

    def _write(self, step: int, numbers: dict[str, float], at: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.add_event(Event(wall_time=at or time.time(), step=step, summary=Summary(value=values)))


def folder_of(run: RunInfo, folder: str | None) -> Path:
    """The folder of a run's event files."""
    if folder is None:
        return Path(run.root) / layout.TENSORBOARD
    return Path(folder).expanduser().absolute() / f"{run.name}-{run.id}"


def _held(folder: Path) -> Held:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    step, iteration = 0, -1
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            names = {value.tag for value in event.summary.value}
            if STEP in names:
                step = max(step, event.step)
            if ITERATION in names:
                iteration = max(iteration, event.step)
    return Held(step, iteration)
