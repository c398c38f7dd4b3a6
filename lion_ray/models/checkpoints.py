"""Finds runs and their students' checkpoints, for use during or after the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pydantic import ValidationError

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import RunStore
from lion_ray.models.model_ref import ModelRef

BASE = "base"
"""The version of the base model; a checkpoint's version is ``iteration-N``, or ``iteration-N-round-R``."""


@dataclass(frozen=True, slots=True)
class Student:
    """A checkpoint on this machine, and the configuration that it was trained with."""

    config: RunConfig
    folder: Path
    base_dir: Path
    """The folder that the configuration's files are relative to."""
    version: str
    iteration: int
    """0 for the base model."""


def find_run(run: str) -> RunStore | None:
    """The store of a run, given its folder, its URL, or its name under ./runs. Returns None if there is none."""
    for candidate in run_candidates(run):
        store = RunStore(candidate)
        if store.exists(layout.RUN):
            return store
    return None


def open_run(run: str) -> RunStore:
    """Like `find_run`, but raises an error.

    Raises:
        ConfigError: there is no run.
    """
    store = find_run(run)
    if store is None:
        raise ConfigError(f"{run}: no run found (looked for {layout.RUN} in {', '.join(run_candidates(run))})")
    return store


def run_candidates(run: str) -> list[str]:
    """The places where a run of this name may be."""
    return [run] if "://" in run or "/" in run else [str(Path("runs") / run), run]


def described_run(store: RunStore) -> tuple[RunConfig, Path]:
    """A run's configuration, and the folder that its files are relative to.

    Raises:
        ConfigError: another version of lion-ray wrote it, and this version cannot read it.
    """
    described = store.described()
    try:
        config = RunConfig.model_validate(described["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_url=False))
        raise ConfigError(
            f"{store.path(layout.RUN)}: another version of lion-ray wrote its configuration ({keys}); use that version"
        ) from None
    return config, Path(described["base_dir"])


def find_student(store: RunStore, iteration: int | None = None, say: Callable[[str], None] = print) -> Student:
    """The student after an iteration; by default after the last one that has a checkpoint; with 0 the base model.

    Args:
        say: called with messages about a download of the base model.

    Raises:
        ConfigError: the run has no such checkpoint.
        ModelError: the base model cannot be loaded or fetched.
    """
    config, base_dir = described_run(store)
    if iteration == 0:
        from lion_ray.models.resolve import resolve_model

        return Student(config, resolve_model(config.student.model, base_dir=base_dir, progress=say), base_dir, BASE, 0)
    wanted = range(config.iterations + 1, 0, -1) if iteration is None else [iteration]
    for number in wanted:
        if store.stage(layout.checkpoint(number)).manifest() is not None:
            break
    else:
        which = "any iteration" if iteration is None else f"iteration {iteration}"
        raise ConfigError(f"{store.root}: there is no checkpoint of {which} yet")
    ref = student_ref(store, number)
    return Student(config, ref.fetch(store, base_dir), base_dir, ref.version, number)


def last_round(store: RunStore, iteration: int) -> int:
    """The last committed on-policy round of an iteration that changed the student; 0 if there is none."""
    found = 0
    for number in count(1):
        manifest = store.stage(layout.round_checkpoint(iteration, number)).manifest()
        if manifest is None:
            return found
        found = number if manifest["steps"] else found
    raise AssertionError("unreachable")


def last_fit(store: RunStore, iteration: int) -> str:
    """The stage of the fit that made an iteration's student so far: its last on-policy round, else its imitation."""
    number = last_round(store, iteration)
    return layout.round_checkpoint(iteration, number) if number else layout.checkpoint(iteration)


def student_ref(store: RunStore, iteration: int) -> ModelRef:
    """The student after an iteration, whose imitation is committed."""
    number = last_round(store, iteration)
    stage = layout.round_checkpoint(iteration, number) if number else layout.checkpoint(iteration)
    return ModelRef(layout.fit_name(iteration, number), folder=layout.model_of(stage))
