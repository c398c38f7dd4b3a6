"""What runs get of a cluster whose nodes come and go, and GPUs between stages: here numbers that Ray counts."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from lion_ray.actors.student_pool import StudentPool
from lion_ray.config import StudentConfig
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from tests.ray.harness import LATENCY, LOOK_S, Job, kill, write_pool
from tests.ray.machines import Machines, machines
from tests.ray.test_student_pool import BASE, CONFIG, shard
from tests.stub_api import stub_process
from tests.tiny import make_tiny_model


async def until(condition: Callable[[], object], *, beside: asyncio.Task[Any] | None = None) -> None:
    """Return once `condition` holds, which must come before `beside` ends."""
    while not condition():
        assert beside is None or not beside.done(), f"ended too soon: {beside.exception()}"
        await asyncio.sleep(LOOK_S)


@pytest.mark.long
async def test_engines_come_with_work_and_nodes_and_go_without(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base", initializer_range=0.5)
    said = io.StringIO()
    config = StudentConfig.model_validate(
        CONFIG.model_dump()
        | {
            "use_gpu": True,
            "min_engines": 0,
            "max_engines": 2,
            "max_num_seqs": 2,
            "max_tokens": 60,
            "idle_timeout_s": 1,
        }
    )
    rows = [shard(2, f"And number {n}.") for n in range(40)]
    with machines() as cluster:
        store = RunStore(str(tmp_path))
        students = StudentPool(config, run_name="job-1", store=store, base_dir=tmp_path, seed=0, shard_rows=3)
        try:
            progress = Progress(said)
            loading = asyncio.create_task(students.load(BASE, progress))
            await until(lambda: progress.waits, beside=loading)  # pending, with nowhere to go
            first = cluster.add(gpus=1)
            await loading
            assert students.boots == 1
            assert cluster.free("GPU") == 0

            asked = [asyncio.create_task(students.answer(ray.put(one), 1)) for one in rows]
            await until(lambda: students.boots == 2, beside=asked[-1])
            assert len(students.running) == 1, "the second engine waits for a GPU while the first answers"
            second = cluster.add(gpus=1)
            await until(lambda: len(students.running) == 2, beside=asked[-1])
            by_node = {cluster.node_of(one) for one in cluster.actors("StudentEngine")}
            assert by_node == {first.node_id, second.node_id}
            cluster.lose(first)
            answers = [ray.get(reference) for reference in await asyncio.gather(*asked)]
            assert [one["id"].to_pylist() for one in answers] == [one["id"].to_pylist() for one in rows]
            assert "student engine 0 died" in said.getvalue()

            # Nothing to do: the engines go, and with them what keeps an autoscaler from taking the node away.
            await until(lambda: not students.running and cluster.free("GPU") == 1)
            again = ray.get(await students.answer(ray.put(rows[0]), 1))
            assert again.equals(answers[0]), "booted once more, with the checkpoint of before"
            await students.rest(0)
            await until(lambda: cluster.free("GPU") == 1)
        finally:
            await students.stop()


@pytest.mark.long
def test_a_gpu_goes_from_hand_to_hand(tmp_path: Path) -> None:
    """Handoff, beginning without a GPU, and with the GPU's machine lost in the middle of each of its uses."""
    # The generator takes its time, so that one sees what becomes of the GPU meanwhile.
    late = [{"fault": "late", "late_s": 20, "times": 1, "contains": "You invent tasks"}]
    with machines() as cluster, stub_process(*LATENCY, "--rules", json.dumps(late)) as base_url:
        # Answers that take a while, so that the engine is at them when its machine goes.
        student = {"use_gpu": True, "max_tokens": 100, "max_num_seqs": 2}
        changes = {"placement": "handoff", "student": student, "imitation": {"use_gpu": True}}
        job = Job(tmp_path, base_url, changes, environment=cluster.environment)
        process = job.start()
        try:
            seen = watch(job, cluster, process)
        finally:
            kill(process)
    assert process.returncode == 0, job.words()
    words = job.log.read_text()
    assert seen.together == [], "engines and training never hold GPUs at the same time"
    assert seen.free_while_generating
    assert "waiting for nodes: the run needs student engines: 1 CPU and 1 GPU; the cluster has 1 node" in words
    assert "1 student engine ended: nothing to answer for now" in words
    assert words.index("nothing to answer for now") < words.index("iteration 1: fine-tuning")
    for version in ("base", "iteration-1", "iteration-2"):
        assert f"student engine 0 serves {version}" in words
    assert "student engine 0 died" in words, "lost while it answered"
    assert seen.lost == ["answering", "training"]


@pytest.mark.long
def test_a_server_an_engine_and_training_share_the_only_gpu(tmp_path: Path) -> None:
    """As the demo on a machine with one GPU; the GPU is a number, so vLLM and torch compute on the CPU."""
    make_tiny_model(tmp_path / "job" / "student", initializer_range=0.5)
    write_pool(tmp_path / "job" / "pool.jsonl", 8)
    write_pool(tmp_path / "job" / "heldout.jsonl", 2, start=100)
    serve = {"model": "student", "dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "kv_cache_gib": 0.1}
    with machines() as cluster, stub_process(*LATENCY) as base_url:
        node = cluster.add(gpus=1)
        local = {"model": "tiny", "api_key_env": None, "serve": {**serve, "num_gpus": 0.5, "enforce_eager": True}}
        changes = {
            "iterations": 0,
            "endpoints": {"local": local},
            "teacher": {"endpoint": "local"},
            "student": {"use_gpu": True},
            "imitation": {"use_gpu": True, "epochs": 1},
            "placement": "handoff",
        }
        job = Job(
            tmp_path / "job",
            base_url,
            changes | {"discrimination": {"judge_heldout": "never"}},
            environment=cluster.environment,
        )
        process = job.start()
        on_gpu: dict[str, set[str]] = {}
        try:
            while process.poll() is None:
                for one in cluster.actors("TeacherProxy", "StudentEngine", "RayTrainWorker"):
                    on_gpu.setdefault(one["ActorClassName"], set()).add(cluster.node_of(one))
                time.sleep(LOOK_S)
        finally:
            kill(process)
    assert process.returncode == 0, job.words()
    shared = "parts of a GPU: the server of endpoint local 0.5, a student engine 0.5, a training worker 0.5"
    assert shared in job.log.read_text()
    assert on_gpu["StudentEngine"] == on_gpu["RayTrainWorker"] == {node.node_id}
    assert node.node_id in on_gpu["TeacherProxy"], "the proxy with the server; the other has an API to call"


class Seen:
    """What a run did with the cluster's GPU."""

    def __init__(self) -> None:
        self.together: list[str] = []
        self.free_while_generating = False
        self.lost: list[str] = []


def watch(job: Job, cluster: Machines, process: subprocess.Popen[bytes]) -> Seen:
    """Follow a run to its end, giving it a GPU when it waits for one and taking it away twice."""
    seen, node = Seen(), None
    store = job.store

    def losing(when: str) -> None:
        nonlocal node
        cluster.lose(node)
        seen.lost.append(when)
        node = cluster.add(gpus=1)

    while process.poll() is None:
        words = job.log.read_text()
        if node is None and "waiting for nodes" in words:
            node = cluster.add(gpus=1)
        holders = {one["ActorClassName"] for one in cluster.actors("StudentEngine", "RayTrainWorker")}
        if len(holders) > 1:
            seen.together.append(words[-500:])
        if "iteration 1: generating" in words and "iteration 1: generating: done" not in words:
            seen.free_while_generating |= cluster.free("GPU") == 1
        if not seen.lost and "serves iteration-1" in words:
            losing("answering")
        if seen.lost == ["answering"] and (store.read_json("iteration-2/checkpoint/progress.json") or {}).get("step"):
            losing("training")
        time.sleep(LOOK_S)
    return seen
