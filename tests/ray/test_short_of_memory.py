"""A machine that is short of memory: Ray's own monitor ends what runs there. Real kills, on one node of a cluster."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lion_ray.actors.base import LOST, BaseActor, restartable, why_lost
from lion_ray.actors.student_pool import StudentPool
from lion_ray.actors.trainer import fit, in_thread
from lion_ray.core.errors import EngineError, TrainingError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from tests.ray.machines import Machines, machines
from tests.ray.test_student_pool import BASE, CONFIG
from tests.tiny import make_tiny_model

SHORT = r"Ray ended its process because the machine [0-9.]+ was short of memory \([0-9.]+GB of [0-9.]+GB used\); "


@pytest.fixture(scope="module")
def short() -> Iterator[Machines]:
    """Whatever needs a CPU goes to the node that is short."""
    with machines(head_cpus=0) as cluster:
        cluster.add(cpus=4, short_of_memory=True)
        yield cluster


async def test_an_engine_is_tried_again_and_then_told_of(short: Machines, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base")
    store, said = RunStore(str(tmp_path)), io.StringIO()
    students = StudentPool(CONFIG, run_name="short", store=store, base_dir=tmp_path, seed=0)
    try:
        with pytest.raises(EngineError) as caught:
            await students.load(BASE, Progress(said))
    finally:
        await students.stop()
    line = str(caught.value)
    assert re.match(rf"student engine 0 died 3 times while it started, last: {SHORT}lower student\.max_num_seqs", line)
    assert "\n" not in line
    assert len(line) < 400
    assert students.boots == 3
    assert said.getvalue().count("was short of memory") == 3


async def test_a_training_worker_is_restarted_and_then_told_of(short: Machines, tmp_path: Path) -> None:
    began = tmp_path / "began"

    def loop() -> None:
        with began.open("a") as file:
            file.write("x")
        time.sleep(600)

    trainer = TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=TrainRunConfig(
            name="short", storage_path=str(tmp_path / "fits"), failure_config=FailureConfig(max_failures=1)
        ),
    )
    with pytest.raises(TrainingError) as caught:
        await in_thread(lambda: fit(trainer))  # as a run does: in the main thread Ray Train takes Ctrl-C for itself
    assert re.match(rf"fine-tuning failed: {SHORT}lower imitation\.micro_batch_rows", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_role_is_restarted_so_often_and_then_told_of(short: Machines) -> None:
    role = restartable(BaseActor, at_once=2).options(num_cpus=1, max_restarts=1).remote()

    def ask_for_ever() -> None:
        while True:
            ray.get(role.alive.remote())

    with pytest.raises(LOST) as caught:
        ask_for_ever()
    assert re.fullmatch(rf"{SHORT}give the machine more, or let less run beside it", why_lost(caught.value))


def test_a_process_that_was_killed_otherwise_is_told_of_as_before() -> None:
    error = ray.exceptions.ActorDiedError()
    assert why_lost(error) == "The actor died unexpectedly before finishing this task."
