"""Cluster resources: what is free, what a run waits for, and where its actors are placed.

Invariant: no role actor is started without the options of `for_roles`, or of `for_server` if it owns a server on GPUs.
A role actor reserves no CPU, so Ray would place it on any node: on a head that has no keys and should run nothing, or
on a GPU node, which the autoscaler then cannot remove.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler._private.util import format_readonly_node_type
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lion_ray.actors.placement import Node


def scarce(wanted: Mapping[str, float]) -> str:
    """The wanted resources with their availability, such as ``1 GPU (0 free of 0 in the cluster)``."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(
        f"{count:g} {name} ({free.get(name, 0):g} free of {total.get(name, 0):g} in the cluster)"
        for name, count in wanted.items()
        if count
    )


def group_waits(bundle: Mapping[str, float], count: int) -> bool:
    """Whether a placement group of `count` such bundles is still pending."""
    wanted = {name: amount for name, amount in bundle.items() if amount}
    return any(
        group["state"] == "PENDING" and list(group["bundles"].values()) == [wanted] * count
        for group in ray.util.placement_group_table().values()
    )


def nodes() -> list[Node]:
    """The living nodes."""
    return [Node(one["NodeManagerAddress"], one["Resources"]) for one in ray.nodes() if one["Alive"]]


def may_grow() -> bool | None:
    """Whether an autoscaler can add nodes to the cluster; None if that is not known yet."""
    if is_autoscaler_v2():
        return True
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if status is None:
        return None  # its monitor writes some seconds after the head's start
    return has_types(json.loads(status))


def has_types(status: Mapping[str, Any]) -> bool | None:
    """Whether the monitor of a cluster knows types of nodes; else it makes one up of each node's id.

    None for its first status, which has no report yet.
    """
    if (report := status.get("autoscaler_report")) is None:
        return None
    types = (report["node_type_mapping"] or {}).values()
    return not all(re.fullmatch(f"{format_readonly_node_type('')}[0-9a-f]+", kind) for kind in types)


ROLES = "lion_ray_roles"
"""A resource of nodes: where a cluster has it, role actors run on the nodes that do, and nowhere else. `cluster/` gives
it to the machines that hold the endpoints' keys."""


def for_roles() -> dict[str, Any]:
    """Options of a role actor: spread over the nodes with `ROLES`; where the cluster has none, on the driver's node.

    That node has the keys, as the driver has looked for them there, and if it is lost the run ends anyway.
    """
    if ray.cluster_resources().get(ROLES):
        return {"resources": {ROLES: 0.001}, "scheduling_strategy": "SPREAD"}
    return {"scheduling_strategy": beside_the_driver()}


def for_server(gpus: float) -> dict[str, Any]:
    """Options of a proxy that owns a model server: on a node with these GPUs, which it reserves.

    Such a node may lack the endpoints' keys; an endpoint that the run serves itself needs none.
    """
    return {"num_gpus": gpus}


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the driver's node: if that node is lost, the run ends anyway."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
