"""Where actors with GPUs land and what they reserve. The GPU is a number that Ray counts; nothing computes on it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lion_ray.actors.resources import for_roles, for_server, may_grow
from lion_ray.actors.student import StudentActor
from lion_ray.actors.teacher import ProxySettings, TeacherActor
from lion_ray.config import RunConfig, StudentConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.progress import Progress
from lion_ray.core.store import RunStore
from lion_ray.pipeline.placing import place
from tests.ray.harness import until
from tests.ray.machines import Machines


@pytest.fixture(scope="module")
def gpu_node(cluster: Machines) -> Iterator[Any]:
    """One more node, with the cluster's only GPU."""
    node = cluster.add(gpus=1)
    yield node
    cluster.lose(node)


def run_config(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "run_name": "r",
        "data": {"pool": "p.jsonl"},
        "endpoints": {"default": {"model": "m", "serve": {"model": "m", "num_gpus": 0.5}}},
        "student": {"model": "s", "use_gpu": True},
        "imitation": {"use_gpu": True},
        "nodes_timeout_s": 0,
    }
    return RunConfig.model_validate(values | changes)


async def test_what_no_node_can_hold_is_refused_and_nodes_that_come_are_waited_for(
    cluster: Machines, request: pytest.FixtureRequest
) -> None:
    until(lambda: may_grow() is False)  # the head tells some seconds after its start
    with pytest.raises(ConfigError, match=r"needs the server of endpoint default: 0.5 GPU; the cluster has .*ask for"):
        await place(run_config(), Progress(io.StringIO()), own_ray=False)
    progress = Progress(io.StringIO())
    patient = asyncio.create_task(place(run_config(nodes_timeout_s=600), progress, own_ray=False))
    while not progress.waits:  # noqa: ASYNC110 - it begins at its first turn
        await asyncio.sleep(0)
    request.getfixturevalue("gpu_node")
    found = await patient
    assert (dict(found.servers), found.engine, found.worker) == ({"default": 0.5}, 0.5, 0.5)


def test_a_server_and_an_engine_share_the_gpu_of_one_node(cluster: Machines, gpu_node: Any, tmp_path: Path) -> None:
    config = run_config()
    settings = ProxySettings(
        endpoint="default",
        name="proxy",
        run="r",
        config=config.endpoints["default"],
        teacher=config.teacher,
        journal=str(tmp_path / "journal"),
        base_dir=tmp_path,
        seed=0,
        ledger="none",
    )
    proxy = TeacherActor.options(**for_server(0.5)).remote(settings)
    plain = TeacherActor.options(**for_roles()).remote(settings)
    student = StudentConfig(model="s")
    engine = StudentActor.options(num_gpus=0.5).remote(student, RunStore(str(tmp_path)), tmp_path, 0, 0.5)
    try:
        nodes = [place.node for place in ray.get([one.alive.remote() for one in (proxy, engine)])]
        assert nodes == [gpu_node.node_id] * 2
        assert ray.get(plain.alive.remote()).node != gpu_node.node_id, "a role without a GPU keeps away from it"
        until(lambda: cluster.free("GPU") == 0)
    finally:
        for actor in (proxy, plain, engine):
            ray.kill(actor)
    until(lambda: cluster.free("GPU") == 1)
