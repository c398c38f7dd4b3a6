"""Before anything is spent: can the cluster hold what the run places, and which GPUs does each part get?

Invariant: what a fixed cluster can never hold ends the run in one line; nodes that an autoscaler may bring are waited
for by whoever needs them.
"""

from __future__ import annotations

import asyncio
import time

from lion_ray.actors.placement import Shares, at_once, hands_over, never_fits, shares
from lion_ray.actors.resources import may_grow, nodes
from lion_ray.config import RunConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.progress import Progress

LOOK_S = 1.0


async def place(config: RunConfig, progress: Progress, *, own_ray: bool) -> Shares:
    """The GPUs that each part of the run reserves. Waits until a cluster that was started by hand has the nodes.

    `own_ray`: the run has started Ray on this machine, to which no node will come.

    Raises:
        ConfigError: the cluster can never hold the run.
    """
    why = ""

    async def found() -> Shares:
        nonlocal why
        until = time.monotonic() + (0.0 if own_ray else config.nodes_timeout_s)
        while True:
            grows = False if own_ray else may_grow()
            there = nodes()
            gpus = sum(node.resources.get("GPU", 0.0) for node in there)
            result = shares(config, gpus, may_grow=bool(grows))
            why = never_fits(at_once(config, result), there)
            late = time.monotonic() >= until
            if not why or grows or (late and grows is None):
                return result
            if late:
                raise ConfigError(f"{why}; {_advice(config)}")
            await asyncio.sleep(LOOK_S)

    result = await progress.waiting(found(), lambda: f"waiting for nodes: {why}")
    if parts := _parts(result):
        progress.say(parts)
    return result


def _parts(found: Shares) -> str:
    """One line if models share a GPU."""
    named = {f"the server of endpoint {name}": gpus for name, gpus in found.servers.items()}
    named |= {"a student engine": found.engine, "a training worker": found.worker}
    small = [f"{name} {gpus:g}" for name, gpus in named.items() if 0 < gpus < 1]
    return f"parts of a GPU: {', '.join(small)}" if small else ""


def _advice(config: RunConfig) -> str:
    handoff = "" if hands_over(config) else "set placement=handoff, "
    return (
        f"{handoff}ask for less (endpoints.NAME.serve.num_gpus, num_cpus, student.min_engines or tensor_parallel_size, "
        "imitation.workers), or run where there is more"
    )
