"""A backend of vLLM's weight transfer whose weights arrive in memory that another process of this machine fills.

Invariants:
- Each update is one chunk in the safetensors format (`models.weight_chunks`). It is loaded as from a checkpoint's file,
  so the served bits are the same.
- An update is complete or an error: a parameter of the model that no chunk named fails it.

Why not vLLM's own backends: CUDA IPC needs a trainer that lives while engines load, on the engines' own GPUs; NCCL
needs one in a process group with all of them. Here the trainer's processes end with the fit, its GPUs are others than
the engines' (`dedicated`), or the engines are off meanwhile (`handoff`), and the checkpoint is written and committed
first anyway, so that a killed run resumes. This backend runs the same code on CPUs, where it is tested, and on GPUs,
where it has not been run yet.

Imports vLLM: only for its workers (`plugin` registers it by name).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from lion_ray.inference.worker import tied_heads, update_tied_heads


@dataclass
class Chunk(WeightTransferUpdateInfo):
    path: str
    """A path under which this process can open the chunk."""


class MemoryWeights(WeightTransferEngine[WeightTransferInitInfo, Chunk]):
    """Loads chunks into a worker's model."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = Chunk
    _begun = False

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing: there is no connection to make."""

    def start_weight_update(self) -> None:
        """Raises ValueError for a quantized model, whose parameters are not those of a checkpoint."""
        if self.model_config.quantization is not None:
            raise ValueError(f"a model quantized with {self.model_config.quantization} is not refreshed from memory")
        tied = {id(head.weight) for head, _ in tied_heads(self.model, self.model_config)}
        self._missing = {name for name, weight in self.model.named_parameters() if id(weight) not in tied}
        initialize_layerwise_reload(self.model)
        self._begun = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # vLLM's own method cannot synchronize a CPU
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Chunk) -> None:
        model: Any = self.model
        with disable_mtp_completeness_check(), safe_open(update_info.path, framework="pt") as file:
            # The tensors are views of the mapped chunk, which stays mapped until a layer is complete.
            weights = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 - not a mapping
        self._missing -= model.load_weights(weights) or set()

    def finish_weight_update(self) -> None:
        """Raises ValueError if parameters are missing."""
        self.abandon()
        update_tied_heads(self.model, self.model_config)
        if self._missing:
            raise ValueError(f"{len(self._missing)} parameters did not come, such as {min(self._missing)}")

    def abandon(self) -> None:
        """End an update that began, as far as it came: layers that are half loaded hold garbage until loaded again."""
        if self._begun:
            self._begun = False
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing: each chunk is released once it is loaded."""
