"""The disk that a run's students take: what stays, and what a fit needs besides while it lasts.

Invariants:
- Pure arithmetic on the number of parameters, checked against what fits wrote (tests/unit/test_disk.py).
- An upper bound: a fit that is shorter than `imitation.checkpoint_every` writes no checkpoint.

Rows, calls and reports are small beside weights, and are not counted.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.copies import KEPT
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.room import GIB, free_disk
from lion_ray.core.store import RunStore
from lion_ray.models.resolve import parameters_of

FLOAT32 = 4
MOMENTS = 2
"""AdamW's, of the size of the trained weights."""
CHECKPOINTS = 2
"""Of a fit: the last complete one, and the next while it is written."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Bytes at the storage path, and in the folder for temporary files of each machine that trains or serves."""

    students: float
    """What stays: the students of all iterations."""
    fit: float
    """What a fit needs besides while it lasts: its checkpoints."""
    scratch: float
    """With an object store: the new student and a checkpoint before they are uploaded, and copies of students."""


def disk_plan(config: RunConfig, parameters: float, *, done: int = 0) -> DiskPlan:
    """What a run takes whose students have that many parameters; `done`: students that are there already."""
    student, left = FLOAT32 * parameters, config.iterations + 1 - done
    # Adapters are a hundredth of the weights or less; the merged student is whole.
    checkpoint = 0.0 if config.imitation.lora else (1 + MOMENTS) * student
    remote = "://" in config.storage_path
    scratch = (1 + KEPT) * student + checkpoint if remote else 0.0
    return DiskPlan(left * student, CHECKPOINTS * checkpoint if left else 0.0, scratch if left else 0.0)


def disk_line(config: RunConfig, plan: DiskPlan) -> str:
    """The plan for people."""
    line = (
        f"disk: {plan.students / GIB:.1f} GiB at {config.storage_path} for the students of {config.iterations + 1} "
        f"imitations, and up to {plan.fit / GIB:.1f} GiB for a fit's checkpoints while it lasts"
    )
    if plan.scratch:
        line += f"; up to {plan.scratch / GIB:.1f} GiB for temporary files on each machine that trains"
    place = _place(config)
    if place is not None:
        line += f"; {free_disk(place) / GIB:.1f} GiB are free at {place}"
    return line


def check_disk(config: RunConfig, base_dir: Path, store: RunStore) -> None:
    """Raise InfrastructureError if this machine's disk is too small for what is left of a run.

    Not checked: object stores, a cluster's other machines, and models whose size is not known here.
    """
    place, parameters = _place(config), parameters_of(config.student.model, base_dir)
    if place is None or parameters is None:
        return
    done = sum(store.stage(layout.checkpoint(k)).manifest() is not None for k in range(1, config.iterations + 2))
    plan = disk_plan(config, parameters, done=done)
    wanted, free = plan.scratch or plan.students + plan.fit, free_disk(place)
    if free >= wanted:
        return
    key = "TMPDIR" if plan.scratch else "storage_path"
    raise InfrastructureError(
        f"{place}: {free / GIB:.1f} GiB are free, and this run may need {wanted / GIB:.1f} GiB there for its students "
        f"and a fit's checkpoints; free some, set {key} to a larger disk, or train adapters (imitation.lora)"
    )


def _place(config: RunConfig) -> Path | None:
    """The folder on this machine that fills up; None if that is on other machines."""
    if "://" not in config.storage_path:
        return Path(config.storage_path).expanduser().absolute()
    return None if os.environ.get("RAY_ADDRESS") else Path(tempfile.gettempdir())
