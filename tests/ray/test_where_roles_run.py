"""Role actors run where the endpoints' keys are: on a cluster like `cluster/kuberay`, and on one without a rule."""

from __future__ import annotations

import pytest
import ray

from lion_ray.actors.base import BaseActor, Place, restartable
from lion_ray.actors.resources import for_roles
from tests.ray.machines import machines

STARTS = 20


def places() -> set[str]:
    """The nodes of so many role actors, started as a run starts its own."""
    actors = [restartable(BaseActor, at_once=2).options(**for_roles()).remote() for _ in range(STARTS)]
    found: list[Place] = ray.get([actor.alive.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    return {place.node for place in found}


@pytest.mark.long
def test_roles_run_on_their_nodes_and_nowhere_else() -> None:
    with machines(head_cpus=0) as cluster:
        driver = ray.get_runtime_context().get_node_id()
        gpu = cluster.add(cpus=4, gpus=1)
        assert places() == {driver}, "where no node is theirs: beside the driver, which has found the keys"
        roles = cluster.add(cpus=4)
        assert places() == {roles.node_id}, "not on the head, which has no keys, nor on a node with GPUs"
        assert gpu.node_id != roles.node_id
