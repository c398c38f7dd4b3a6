"""A run's student, found in its folder: for whoever uses it after, or beside, the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.copies import copies_folder
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import RunStore

BASE = "base"
"""The version of the base model; those after an iteration are ``iteration-N``."""


@dataclass(frozen=True, slots=True)
class Student:
    """A checkpoint on this machine, and how it was trained to be asked."""

    config: RunConfig
    folder: Path
    base_dir: Path
    """Where the configuration's own files are found."""
    version: str
    iteration: int
    """0 for the base model."""


def find_run(run: str) -> RunStore | None:
    """The store of a run named by its folder, its URL, or its name under ./runs; None where there is none."""
    for candidate in run_candidates(run):
        store = RunStore(candidate)
        if store.exists(layout.RUN):
            return store
    return None


def open_run(run: str) -> RunStore:
    """As `find_run`.

    Raises:
        ConfigError: there is no run.
    """
    store = find_run(run)
    if store is None:
        raise ConfigError(f"{run}: no run there (looked for {layout.RUN} in {', '.join(run_candidates(run))})")
    return store


def run_candidates(run: str) -> list[str]:
    """Where a run of that name is looked for."""
    return [run] if "://" in run or "/" in run else [str(Path("runs") / run), run]


def described_run(store: RunStore) -> tuple[RunConfig, Path]:
    """A run's configuration, and the folder in which its own files are found.

    Raises:
        ConfigError: another version of lion-ray wrote it, and this one does not understand it.
    """
    described = store.described()
    try:
        config = RunConfig.model_validate(described["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_url=False))
        raise ConfigError(
            f"{store.path(layout.RUN)}: its configuration is of another version of lion-ray ({keys}); use that version"
        ) from None
    return config, Path(described["base_dir"])


def find_student(store: RunStore, iteration: int | None = None, say: Callable[[str], None] = print) -> Student:
    """The student after an iteration; after the last one that is there, by default; the base model, with 0.

    Args:
        say: told of downloads, where the base model is not on this machine.

    Raises:
        ConfigError: the run has no such checkpoint.
        ModelError: the base model cannot be had.
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
    folder = store.local_folder(layout.model(number), cache=copies_folder())
    return Student(config, folder, base_dir, layout.iteration(number), number)
