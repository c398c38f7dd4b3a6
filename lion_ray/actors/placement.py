"""How a run's models share the cluster's GPUs, and whether a cluster can ever hold them.

Invariants:
- A cluster is refused only if no order of placing can succeed: what others hold now may become free.
- With one GPU in the cluster, the servers with `num_gpus: auto` and the student get equal parts of what is left of it.

Pure functions: this module does not know Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lion_ray.config import RunConfig, endpoints_in_use
from lion_ray.config.section import AUTO
from lion_ray.inference import server_gpus, wants_gpu

_SLACK = 1e-6
"""Sums of parts such as 0.33 are not exact."""


@dataclass(frozen=True)
class Shares:
    """The GPUs that each part of a run reserves."""

    servers: Mapping[str, float]
    """For each proxy of an endpoint that the run serves itself, by endpoint."""
    engine: float = 0.0
    """For each student engine."""
    worker: float = 0.0
    """For each training worker."""


@dataclass(frozen=True)
class Demand:
    """`count` actors, each of which needs these resources on one node."""

    name: str
    count: int
    resources: Mapping[str, float]

    def sentence(self) -> str:
        return f"{self.name}: {f'{self.count} × ' if self.count > 1 else ''}{in_words(self.resources)}"


@dataclass(frozen=True)
class Node:
    """A node of the cluster with all its resources, free or not."""

    name: str
    resources: Mapping[str, float]


def hands_over(config: RunConfig) -> bool:
    """Whether engines must give their GPUs to training."""
    return config.placement == "handoff" and wants_gpu(config.imitation.use_gpu)


def shares(config: RunConfig, gpus: float, *, may_grow: bool) -> Shares:
    """The reservations of a run in a cluster with `gpus` GPUs; `may_grow`: it can get more."""
    used = {name: config.endpoints[name] for name in endpoints_in_use(config)}
    served = {name: one.serve for name, one in used.items() if one.serve is not None}
    counts = {name: used[name].proxies for name in served}
    wanted = {name: server_gpus(serve) for name, serve in served.items()}
    open_ends = [name for name, serve in served.items() if serve.num_gpus == AUTO and wanted[name]]
    engine = float(config.student.tensor_parallel_size) if wants_gpu(config.student.use_gpu) else 0.0
    worker = 1.0 if wants_gpu(config.imitation.use_gpu) else 0.0
    whole = Shares(wanted, engine, worker)
    if may_grow or not any(wanted.values()):
        return whole
    fixed = sum(wanted[name] * counts[name] for name in served if name not in open_ends)
    servers = sum(counts[name] for name in open_ends)
    engines = engine * max(1, config.student.min_engines)
    workers = worker * config.imitation.workers
    student = max(engines, workers) if hands_over(config) else engines + workers
    left = gpus - fixed - student
    if left >= servers:
        return whole
    if servers and left >= 1:
        part = 1 / math.ceil(servers / math.floor(left))
        return Shares(wanted | dict.fromkeys(open_ends, part), engine, worker)
    if gpus == 1 and fixed < 1 and student <= 1:
        part = _rounded_down((1 - fixed) / (servers + math.ceil(student)))
        return Shares(wanted | dict.fromkeys(open_ends, part), min(engine, part), min(worker, part))
    return whole


def at_once(config: RunConfig, found: Shares) -> list[list[Demand]]:
    """The sets of actors that hold their resources at the same time, in the course of a run."""
    servers = [
        Demand(f"the server of endpoint {name}", config.endpoints[name].proxies, {"GPU": gpus})
        for name, gpus in found.servers.items()
        if gpus
    ]
    student, imitation = config.student, config.imitation
    engines = Demand("student engines", max(1, student.min_engines), _bundle(student.num_cpus, found.engine))
    workers = Demand("training workers", imitation.workers, _bundle(imitation.num_cpus, found.worker))
    if hands_over(config) or not student.min_engines:
        return [[*servers, engines], [*servers, workers]]
    return [[*servers, engines, workers]]


def never_fits(sets: Sequence[Sequence[Demand]], nodes: Sequence[Node]) -> str:
    """Why the nodes can never hold one of the sets, in one line; "" if they may."""
    for demands in sets:
        for one in demands:
            if sum(_times(one.resources, node.resources) for node in nodes) < one.count:
                return f"the run needs {one.sentence()}; {_has(nodes)}"
        for name in ("GPU", "CPU"):
            wanted = sum(one.count * one.resources.get(name, 0.0) for one in demands)
            if wanted > sum(node.resources.get(name, 0.0) for node in nodes) + _SLACK:
                each = "; ".join(one.sentence() for one in demands if one.resources.get(name))
                return f"the run needs {wanted:g} {name} at once ({each}); {_has(nodes)}"
    return ""


def in_words(resources: Mapping[str, float]) -> str:
    """Such as ``1 CPU and 0.5 GPU``."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"


def _has(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "the cluster has no nodes"
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        resources = {name: node.resources.get(name, 0.0) for name in ("CPU", "GPU")}
        kinds.setdefault(in_words(resources), []).append(node.name)
    each = "; ".join(f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}: {has}" for has, names in kinds.items())
    return f"the cluster has {len(nodes)} node{'s' if len(nodes) > 1 else ''} ({each})"


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def _times(wanted: Mapping[str, float], there: Mapping[str, float]) -> float:
    """How many such bundles a node can hold."""
    return min(
        (math.floor(there.get(name, 0.0) / amount + _SLACK) for name, amount in wanted.items()), default=math.inf
    )


def _rounded_down(part: float) -> float:
    return math.floor(part * 100 + _SLACK) / 100
