"""What can go wrong with a run on a cluster, as a plan: when it strikes, whom, and how one sees that it is over.

Invariants:
- A fault strikes at a state of the run, never at a time: the same plan hits the same stage on any machine.
- Victims come from the cluster's own actor table, and are killed without a word.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lion_ray.core.process_guard import command_line, descendants
from tests.ray.harness import Job
from tests.ray.machines import Machines

PROXY, REFEREE, GENERATOR = "TeacherProxy", "Referee", "Generator"
ENGINE, TRAINER = "StudentEngine", "RayTrainWorker"


@dataclass(frozen=True)
class Fault:
    """One fault."""

    name: str
    victim: str
    """The class of the actors that it hits."""
    when: Callable[[Job], bool]
    strike: Callable[[Machines, list[dict[str, Any]]], None]
    """Given the cluster and its living actors of that class."""
    work: str
    """The stage of the run in which one sees that the victim's work goes on."""

    def sign(self, job: Job) -> tuple[object, ...]:
        """What changes when it does: parts, steps of a fine-tuning, the stage's end."""
        stage = job.store.stage(self.work)
        return stage.manifest() is None, len(stage.part_indexes()), job.store.read_json(f"{self.work}/progress.json")


# -- when -----------------------------------------------------------------------------------------------------------


def answering(job: Job) -> bool:
    """The teacher has answered some shards and not all."""
    stage = job.store.stage("answers-0")
    return bool(stage.part_indexes()) and stage.manifest() is None


def training(iteration: int) -> Callable[[Job], bool]:
    """The fine-tuning has come past its first checkpoint."""

    def now(job: Job) -> bool:
        seen = job.store.read_json(f"iteration-{iteration}/checkpoint/progress.json")
        done = job.store.stage(f"iteration-{iteration}/checkpoint").manifest()
        return seen is not None and seen["step"] > 5 and done is None

    return now


def student_answers(job: Job) -> bool:
    """The new checkpoint's first answers are there, and not all."""
    there = job.store.stage("iteration-1/student").part_indexes()
    return bool(there) and len(there) < len(job.store.stage("pool-0").part_indexes())


def judging(job: Job) -> bool:
    """Some verdicts are there, and not all."""
    stage = job.store.stage("iteration-1/verdicts")
    return bool(stage.part_indexes()) and stage.manifest() is None


def generating(job: Job) -> bool:
    """The generator is at it."""
    return (
        job.store.stage("iteration-1/verdicts").manifest() is not None and job.store.stage("pool-1").manifest() is None
    )


# -- how ------------------------------------------------------------------------------------------------------------


def kill_process(_: Machines, victims: list[dict[str, Any]]) -> None:
    """SIGKILL the actor's process, as the kernel's out-of-memory killer does."""
    os.kill(victims[0]["Pid"], signal.SIGKILL)


def kill_core(_: Machines, victims: list[dict[str, Any]]) -> None:
    """SIGKILL what vLLM runs beside the actor; the actor itself lives."""
    for pid in descendants(victims[0]["Pid"]):
        if command_line(pid).startswith(b"VLLM::"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def lose_node(machines: Machines, victims: list[dict[str, Any]]) -> None:
    """The machine goes, with everything on it; another comes. Where it is the driver's, that is another machine."""
    machines.lose(machines.node(machines.node_of(victims[0])))
    machines.add()


def end_node(machines: Machines, victims: list[dict[str, Any]]) -> None:
    """The machine gets SIGTERM, as a spot machine that is taken back; another comes."""
    machines.end(machines.node(machines.node_of(victims[0])))
    machines.add()


ACTORS = (
    Fault("teacher proxy killed", PROXY, answering, kill_process, "answers-0"),
    Fault("training worker killed", TRAINER, training(1), kill_process, "iteration-1/checkpoint"),
    Fault("engine's core killed", ENGINE, student_answers, kill_core, "iteration-1/student"),
    Fault("referee killed", REFEREE, judging, kill_process, "iteration-1/verdicts"),
    Fault("generator killed", GENERATOR, generating, kill_process, "pool-1"),
)
"""One after the other in one run."""

NODES = (
    Fault("node with the teacher's proxy lost", PROXY, answering, lose_node, "answers-0"),
    Fault("node with a training worker lost", TRAINER, training(1), lose_node, "iteration-1/checkpoint"),
    Fault("node with an engine lost", ENGINE, student_answers, lose_node, "iteration-1/student"),
    Fault("node with the generator lost", GENERATOR, generating, lose_node, "pool-1"),
)
"""One after the other in one run."""

NOTICES = (
    Fault("node with a training worker told to end", TRAINER, training(1), end_node, "iteration-1/checkpoint"),
    Fault("node with an engine told to end", ENGINE, student_answers, end_node, "iteration-1/student"),
)
"""One after the other in one run."""
