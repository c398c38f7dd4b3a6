"""A cluster of several nodes on this machine, whose nodes come and go as a test wants.

Each node has folders and ports of its own, as on a machine of its own: in shared ones, one node's agent deletes what
another still uses. A node that is lost is killed with all that runs on it, as when its machine goes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import ray
from ray._private import state as cluster_state
from ray.cluster_utils import Cluster

from lion_ray.actors.resources import ROLES
from lion_ray.core.process_guard import descendants
from lion_ray.inference.ports import free_port
from tests.ray.harness import wait_until_gone


class Machines:
    """The cluster: a head for the driver and the roles, without GPUs, and nodes beside it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._made = 0
        self._nodes: dict[str, Any] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For a driver that is to run on the cluster."""
        return {"RAY_ADDRESS": self._cluster.address}

    def add(self, *, cpus: int = 4, gpus: int = 0, short_of_memory: bool = False) -> Any:
        """A node more; returns it once the cluster knows it. Role actors may run on one without GPUs.

        `short_of_memory`: the node's own monitor finds that its machine is, and ends whatever runs on that node.
        """
        self._made += 1
        monitor = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in monitor.items() if short_of_memory else ():
                patch.setenv(name, value)
            node = self._cluster.add_node(
                num_cpus=cpus,
                num_gpus=gpus,
                resources={} if gpus else {ROLES: 1},
                runtime_env_dir_name=f"runtime_resources_{self._made}",
                **ports(),
            )
        self._nodes[node.node_id] = node
        return node

    def node(self, name: str) -> Any:
        """A living node that was added, by the cluster's name for it; for the head, which has the driver, any other."""
        return self._nodes.get(name) or next(iter(self._nodes.values()))

    def lose(self, node: Any) -> None:
        """Kill a node and everything on it, without a word to anybody."""
        raylet = node.all_processes["raylet"][0].process.pid
        there = [raylet, *descendants(raylet)]
        for pid in there:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.pop(node.node_id)
        wait_until_gone(there)

    def end(self, node: Any) -> None:
        """Let a node go as a spot machine that is taken back: its raylet gets SIGTERM, and says so before it ends."""
        raylet = node.all_processes["raylet"][0].process.pid
        there = [raylet, *descendants(raylet)]
        os.kill(raylet, signal.SIGTERM)
        wait_until_gone([raylet])
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.pop(node.node_id)
        wait_until_gone(there)

    def actors(self, *names: str) -> list[dict[str, Any]]:
        """The living actors whose class is one of these, from the cluster's own table."""
        return [
            actor
            for actor in cluster_state.actors().values()
            if actor["State"] == "ALIVE" and actor["ActorClassName"] in names
        ]

    def node_of(self, actor: dict[str, Any]) -> str:
        return str(actor["Address"]["NodeID"])

    def free(self, resource: str) -> float:
        return float(ray.available_resources().get(resource, 0))


def ports() -> dict[str, int]:
    """Ports for a node's agents. Without them Ray waits 15 s for each to have found one itself, and then gives up."""
    agents = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    return {agent: free_port() for agent in agents}


@contextmanager
def started(*, head_cpus: int = 4) -> Iterator[Cluster]:
    """A cluster with a head alone, which nobody has joined."""
    head = {"num_cpus": head_cpus, "num_gpus": 0, "include_dashboard": False, **ports()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def joined(cluster: Cluster) -> Iterator[Machines]:
    """This process has joined the cluster; a process can be in one at a time."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="tests")
    try:
        yield Machines(cluster)
    finally:
        ray.shutdown()


@contextmanager
def machines(*, head_cpus: int = 4) -> Iterator[Machines]:
    """A cluster of one's own, with a head alone; this process has joined it, to ask what it knows."""
    with started(head_cpus=head_cpus) as cluster, joined(cluster) as found:
        yield found
