"""The interface of a tracker.

Invariants:
- Steps are numbered from 1 over the whole run: the first step of a fine-tuning follows the last one of the previous.
- A tracker gets every step once, in order, and an iteration's result after its steps. After a resume it gets what
  follows the data that `begin` returned, whichever attempt wrote it.
- All calls to one tracker come from one thread, one after another.

This module knows no tracker and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lion_ray.core.iteration_result import IterationResult


class Held(NamedTuple):
    """How much of a run a tracker has."""

    step: int = 0
    """The number of the last step; 0 before the first."""
    iteration: int = -1
    """The last iteration with a result; -1 before iteration 0, which is the base model's."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that a tracker follows."""

    id: str
    """Unique: a run that is recreated under the same name has another id."""
    name: str
    root: str
    """Its folder or URL."""
    attempt: int
    """From 1; a higher one resumes."""
    began: float
    """When its first attempt began, in Unix seconds."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its configuration, as plain values; it holds no secrets."""
    done: Held = field(default_factory=Held)
    """What earlier attempts have done. A tracker that only wants new data returns it from `begin`."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step."""

    number: int
    """Its number in the whole run, from 1."""
    iteration: int
    in_iteration: int
    """Its number within its fine-tuning, from 1."""
    time: float
    """When it finished, in Unix seconds."""
    metrics: Mapping[str, float]
    """loss (nats per labelled token), learning_rate, grad_norm, tokens (so far in this fit), tokens_per_second; mfu on
    GPUs whose peak speed is known."""
    round: int = 0
    """The on-policy round that it belongs to; 0 for the iteration's fine-tuning on teacher answers."""


@dataclass(frozen=True, slots=True)
class StageEvent:
    """A stage has begun or ended; reported once, when it happens."""

    name: str
    """As in the log, for example "iteration 1: fine-tuning"."""
    state: Literal["began", "ended"]
    done: int
    total: int
    """0 if not known yet."""
    unit: str
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows, by outcome."""


@dataclass(frozen=True, slots=True)
class Spend:
    """The endpoints' cost and calls so far; reported at most twice a minute, and at the end."""

    time: float
    """In Unix seconds."""
    usd: float
    """The cost of all attempts, including uncertain costs; 0 if no endpoint has prices."""
    uncertain_usd: float
    """The part of it that may have been billed without an answer."""
    completed: int
    """Calls of this attempt that were answered."""
    replayed: int
    """Calls answered from the journal."""
    failed: int
    prompt_tokens: int
    """Bought by this attempt."""
    completion_tokens: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    results: tuple[IterationResult, ...] = ()
    """Every iteration's result if the run is finished, else empty."""
    error: BaseException | None = None
    """The error that stopped the run; the same command resumes it."""


class Tracker:
    """Receives a run's metrics. Inherit from it and override the methods that you need; by default they do nothing.

    The first error of a tracker is logged; a failed call is retried soon after.
    """

    def begin(self, run: RunInfo) -> Held | None:
        """An attempt begins. Returns what the tracker already has of this run, so that it gets what follows; with None
        it gets everything from the run's beginning, including earlier attempts."""
        return None

    def step(self, step: TrainingStep) -> None:
        """An optimizer step is done."""

    def iteration(self, result: IterationResult) -> None:
        """An iteration is done; number 0 is the base model's. `tracking.numbers.numbers` flattens the result."""

    def stage(self, event: StageEvent) -> None:
        """A stage began or ended."""

    def spend(self, spend: Spend) -> None:
        """The endpoints' cost so far."""

    def flush(self) -> None:
        """No more data is waiting at the moment."""

    def end(self, outcome: Outcome) -> None:
        """The attempt has ended; no call follows."""


METHODS = ("begin", "step", "iteration", "stage", "spend", "flush", "end")
