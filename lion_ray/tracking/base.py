"""What a tracker is told, and when.

Invariants:
- Steps are numbered from 1 over the whole run: an iteration's first step follows the last one of the iteration before.
- A tracker is told of every step once, in order, and of an iteration's result after its steps. What comes after a
  resume follows on what the tracker says it holds (`begin`), whichever attempt made it.
- All calls to one tracker come from one thread, one after another.

This module knows no tracker and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from lion_ray.pipeline.results import IterationResult


class Held(NamedTuple):
    """How much of a run somebody has."""

    step: int = 0
    """The number of the last step; 0 before the first."""
    iteration: int = -1
    """The last iteration whose result is there; -1 before iteration 0, which is the base model's."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that a tracker is to follow."""

    id: str
    """Names this run alone: one that is made anew under the same name has another."""
    name: str
    root: str
    """Its folder, or the URL of it."""
    attempt: int
    """From 1; a higher one resumes."""
    began: float
    """When its first attempt began, in Unix seconds."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its configuration, as plain values; it holds no keys."""
    done: Held = field(default_factory=Held)
    """What earlier attempts have done. A tracker that wants to hear of news alone returns it from `begin`."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step."""

    number: int
    """Over the whole run, from 1."""
    iteration: int
    in_iteration: int
    """Its number within the iteration's fine-tuning, from 1."""
    time: float
    """When it was done, in Unix seconds."""
    metrics: Mapping[str, float]
    """loss (nats per labelled token), learning_rate, grad_norm, tokens (so far in this fit), tokens_per_second."""


@dataclass(frozen=True, slots=True)
class StageEvent:
    """A stage has begun or has ended; these are told as they happen, and never again."""

    name: str
    """As the log has it, such as "iteration 1: fine-tuning"."""
    state: Literal["began", "ended"]
    done: int
    total: int
    """0 where nobody knows yet."""
    unit: str
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows, by outcome."""


@dataclass(frozen=True, slots=True)
class Spend:
    """What the endpoints have cost and done by now; told twice a minute at most, and at the end."""

    time: float
    """In Unix seconds."""
    usd: float
    """All attempts together, with what is uncertain; 0 where no endpoint has prices."""
    uncertain_usd: float
    """Of it what may have been billed without an answer."""
    completed: int
    """Calls of this attempt that were answered."""
    replayed: int
    """Calls that the journal knew."""
    failed: int
    prompt_tokens: int
    """Bought by this attempt."""
    completion_tokens: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    results: tuple[IterationResult, ...] = ()
    """Of a run that is finished: every iteration's; empty where it is not."""
    error: BaseException | None = None
    """What ended it otherwise; the same command resumes it."""


class Tracker:
    """Where a run's numbers go. Inherit from it and write the methods that you need: each does nothing of itself.

    What a method raises is told once in the run's log, and is tried again a little later.
    """

    def begin(self, run: RunInfo) -> Held | None:
        """An attempt begins. Returns what the tracker has of this run already, so that it is told what follows; None:
        nothing, so it is told everything from the run's beginning on, also what earlier attempts did."""
        return None

    def step(self, step: TrainingStep) -> None:
        """An optimizer step was done."""

    def iteration(self, result: IterationResult) -> None:
        """An iteration is done; number 0 is the base model's. `tracking.numbers.numbers` makes it flat."""

    def stage(self, event: StageEvent) -> None:
        """A stage began or ended."""

    def spend(self, spend: Spend) -> None:
        """What the endpoints have cost by now."""

    def flush(self) -> None:
        """Nothing more waits to be told just now."""

    def end(self, outcome: Outcome) -> None:
        """The attempt is over; nothing follows."""


METHODS = ("begin", "step", "iteration", "stage", "spend", "flush", "end")
