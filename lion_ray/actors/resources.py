"""Cluster resources: what is free, what a run waits for, and where its actors are placed."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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


def beside_the_driver() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the driver's node: if that node is lost, the run ends anyway."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
