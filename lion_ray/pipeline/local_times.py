"""Estimate the time of stages that this machine computes itself: served models, the student, fits.

Invariants:
- Only work on this machine's CPU is forecast. GPUs are not timed, and a cluster's nodes are unknown here.
- Before the run, estimates use the CPU's measured matrix products (`machine`) and usual lengths of answers
  (`estimate`). During the run, the rest is scaled by the ratio of actual to forecast time of finished stages.

This module starts nothing and sends nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lion_ray.config import RunConfig, ServeConfig, endpoints_in_use
from lion_ray.inference import server_gpus, student_type, wants_gpu
from lion_ray.inference.memory import AT_ONCE
from lion_ray.inference.server import arithmetic, requests_at_once
from lion_ray.models.machine import resolve_precision, speeds
from lion_ray.models.resolve import parameters_of
from lion_ray.pipeline.estimate import Calls, frame_tokens, usual_answer

BACKWARD = 3.0
"""Cost of a training step in forward passes: one forward, two backward (arXiv 2001.08361, section 2.1)."""
FIT_START_S = 30.0
"""Overhead of every fit: starting a worker, loading, held-out losses, writing."""
START_S = 60.0
"""Start-up time of a run: Ray, its servers and its engines, concurrently."""
PRIOR_S = 60.0
"""Seconds at the forecast pace added to the observed ones, so that the first short stage has little weight."""
SLOW = 2.0
"""A number type slower than the best by this factor causes a warning."""


class StageTimes(Protocol):
    """The estimated times of a planned stage; None if one does not apply."""

    @property
    def seconds(self) -> float | None:
        """At its endpoint's limits."""

    @property
    def local_s(self) -> float | None:
        """On this machine."""


@dataclass(frozen=True, slots=True)
class LocalTimes:
    """Forecasts for one configuration on this machine."""

    config: RunConfig
    base_dir: Path

    @classmethod
    def here(cls, config: RunConfig, base_dir: Path) -> LocalTimes | None:
        """Returns None if the run goes to a cluster."""
        return None if os.environ.get("RAY_ADDRESS") else cls(config, base_dir)

    def any(self) -> bool:
        """Whether this machine computes anything of the run."""
        served = (self.config.endpoints[name].serve for name in endpoints_in_use(self.config))
        return (
            not wants_gpu(self.config.student.use_gpu)
            or not wants_gpu(self.config.imitation.use_gpu)
            or any(serve is not None and not server_gpus(serve) for serve in served)
        )

    def calls(self, role: str, calls: Calls) -> float | None:
        """Seconds of a role's calls to a server that the run starts on this CPU; None for another endpoint."""
        section = getattr(self.config, role)
        serve = self.config.endpoints[section.endpoint].serve
        parameters = None if serve is None or server_gpus(serve) else self._parameters(serve)
        if serve is None or parameters is None or not calls.calls:
            return None
        frame = frame_tokens(self.config, role, self.base_dir)
        # Every prompt starts with the template's text, which the server's prefix cache keeps.
        read = calls.prompt - frame * (calls.calls - 1)
        together = min(requests_at_once(serve, parameters), calls.calls)
        rates, dtype = speeds(), arithmetic(serve)
        return read / rates.tokens_per_second(parameters, math.inf, dtype) + calls.completion / rates.tokens_per_second(
            parameters, together, dtype
        )

    def student(self, rows: int) -> float | None:
        """Seconds for the student's engine to answer `rows` rows; None on a GPU."""
        student = self.config.student
        parameters = None if wants_gpu(student.use_gpu) else parameters_of(student.model, self.base_dir)
        if parameters is None or not rows:
            return None
        tokens = rows * usual_answer(self.config, "student")
        together = min(rows, student.max_num_seqs or AT_ONCE)
        return tokens / speeds().tokens_per_second(parameters, together, student_type(student.dtype))

    def fit(self, tokens: float, fits: int = 1) -> float | None:
        """Seconds to train on `tokens` tokens, in so many fits; None on a GPU."""
        imitation = self.config.imitation
        gpu = wants_gpu(imitation.use_gpu)
        parameters = None if gpu else parameters_of(self.config.student.model, self.base_dir)
        if parameters is None:
            return None
        dtype = "bfloat16" if resolve_precision(imitation.precision, gpu=False) == "bf16" else "float32"
        return fits * FIT_START_S + BACKWARD * tokens / speeds().tokens_per_second(parameters, math.inf, dtype)

    def _parameters(self, serve: ServeConfig) -> float | None:
        return parameters_of(serve.model, self.base_dir)

    def slow_types(self) -> list[str]:
        """A sentence for each configured number type that is much slower than the fastest on this CPU."""
        config, found = self.config, []
        named = {
            f"endpoints.{name}.serve.dtype": endpoint.serve.dtype
            for name, endpoint in config.endpoints.items()
            if endpoint.serve is not None and not server_gpus(endpoint.serve)
        }
        if not wants_gpu(config.student.use_gpu):
            named["student.dtype"] = config.student.dtype
        if not wants_gpu(config.imitation.use_gpu):
            precision = config.imitation.precision
            named["imitation.precision"] = {"bf16": "bfloat16", "fp32": "float32", "auto": "auto"}[precision]  # type: ignore[assignment]
        for key, dtype in named.items():
            times = 1.0 if dtype == "auto" else speeds().slower_than_best(dtype)
            if times >= SLOW:
                found.append(
                    f"{key}: on this CPU, {dtype} is {times:.1f} times slower than {speeds().fastest}, which `auto` "
                    "would choose"
                )
        return found


def planned_s(stages: Iterable[StageTimes]) -> float | None:
    """The seconds of a run's stages and its start-up. None if this machine computes nothing.

    Stages share the machine, so their seconds add up.
    """
    found = list(stages)
    if all(stage.local_s is None for stage in found):
        return None
    return START_S + sum(map(stage_s, found))


def stage_s(stage: StageTimes) -> float:
    """Seconds of one stage: the larger of the times at its endpoint's limits and on this machine."""
    return max(stage.seconds or 0.0, stage.local_s or 0.0)


def left_s(planned: float, done: float, elapsed: float) -> float:
    """Remaining seconds, given that `done` of the `planned` seconds took `elapsed` seconds."""
    return max(0.0, planned - done) * (elapsed + PRIOR_S) / (done + PRIOR_S)


def in_words(seconds: float) -> str:
    """A readable duration: about 40 s, about 12 min, about 3.5 h."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
