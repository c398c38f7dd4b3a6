"""A run that stands still: who it was is told with its stack, restarted once, and then the run ends."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from lion_ray.actors.base import BaseActor
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.pipeline.watchdog import Watchdog

STALL_S = 100.0
DEAF_S = 1.0
"""How long an answer is waited for of an actor that will give none."""
PATIENT_S = 600.0
"""And of one that will, on any machine."""

pytestmark = pytest.mark.usefixtures("cluster")


class Judge(BaseActor):
    async def stand_still_in_a_loop(self) -> None:
        time.sleep(10**6)  # noqa: ASYNC251 - what no coroutine should do

    async def wait_for_nothing(self) -> None:
        await asyncio.Event().wait()

    async def work(self) -> int:
        return 1


JudgeActor: Any = ray.remote(num_cpus=0, max_restarts=5, max_task_retries=0)(Judge)


class Scene:
    """A run of one stage and one actor, watched by a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.said = io.StringIO()
        self.progress = Progress(self.said)
        self.store = RunStore(str(folder))
        self.judge = JudgeActor.remote()
        self.calls = 0
        self.now = 0.0
        self.dog = Watchdog(
            self.progress, self.store, STALL_S, lambda: {"referee": self.judge}, self._moves, answer_s=PATIENT_S
        )

    async def _moves(self) -> int:
        return self.calls

    async def look(self, after: float = 0.0, *, deaf: bool = False) -> None:
        """Look so much later; `deaf`: at a judge that will not answer."""
        self.now += after
        self.dog.answer_s = DEAF_S if deaf else PATIENT_S
        await self.dog.look(self.now)

    async def ready(self) -> None:
        """Return when the judge is up: however slow the machine, it is then known where it is."""
        # Again and again while it is being restarted, as a role's calls are; its other calls here must not come again.
        await self.judge.work.options(max_task_retries=-1).remote()
        await self.look()

    def evidence(self) -> list[str]:
        return [self.store.read_bytes(f"stalls/{name}").decode() for name in self.store.names("stalls")]


async def test_an_actor_that_does_not_answer_is_restarted_once_and_named_with_its_stack(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.progress.stage("judging", 8, "shards"):
        await scene.ready()
        first = await scene.judge.alive.remote()
        scene.judge.stand_still_in_a_loop.remote()
        await scene.look(after=STALL_S, deaf=True)
        assert "referee does not answer and is restarted" in scene.said.getvalue()
        await scene.ready()
        assert (await scene.judge.alive.remote()).pid != first.pid
        scene.judge.stand_still_in_a_loop.remote()
        await scene.look(after=STALL_S / 2, deaf=True)
        with pytest.raises(InfrastructureError) as caught:
            await scene.look(after=STALL_S / 2, deaf=True)
    told = str(caught.value)
    assert "no progress for 100 s in judging (0 of 8): referee does not answer" in told
    assert "stand_still_in_a_loop" in told
    assert len(scene.evidence()) == 2
    assert all("stand_still_in_a_loop" in text for text in scene.evidence())


async def test_a_run_that_stands_still_for_no_actors_sake_ends(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.progress.stage("judging", 8, "shards"):
        await scene.ready()
        scene.judge.wait_for_nothing.remote()
        with pytest.raises(InfrastructureError, match="though every actor answers"):
            await scene.look(after=STALL_S)
    assert "referee, process" in scene.evidence()[0]


async def test_what_moves_or_waits_is_left_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with scene.progress.stage("judging", 1000, "shards") as stage:
        await scene.ready()
        stage.advance(1)
        await scene.look(after=STALL_S)
        scene.calls += 1
        await scene.look(after=STALL_S)
    # Between stages nothing is under way.
    await scene.look(after=STALL_S)
    with scene.progress.stage("judging", 8, "shards"):
        gate = asyncio.Event()
        waiting = asyncio.create_task(scene.progress.waiting(gate.wait(), "engine 0: waiting for 1 GPU"))
        await asyncio.sleep(0)
        await scene.look(after=STALL_S)
        gate.set()
        await waiting
        # The time of waiting is not held against the run.
        await scene.look(after=STALL_S / 2)
    assert not scene.evidence()


async def test_it_looks_by_itself(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.judge.work.remote()
    dog = Watchdog(scene.progress, scene.store, 0.5, lambda: {"referee": scene.judge}, scene._moves)
    with (
        scene.progress.stage("judging", 8, "shards"),
        pytest.raises(InfrastructureError, match=r"no progress for 0\.5 s in judging"),
    ):
        await dog.watch()
