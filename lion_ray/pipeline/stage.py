"""What a stage of an iteration is, to everything that deals with stages: loop, plan, results, status, report, export.

Invariants:
- A stage has one name, which is what every table, page and log calls it.
- It is resumable: what it committed is read and never done again, so `run` may be called any number of times.
- Whether it is due depends on the configuration and on what is known when it could begin (`When`), on nothing else.

`pipeline.stages.PIPELINE` is the one list of them. A new stage is a class here below and a line there.
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
"""Of a stage's manifest, what a result repeats."""


def since(began: float) -> Manifest:
    """When a stage began, in seconds since 1970, and how long it took until now; for its manifest."""
    return {"began": round(began, 2), "seconds": round(time.time() - began, 2)}


class Phase(StrEnum):
    """The part of an iteration that a stage belongs to: the paper's three, and what comes before and beside them."""

    DATA = "data"
    IMITATION = "imitation"
    DISCRIMINATION = "discrimination"
    GENERATION = "generation"
    MEASUREMENT = "measurement"
    """The student, and what it is measured against, on the held-out set."""


@dataclass(frozen=True, slots=True)
class When:
    """What decides whether a stage is due."""

    config: RunConfig
    iteration: int
    """0: before the first imitation."""
    heldout: bool
    """There is a held-out set."""
    last: bool = False
    """The run ends early with this iteration."""


class Stage(ABC):
    """One stage. Its objects hold nothing: they are what the pipeline is made of."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    actor: ClassVar[str]
    """Who works in it: teacher, student, trainer, referee, generator or run store."""
    after: ClassVar[tuple[str, ...]] = ()
    """Names of stages of the same iteration which, where they are under way too, end before this one begins."""
    ahead: ClassVar[bool] = False
    """It may begin while the iteration before still generates."""
    student: ClassVar[bool] = False
    """The student's engines are needed until it is done."""

    @abstractmethod
    def folder(self, iteration: int) -> str:
        """Its folder in the run (`core.layout`)."""

    def occurs(self, iteration: int) -> bool:
        """Whether an iteration can have it at all; by default every one but 0, in which nothing is learned."""
        return iteration > 0

    @abstractmethod
    def due(self, when: When) -> bool:
        """Whether the configuration wants it of an iteration in which it occurs."""

    @abstractmethod
    async def run(self, run: Run, iteration: int) -> None:
        """Do what is not done yet, and commit it."""

    def plan(self, planner: Planner, iteration: int) -> StagePlan | None:
        """What it will take; None where that is nothing worth a line. Asked only where it is due."""
        return None

    def title(self, iteration: int) -> str:
        """What a person reads while it runs."""
        return f"iteration {iteration}: {self.name}"

    def manifest(self, store: RunStore, iteration: int) -> Manifest:
        """What it committed; empty where it has not."""
        return store.stage(self.folder(iteration)).manifest() or {}

    def summary(self, store: RunStore, iteration: int) -> Manifest:
        """Of the manifest what a result counts: times, tokens and rows that failed; empty where there is none."""
        return self.manifest(store, iteration)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        """The fields of `results.IterationResult` that come from here; called only where it has committed."""
        return {}
