"""Checkpoints within a fit, so that a killed fit can resume.

Invariants:
- A checkpoint holds everything that the rest of the fit depends on: trained weights, optimizer, and `Progress`. The
  learning rate, the data's order and every random number are functions of the step and the seed, so the step is
  their state. A killed and restored fit ends with bit-identical weights on the same number of processes.
- Every process saves into a folder of its own; the union of these folders is the checkpoint. A checkpoint loads on
  any number of processes.
- A checkpoint is data: nothing in its folder runs code (see `dcp_files`).

This module does not know where checkpoints are kept.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from lion_ray.core import layout
from lion_ray.core.errors import TrainingError, first_line, one_line
from lion_ray.imitation.training.dcp_files import Planner, Reader
from lion_ray.imitation.training.model import World

_PROGRESS = "progress.json"


@dataclass
class Progress:
    """The progress of a fit."""

    fingerprint: str
    step: int = 0
    """Optimizer steps taken."""
    tokens: int = 0
    """Tokens processed, without padding, over all processes."""
    positions: int = 0
    """The same with padding."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    heldout_before: float | None = None
    reference: Sequence[Sequence[float]] = ()
    """Before the fit: of each pair, both answers' log-probabilities; or of each sample, its tokens'."""


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    world: World,
    *,
    group: dist.ProcessGroup | None = None,
    background: bool = False,
) -> Future[Any]:
    """Write this process's part of the checkpoint into `folder`; every process must call it.

    `background`: copy the state to main memory and return; the copy is written in a thread. Otherwise it is written
    when this returns. `group`: of a CPU backend, not in use for anything else meanwhile; needed if there are several
    processes.
    """
    weights, moments = get_state_dict(model, optimizer, options=_options())
    if world.rank == 0:
        (folder / _PROGRESS).write_text(json.dumps(dataclasses.asdict(progress)))
    given: Any = {
        "state_dict": {"model": weights, "optimizer": moments},
        "checkpoint_id": folder,
        "process_group": group,
        "no_dist": world.size == 1,
    }
    if background:
        return dcp.async_save(**given)  # type: ignore[return-value]
    dcp.save(**given)
    done: Future[Any] = Future()
    done.set_result(None)
    return done


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    """Load weights and optimizer from a complete checkpoint; every process must call it.

    Raises:
        TrainingError: the checkpoint is damaged, or holds something that no fit saves.
    """
    weights, moments = get_state_dict(model, optimizer, options=_options())
    state = {"model": weights, "optimizer": moments}
    try:
        dcp.load(state, storage_reader=Reader(folder), planner=Planner(), no_dist=world.size == 1)
    except _DAMAGE as error:
        raise TrainingError(
            f"the checkpoint {folder} cannot be used: {first_line(first_failure(error))}; remove it (a run keeps its "
            f"checkpoints under {layout.FITS}/) to start the fit again"
        ) from None
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_options())


def read_progress(folder: Path, fingerprint: str) -> Progress:
    """The progress in a checkpoint. Raises TrainingError if it belongs to another fit or is damaged."""
    try:
        progress = Progress(**json.loads((folder / _PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"the checkpoint {folder} is damaged: {one_line(error)}") from error
    if progress.fingerprint != fingerprint:
        raise TrainingError(f"the checkpoint {folder} belongs to a fit with other data or settings: remove it")
    return progress


_DAMAGE = (
    # What unpickling and tensors of another shape raise, in one process and in a process group.
    *(pickle.UnpicklingError, CheckpointException, OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(LookupError, ArithmeticError, AttributeError, AssertionError, ImportError, MemoryError),
)


def first_failure(error: BaseException) -> BaseException:
    """The error of the first process that failed, if several took part."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _options() -> StateDictOptions:
    # Frozen weights come from the model's folder; strict loading would report them as missing.
    return StateDictOptions(ignore_frozen_params=True, strict=False)
