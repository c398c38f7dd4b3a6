"""Models that no process holds whole: made without weights, and filled shard by shard from the files.

Invariants:
- A process reads and keeps its own rows only; of the others' weights it sees those of the layer at work.
- Measuring and training use two modules over the same shards: measurements are in float32 arithmetic, training in that
  of `imitation.precision`. `share` hands the shards on without a copy.
- A model whose files hold other tensors than its modules (experts that are stored one by one) is loaded whole by every
  process and then sharded, and is gathered on the first one to be written.

This module does not know steps or optimizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lion_ray.core.errors import ModelError
from lion_ray.imitation.training.model import World
from lion_ray.imitation.training.weights import Folder, Writer

Rows = Callable[[str, int, int | None], torch.Tensor]
"""Rows of a weight in float32: its name, the first row, and the one after the last (None: all)."""


def mesh_of(world: World, replicas: int, device: torch.device) -> DeviceMesh:
    """The processes in `replicas` groups, each of which holds the model once. Collective."""
    if replicas == 1:
        return init_device_mesh(device.type, (world.size,))
    return init_device_mesh(device.type, (replicas, world.size // replicas), mesh_dim_names=("replica", "shard"))


def skeleton(model_dir: str | Path) -> Any:
    """The model of a folder's config.json without weights (on the meta device); its buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    model.tie_weights()
    if (file := Path(model_dir) / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return model.eval()


def names_in(folder: Folder, model: nn.Module) -> dict[str, str] | None:
    """For each weight (tied ones once) and persistent buffer, its name in the files. None if the files differ."""
    state = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}
    for name, tensor in state.items():
        aliases.setdefault(id(tensor), []).append(name)
    found = {}
    for names in aliases.values():
        there = [name for name in names if folder.shapes.get(name) == tuple(state[name].shape)]
        if not there:
            return None
        found[names[0]] = there[0]
    return found


def fill(model: nn.Module, names: Mapping[str, str], rows: Rows, device: torch.device) -> None:
    """Give a sharded model without weights its shards of the weights `names`, read with `rows`."""
    state = model.state_dict(keep_vars=True)
    filled: dict[int, nn.Parameter] = {}
    for name, source in names.items():
        old = state[name]
        if isinstance(old, DTensor):
            local = rows(source, *own_rows(old)).to(device)
            new = DTensor.from_local(
                local, old.device_mesh, old.placements, run_check=False, shape=old.shape, stride=old.stride()
            )
            filled[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            old.data.copy_(rows(source, 0, None))  # a buffer
    _assign(model, filled)


def share(source: nn.Module, target: nn.Module) -> None:
    """Give a model, with or without adapters, the weights of another that is sharded alike: the same tensors."""
    for module in source.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # of the last forward pass, the outermost one's weights are still whole
    there = {plain(name): one for name, one in source.named_parameters()}
    held = {plain(name): one for name, one in source.named_buffers()}
    filled = {}
    for name, old in target.named_parameters():
        if plain(name) in there:
            filled[id(old)] = nn.Parameter(there[plain(name)].detach(), requires_grad=old.requires_grad)
    _assign(target, filled)
    for name, buffer in target.named_buffers():
        if plain(name) in held:
            buffer.data = held[plain(name)].data


def plain(name: str) -> str:
    """A weight's name in the model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _assign(model: nn.Module, filled: Mapping[int, nn.Parameter]) -> None:
    # Tied weights are one object, and stay one.
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in filled:
                module._parameters[name] = filled[id(parameter)]


def own_rows(tensor: DTensor) -> tuple[int, int]:
    """The rows of a sharded tensor that this process holds."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]


def write(model: nn.Module, names: Mapping[str, str], folder: Path, world: World) -> None:
    """Write a sharded model's weights, piece by piece, by the first process. Collective.

    Raises OSError on every process if the first one cannot write.
    """
    state = model.state_dict(keep_vars=True)
    shapes = {source: state[name].shape for name, source in names.items()}
    arriving = ((source, piece) for name, source in names.items() for piece in _pieces(state[name]))
    problem: OSError | None = None
    try:
        if world.rank == 0:
            with Writer(folder, shapes) as writer:
                for source, piece in arriving:
                    writer.write(source, piece)
    except OSError as error:
        problem = error
    for _ in arriving:
        pass  # send; after an error, receive what the others send
    problem = world.from_first(problem)
    if problem is not None:
        raise problem


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of a sharded tensor, process by process, on the first one; nothing on the others. Collective."""
    if not isinstance(tensor, DTensor):
        yield tensor
        return
    mesh = tensor.device_mesh.mesh
    owners = (mesh if mesh.ndim == 1 else mesh[0]).tolist()
    length = -(-tensor.shape[0] // len(owners))
    local = tensor.to_local().detach().contiguous()
    for place, owner in enumerate(owners):
        size = max(0, min(length, tensor.shape[0] - place * length))
        if size and owner == dist.get_rank():
            if owner == 0:
                yield local
            else:
                dist.send(local, 0)
        elif size and dist.get_rank() == 0:
            piece = torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device=local.device)
            dist.recv(piece, owner)
            yield piece


def check_finite(model: nn.Module, model_dir: str | Path, world: World, device: torch.device) -> None:
    """Raise ModelError on every process if a weight is NaN or infinite. Collective."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    bad = torch.stack([(~torch.isfinite(one)).any().to(device, torch.int32) for one in local])
    for (name, _), count in zip(model.named_parameters(), world.sum(bad).tolist(), strict=True):
        if count:
            raise ModelError(f"{model_dir}: {name} contains NaN or infinite values; download the model again")
