"""The pool of engines, on a real Ray with real vLLM engines and a tiny model."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio
import ray

from lion_ray.actors import student_pool
from lion_ray.actors.engine_slot import shards_per_engine
from lion_ray.actors.student import ModelRef
from lion_ray.actors.student_pool import StudentPool
from lion_ray.actors.weights import in_memory
from lion_ray.config import StudentConfig
from lion_ray.core.errors import EngineError
from lion_ray.core.progress import Progress
from lion_ray.core.records import INSTRUCTION, instruction_id, table
from lion_ray.core.store import RunStore
from tests.ray.harness import metrics_with, until, wait_until_gone
from tests.ray.machines import Machines
from tests.tiny import make_tiny_model
from tests.trained import make_trained

CONFIG = StudentConfig(
    model="base",
    dtype="float32",
    max_tokens=24,
    max_model_len=128,
    max_num_seqs=16,
    enforce_eager=True,
    num_cpus=1,
)


def shard(rows: int, *more: str) -> pa.Table:
    texts = [f"Describe item {n}." for n in range(rows)] + list(more)
    return table(({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts), INSTRUCTION)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run folder with a base model, two trained checkpoints, and one that lies about its weights."""
    folder = tmp_path_factory.mktemp("run")
    make_tiny_model(folder / "base", initializer_range=0.5, tied=True)
    for version, seed in (("one", 1), ("two", 2)):
        make_trained(folder / "base", folder / version / "model", seed=seed)
    shutil.copytree(folder / "one", folder / "lying")
    shutil.copy(folder / "two" / "model" / "model.safetensors", folder / "lying" / "model" / "model.safetensors")
    return RunStore(str(folder))


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def students(cluster: Machines, store: RunStore) -> AsyncIterator[StudentPool]:
    """One pool for all: whatever a test did to its engine, the next one loads what it wants."""
    # Answers so long that an engine can be killed at them.
    config = CONFIG.model_copy(update={"max_tokens": 100, "refresh": "memory"})
    pool = StudentPool(config, run_name=os.urandom(4).hex(), store=store, base_dir=Path(store.root), seed=0)
    processes: list[int] = []
    try:
        yield pool
        for engine in pool.running.values():
            processes += await engine.processes.remote()
    finally:
        await pool.stop()
    assert pool.running == {}
    wait_until_gone(processes)


@pytest.mark.parametrize(
    ("max_num_seqs", "shard_rows", "expected"), [(64, 64, 4), (64, 16, 13), (64, 1000, 2), (256, 1, 64), (1, 64, 2)]
)
def test_so_many_shards_are_in_flight_that_batches_stay_full(max_num_seqs: int, shard_rows: int, expected: int) -> None:
    assert shards_per_engine(max_num_seqs, shard_rows) == expected


BASE = ModelRef("base", source="base")
ONE = ModelRef("one", folder="one/model")
TWO = ModelRef("two", folder="two/model")
LYING = ModelRef("lying", folder="lying/model")


def nothing_runs() -> bool:
    """Whether vLLM's gauge of answers under way is there, and says none."""
    name = "ray_vllm_num_requests_running"
    return {float(line.split()[-1]) for line in metrics_with(name).split("\n") if line.startswith(name)} == {0.0}


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_follow_the_seed_and_the_checkpoint(students: StudentPool, said: io.StringIO) -> None:
    progress = Progress(said)
    rows = shard(6, "word " * 200)
    await students.load(BASE, progress)
    boots = students.boots
    base = ray.get(await students.answer(ray.put(rows), 1))
    assert base["id"].to_pylist() == rows["id"].to_pylist()
    *answered, long = base.to_pylist()
    assert {row["status"] for row in answered} == {"ok"}
    assert (long["status"], long["reason"], long["text"]) == ("quarantined", "prompt too long", "")
    assert ray.get(await students.answer(ray.put(rows), 1)).equals(base), "the same seeds, the same answers"
    shown = await asyncio.to_thread(metrics_with, "ray_vllm_generation_tokens", "ray_lion_engine_tokens")
    (line, *_) = [line for line in shown.split("\n") if line.startswith("ray_vllm_generation_tokens")]
    assert "/student-0-" in line, "vLLM's metrics tell which engine they are of"
    await asyncio.to_thread(until, nothing_runs)  # of an idle engine too there is something to see
    again = ray.get(await students.answer(ray.put(rows), 2))
    assert again["text"].to_pylist() != base["text"].to_pylist(), "another iteration, other seeds"

    await students.load(ONE, progress)
    one = ray.get(await students.answer(ray.put(rows), 1))
    await students.load(TWO, progress)
    two = ray.get(await students.answer(ray.put(rows), 1))
    assert set(one["version"].to_pylist()) == {"one"}
    assert set(two["version"].to_pylist()) == {"two"}
    texts = [column["text"].to_pylist() for column in (base, one, two)]
    assert texts[0] != texts[1] != texts[2]
    assert students.boots == boots, "refreshing boots nothing"


class Keeper:
    """Objects are lost with the process that has put them into memory."""

    def keep(self, content: Any) -> list[Any]:
        return [ray.put(content)]


def is_lost(reference: Any) -> bool:
    try:
        ray.get(reference)
    except ray.exceptions.ObjectLostError:
        return True
    return False


@pytest.mark.asyncio(loop_scope="module")
async def test_new_weights_come_through_memory_or_from_the_checkpoint(
    students: StudentPool, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(said)
    held: list[str] = []

    async def noted(*arguments: Any) -> list[Any]:
        references = await in_memory(*arguments)
        held.extend(reference.hex() for reference in references)
        return references

    async def lost(*arguments: Any) -> list[Any]:
        keeper = ray.remote(Keeper).remote()
        kept = [await keeper.keep.remote(reference) for reference in await in_memory(*arguments)]
        ray.kill(keeper)
        for (reference,) in kept:
            await asyncio.to_thread(until, partial(is_lost, reference))
        return [reference for (reference,) in kept]

    async def refused(*arguments: Any) -> list[Any]:
        return await in_memory(ModelRef("none", folder="one"), *arguments[1:])

    async def loaded(model: ModelRef, way: Any) -> list[str]:
        monkeypatch.setattr(student_pool, "in_memory", way)
        await students.load(model, progress)
        return ray.get(await students.answer(ray.put(rows), 1))["text"].to_pylist()

    rows = shard(4)
    await students.load(TWO, progress)
    boots = students.boots
    through_memory = await loaded(ONE, noted)
    assert "student engine 0 serves one; canary: " in said.getvalue()
    assert said.getvalue().strip().endswith("; from memory")
    assert held
    worker = ray._private.worker.global_worker.core_worker
    await asyncio.to_thread(until, lambda: not set(held) & set(worker.get_all_reference_counts()))
    assert await loaded(TWO, lost) != through_memory
    assert "student engine 0 read the checkpoint, not its weights in memory: the student engine" in said.getvalue()
    assert await loaded(ONE, refused) == through_memory
    assert "one was not put into memory (" in said.getvalue()
    assert "/one: holds no .safetensors files); engines read the checkpoint" in said.getvalue()
    assert said.getvalue().count("from memory") == 1
    assert students.boots == boots


@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_engine_is_replaced_with_the_current_checkpoint(
    students: StudentPool, said: io.StringIO
) -> None:
    progress = Progress(said)
    rows = [shard(8), shard(4)]
    await students.load(BASE, progress)
    await students.load(ONE, progress)
    boots = students.boots
    (actor,) = students.running.values()
    undisturbed = [ray.get(await students.answer(ray.put(one), 1)) for one in rows]
    processes = await actor.processes.remote()
    asked = [asyncio.create_task(students.answer(ray.put(one), 1)) for one in rows]
    while not await actor.busy.remote():  # each look is a round trip to the actor
        pass
    for pid in processes:  # the engine's core and whatever else it runs; the actor itself lives
        os.kill(pid, signal.SIGKILL)
    answers = [ray.get(reference) for reference in await asyncio.gather(*asked)]
    assert [one.num_rows for one in answers] == [8, 4]
    assert all(status == "ok" for one in answers for status in one["status"].to_pylist())
    assert [one["text"].to_pylist() for one in answers] == [one["text"].to_pylist() for one in undisturbed]
    assert set(answers[0]["version"].to_pylist()) == {"one"}, "the current checkpoint, not the first"
    assert students.boots == boots + 1
    assert "died" in said.getvalue()
    wait_until_gone(processes)


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="module")
async def test_a_lying_checkpoint_is_booted_afresh_and_still_refused(students: StudentPool, said: io.StringIO) -> None:
    """Its weights are not the ones that its canary was made with."""
    progress = Progress(said)
    await students.load(BASE, progress)
    boots = students.boots
    processes = await students.running[0].processes.remote()
    assert processes
    with pytest.raises(EngineError, match="does not answer like the trained model"):
        await students.load(LYING, progress)
    assert students.boots == boots + 1
    assert "the canary disagrees" in said.getvalue()
    wait_until_gone(processes)


class Mends(io.StringIO):
    """A log that mends a file once an engine has failed on it."""

    def __init__(self, broken: Path, whole: Path) -> None:
        super().__init__()
        self._broken, self._whole = broken, whole

    def write(self, text: str) -> int:
        if "did not start" in text:
            shutil.copy(self._whole, self._broken)
        return super().write(text)


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="module")
async def test_an_engine_whose_processes_ended_at_their_start_is_started_again(
    students: StudentPool, store: RunStore
) -> None:
    """As after a port that was taken meanwhile; here vLLM cannot read its weights at first."""
    folder = Path(store.root)
    shutil.copytree(folder / "one", folder / "late")
    whole = folder / "one" / "model" / "model.safetensors"
    broken = folder / "late" / "model" / "model.safetensors"
    broken.write_bytes(whole.read_bytes()[:-1000])  # its header is whole: only the engine's core reads further
    await students.stop()
    boots = students.boots
    said = Mends(broken, whole)
    await students.load(ModelRef("late", folder="late/model"), Progress(said))
    assert students.boots == boots + 2
    assert "student engine 0 did not start" in said.getvalue()
    assert "student engine 0 serves late" in said.getvalue()
