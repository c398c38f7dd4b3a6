"""How the processes of a fit hold the student: each the whole of it, or each a share.

Invariants:
- The model that is measured has float32 weights and arithmetic; the one that is trained starts from the same weights.
- A whole model that does not fit on the GPU in float32 is measured layer by layer.
- Whole: the first process writes and measures alone, on the folder, read back. Sharded: all processes take part, and
  what is measured are the shards that were written.

This module does not know steps or optimizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lion_ray.core.records import derive_seed
from lion_ray.imitation.training import attention, sharded
from lion_ray.imitation.training.adapters import (
    adapters_of,
    check_base,
    gathered,
    initialise,
    load_in_4_bits,
    merged,
    round_frozen,
)
from lion_ray.imitation.training.model import World, add_adapters, load_model, shard
from lion_ray.imitation.training.output import copy_generation_config, write_model
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import compile_layers
from lion_ray.imitation.training.weights import Folder, Writer
from lion_ray.models.completeness import check_names
from lion_ray.models.resolve import count_parameters

MEASURED = 0.8
"""The largest share of a GPU's free memory for the model that is measured; the rest is for its activations."""


class Whole:
    """Every process holds the model."""

    def __init__(self, spec: TrainSpec, world: World, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._model: Any = None
        self._weights: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []
        self.writers = World()
        """The processes that call `save`: the first one."""
        self.writes = world.rank == 0

    def measured(self) -> Any:
        """The model as it comes, in float32."""
        self._model = self._load(self._spec.model_dir)
        return self._model

    def trained(self, kernel: str) -> Any:
        """The same, prepared for training with an attention kernel that was chosen on the measured model."""
        spec, half = self._spec, self._spec.precision == "bf16"
        for hook in self._hooks:
            hook.remove()
        if spec.lora is not None and spec.lora.base == "nf4":
            self._model = None
            self._model = load_in_4_bits(spec.model_dir, self._device, half=half)
            if kernel != attention.DENSE:
                attention.use(self._model, kernel)
        model = prepared(self._model, spec, self._device)
        if spec.lora is not None and spec.lora.base == "auto" and half:
            round_frozen(model)
        self._model = model.to(self._device)  # where it was streamed
        return model.train()

    def _load(self, folder: str | Path) -> Any:
        """The model in float32; where it does not fit on the GPU, layer by layer from main memory."""
        if fits(folder, self._device):
            return load_model(folder, self._device)
        model = load_model(folder, torch.device("cpu"))
        self._hooks = through(model, self._device)
        return model

    def gather(self) -> None:
        """Keep what `save` needs, and let go of the model. Collective."""
        self._weights = _whole(self._model, self._spec)
        self._model = None

    def save(self, folder: Path) -> Any:
        """Write the trained model into a folder, and return it in float32."""
        write_model(self._spec, self._weights, folder)
        self._weights.clear()
        return self._load(folder)


class Sharded:
    """Every process holds a share. All methods are collective."""

    def __init__(self, spec: TrainSpec, world: World, device: torch.device) -> None:
        self._spec, self._world, self._device = spec, world, device
        self._mesh = sharded.mesh_of(world, spec.replicas, device)
        self._model: Any = None
        self._files, self._names = _streamed(spec.model_dir)
        self.writers, self.writes = world, True

    def measured(self) -> Any:
        if self._files is None:
            self._model = load_model(self._spec.model_dir, self._device)
            shard(self._model, self._mesh)
            return self._model
        self._model = self._filled(self._names, self._files.rows)
        loaded = {"unexpected_keys": set(self._files.shapes) - set(self._names.values())}
        check_names(self._spec.model_dir, self._model, loaded)
        sharded.check_finite(self._model, self._spec.model_dir, self._world, self._device)
        return self._model

    def trained(self, kernel: str) -> Any:
        model = sharded.skeleton(self._spec.model_dir)
        if kernel != attention.DENSE:
            attention.use(model, kernel)
        model = prepared(model, self._spec, self._device)
        shard(model, self._mesh, half=self._spec.precision == "bf16" and self._device.type == "cuda")
        sharded.share(self._model, model)
        if self._spec.lora is not None and self._spec.precision == "bf16" and self._files is not None:
            round_frozen(model)
        self._model = model
        return model.train()

    def gather(self) -> None:
        pass  # done tensor by tensor in `save`

    def save(self, folder: Path) -> Any:
        if self._spec.lora is not None:
            return self._save_merged(folder)
        if self._files is None:
            self._write_gathered(folder)
        else:
            sharded.write(self._model, self._names, folder, self._world)
            self._write_settings(folder)
        model = sharded.skeleton(self._spec.model_dir)
        shard(model, self._mesh)
        sharded.share(self._model, model)
        self._model = None
        return model

    def _save_merged(self, folder: Path) -> Any:
        weights = gathered(self._model)
        adapters = adapters_of(self._model, weights)
        if self._files is None:
            self._write_gathered(folder)
            base = {sharded.plain(name): p.detach() for name, p in self._model.named_parameters()}
            base |= {sharded.plain(name): held for name, held in self._model.named_buffers()}
            rows = merged(lambda name, *_: _local(base[name]), adapters)
            names = {name: name for name in sharded.skeleton(self._spec.model_dir).state_dict() if name in base}
            return self._filled(names, rows)
        if self._world.rank == 0:
            self._model.save_pretrained(folder / "adapter", state_dict=weights, save_embedding_layers=False)
        self._model = None
        rows = merged(self._files.rows, {self._names[name]: one for name, one in adapters.items()})
        if self._world.rank == 0:
            # The frozen weights are in the files: nothing has to be gathered.
            with Writer(folder, {source: self._files.shapes[source] for source in self._names.values()}) as writer:
                for source in self._names.values():
                    writer.write(source, rows(source, 0, None))
        self._write_settings(folder)
        return self._filled(self._names, rows)

    def _filled(self, names: dict[str, str], rows: sharded.Rows) -> Any:
        model = sharded.skeleton(self._spec.model_dir)
        shard(model, self._mesh)
        sharded.fill(model, names, rows, self._device)
        return model

    def _write_gathered(self, folder: Path) -> None:
        weights = _whole(self._model, self._spec)
        if self._world.rank == 0:
            write_model(self._spec, weights, folder)

    def _write_settings(self, folder: Path) -> None:
        """Write what `save_pretrained` writes besides weights."""
        if self._world.rank:
            return
        model = sharded.skeleton(self._spec.model_dir)
        model.config.dtype, model.config.architectures = "float32", [type(model).__name__]
        model.config.save_pretrained(folder)
        if not copy_generation_config(self._spec, folder) and model.can_generate():
            model.generation_config.save_pretrained(folder)


def hold(spec: TrainSpec, world: World, device: torch.device) -> Whole | Sharded:
    """As `imitation.sharding` says. Collective."""
    check_base(spec.lora)
    kind = Sharded if world.size > 1 and spec.sharding == "full" else Whole
    return kind(spec, world, device)


def _streamed(model_dir: str) -> tuple[Folder | None, dict[str, str]]:
    """A folder whose files can be read shard by shard, and its names; (None, {}) if it is to be loaded whole."""
    try:
        folder = Folder(model_dir)
        names = sharded.names_in(folder, sharded.skeleton(model_dir))
    except (SafetensorError, OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError):
        return None, {}  # loading it whole says what is wrong
    return (folder, names) if names else (None, {})


def prepared(model: Any, spec: TrainSpec, device: torch.device) -> Any:
    """The model with adapters, recomputation and compiled layers, as the spec says."""
    if spec.lora is not None:
        model = add_adapters(model, spec.lora)
        initialise(model, derive_seed(spec.seed, "adapters"))
    if spec.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compile_layers(model, spec.compile, device)
    return model


def fits(folder: str | Path, device: torch.device) -> bool:
    """Whether a device holds a folder's model in float32."""
    if device.type != "cuda":
        return True
    return 4 * (count_parameters(Path(folder)) or 0) < MEASURED * torch.cuda.mem_get_info(device)[0]


def through(model: Any, device: torch.device) -> list[Any]:
    """Keep a model's layers in main memory; each goes to the device while it works. Returns the hooks."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    kept = {id(one) for layer in layers for one in (*layer.parameters(), *layer.buffers())}
    for one in (*model.parameters(), *model.buffers()):
        if id(one) not in kept:
            one.data = one.data.to(device)

    def fetch(layer: nn.Module, *_: Any) -> None:
        layer.to(device)

    def put_back(layer: nn.Module, *_: Any) -> None:
        layer.to("cpu")

    before = [layer.register_forward_pre_hook(fetch) for layer in layers]
    return before + [layer.register_forward_hook(put_back) for layer in layers]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, sharded.DTensor) else tensor


def _whole(model: nn.Module, spec: TrainSpec) -> dict[str, torch.Tensor]:
    """The trained weights, unsharded, on the first process's CPU. Collective."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=spec.lora is not None)
    return get_model_state_dict(model, options=options)  # type: ignore[return-value]
