"""A machine that is taken back with notice: by a signal to its node, or by an announcement of when it will be gone.

What it means for a fit and for engines: `chaos` (NOTICES).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from lion_ray.actors.base import BaseActor, Place, restartable
from tests.ray.harness import until
from tests.ray.machines import Machines, machines


def in_three_seconds(cluster: Machines, node: Any) -> None:
    cluster.drain(node, 3.0)


@pytest.mark.parametrize("notice", [Machines.end, in_three_seconds], ids=["SIGTERM", "announced"])
def test_a_role_goes_elsewhere_and_what_it_was_asked_with_it(notice: Callable[[Machines, Any], None]) -> None:
    with machines(head_cpus=0) as cluster:
        leaving = cluster.add(cpus=1)
        role = restartable(BaseActor, at_once=2).options(num_cpus=1).remote()
        before: Place = ray.get(role.alive.remote())
        assert before.node == leaving.node_id
        staying = cluster.add(cpus=1)
        notice(cluster, leaving)
        places: list[Place] = []

        def elsewhere() -> bool:
            # Asked all the while: no question is lost, whoever answers it.
            places.append(ray.get(role.alive.remote()))
            return places[-1].node == staying.node_id

        until(elsewhere)
        assert {place.node for place in places} <= {leaving.node_id, staying.node_id}
        assert not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == leaving.node_id)
