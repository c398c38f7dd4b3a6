"""The interface of a stage of an iteration, used by loop, plan, results, status, report and export.

Invariants:
- A stage has one name, used in every table, page and log.
- It is resumable: committed work is read and never repeated, so `run` may be called any number of times.
- Whether it is due depends only on the configuration and on what is known when it could start (`When`).

`pipeline.stages.PIPELINE` is the only list of stages. A new stage is a subclass and a line there.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from lion_ray.core.store import Manifest, RunStore

if TYPE_CHECKING:
    from lion_ray.config import RunConfig
    from lion_ray.pipeline.plan import Planner, StagePlan
    from lion_ray.pipeline.run import Run

NUMBERS = ("seconds", "calls", "prompt_tokens", "completion_tokens", "cost_usd", "steps", "tokens")
"""The keys of a stage's manifest that a result repeats."""


def since(began: float) -> Manifest:
    """When a stage began, in seconds since 1970, and how long it took until now; for its manifest."""
    return {"began": round(began, 2), "seconds": round(time.time() - began, 2)}


class Phase(StrEnum):
    """The part of an iteration to which a stage belongs: the paper's three, data import and measurement."""

    DATA = "data"
    IMITATION = "imitation"
    DISCRIMINATION = "discrimination"
    GENERATION = "generation"
    MEASUREMENT = "measurement"
    """The student and its reference on the held-out set."""


@dataclass(frozen=True, slots=True)
class When:
    """The inputs that decide whether a stage is due."""

    config: RunConfig
    iteration: int
    """0: before the first imitation."""
    heldout: bool
    """Whether there is a held-out set."""
    last: bool = False
    """Whether the run ends early with this iteration."""


class Stage(ABC):
    """One stage. Its objects are stateless."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    actor: ClassVar[str]
    """The actor that does the work: teacher, student, trainer, referee, generator or run store."""
    after: ClassVar[tuple[str, ...]] = ()
    """Dependencies: names of stages of the same iteration that, if they run too, must end before this one starts."""
    ahead: ClassVar[bool] = False
    """Whether it may start while the previous iteration still generates."""
    student: ClassVar[bool] = False
    """Whether it needs the student's engines until it is done."""

    @abstractmethod
    def folder(self, iteration: int) -> str:
        """Its folder in the run (`core.layout`)."""

    def occurs(self, iteration: int) -> bool:
        """Whether an iteration can have this stage at all; default: every iteration except 0, the base model."""
        return iteration > 0

    @abstractmethod
    def due(self, when: When) -> bool:
        """Whether the configuration requires it in an iteration in which it occurs."""

    @abstractmethod
    async def run(self, run: Run, iteration: int) -> None:
        """Do the uncommitted work, and commit it."""

    def plan(self, planner: Planner, iteration: int) -> StagePlan | None:
        """The stage's estimate; None if it needs no line in the plan. Called only if it is due."""
        return None

    def title(self, iteration: int) -> str:
        """The name shown while it runs."""
        return f"iteration {iteration}: {self.name}"

    def manifest(self, store: RunStore, iteration: int) -> Manifest:
        """The committed manifest; empty if it is not committed."""
        return store.stage(self.folder(iteration)).manifest() or {}

    def summary(self, store: RunStore, iteration: int) -> Manifest:
        """The part of the manifest that a result counts: times, tokens and failed rows; empty if there is none."""
        return self.manifest(store, iteration)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        """This stage's fields of `results.IterationResult`; called only if it has committed."""
        return {}
