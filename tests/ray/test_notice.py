"""A machine that is taken back with notice: its node gets SIGTERM.

What it means for a fit and for engines: `chaos` (NOTICES).
"""

from __future__ import annotations

import ray

from lion_ray.actors.base import BaseActor, Place, restartable
from tests.ray.harness import until
from tests.ray.machines import machines


def test_a_role_goes_elsewhere_and_what_it_was_asked_with_it() -> None:
    with machines(head_cpus=0) as cluster:
        leaving = cluster.add(cpus=1)
        role = restartable(BaseActor, at_once=2).options(num_cpus=1).remote()
        before: Place = ray.get(role.alive.remote())
        assert before.node == leaving.node_id
        staying = cluster.add(cpus=1)
        cluster.end(leaving)
        places: list[Place] = []

        def elsewhere() -> bool:
            # Asked all the while: no question is lost, whoever answers it.
            places.append(ray.get(role.alive.remote()))
            return places[-1].node == staying.node_id

        until(elsewhere)
        assert {place.node for place in places} <= {leaving.node_id, staying.node_id}
        assert not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == leaving.node_id)
