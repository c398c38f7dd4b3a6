"""Quantizes a model's weights to 8-bit integers, for serving it on a CPU.

Alone: ``python -m lion_ray.models.quantize IN OUT``.

Invariants:
- Every linear layer of the decoder has one scale per output channel (symmetric, round to nearest); activations are
  quantized per token while serving. Embeddings, norms and the output head are not quantized.
- On a CPU that accumulates 8-bit products in 16 bits the integers stay within ±63, so that no sum overflows.
- The folder is written once per model, to a temporary folder that is flushed and renamed, in the user's cache folder.
- Weights are data: safetensors in, safetensors out.

A CPU without 16-bit floating-point arithmetic multiplies 8-bit integers several times faster than float32, and the
weights take a quarter of the memory. The format is compressed-tensors' ``int-quantized`` (W8A8), which vLLM reads.
Source of the scheme: the vector-wise quantization of LLM.int8() (arXiv 2208.07339), without its outlier decomposition.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lion_ray.config import ServeConfig
from lion_ray.core.durable import whole_folder
from lion_ray.core.errors import ModelError
from lion_ray.models.completeness import check_weights
from lion_ray.models.machine import multiplies_int8
from lion_ray.models.resolve import cache_folder, resolve_model

if TYPE_CHECKING:
    import torch

LINEAR = "_proj.weight"
"""The suffix of the names of a decoder's linear layers, in the architectures of transformers."""
SHARD_BYTES = 2**30
"""Approximate size of one output file, which is held in memory."""
_VERSION = 1
"""Part of the folder's name; increase it if the result changes."""


def served_folder(config: ServeConfig, base_dir: Path | None, progress: Callable[[str], None]) -> Path:
    """The folder of the model that a server loads: fetched, and quantized if configured.

    Raises:
        ModelError: the model cannot be fetched or quantized.
    """
    folder = resolve_model(config.model, base_dir=base_dir, progress=progress)
    return quantized(folder, progress) if config.quantization == "int8" else folder


def quantized(folder: Path, progress: Callable[[str], None]) -> Path:
    """The model in `folder` with 8-bit weights, from the cache or quantized now in a separate process.

    Raises:
        ModelError: it has no such linear layers, is quantized already, or cannot be read.
    """
    most = levels()
    target = cache_folder() / "models" / f"{folder.name}-int8-{_fingerprint(folder, most)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            progress(f"{folder.name}: quantizing its weights to 8-bit integers (once)")
            command = [sys.executable, "-m", "lion_ray.models.quantize", str(folder), str(target), str(most)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                output = done.stderr.strip().splitlines()
                raise ModelError(
                    f"{folder}: its weights cannot be quantized to 8 bits ({output[-1] if output else 'no message'})"
                )
    return target


def levels() -> int:
    """The largest integer weight that this machine's 8-bit products support: 127, or 63 (`inference.int8_kernel`)."""
    return 127 if multiplies_int8() else 63


def _fingerprint(folder: Path, most: int) -> str:
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    return hashlib.sha256(json.dumps([_VERSION, most, str(folder.resolve()), files]).encode()).hexdigest()[:12]


def quantize(source: Path, target: Path, most: int = 127) -> None:
    """Write the model in `source` to the new folder `target`, with linear layers as integers within ±`most`."""
    from safetensors.torch import save_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ModelError(f"{source} is quantized already; serve it with quantization: null")
    check_weights(source)
    with whole_folder(target) as aside:
        index: dict[str, str] = {}
        rounded = size = 0
        for number, shard in enumerate(_shards(_tensors(source, most))):
            name = f"model-{number:05d}.safetensors"
            save_file(shard, aside / name, {"format": "pt"})
            index |= dict.fromkeys(shard, name)
            rounded += sum(one.endswith("_scale") for one in shard)
            size += sum(one.numel() * one.element_size() for one in shard.values())
        if not rounded:
            raise ModelError(f"{source}: no layer's name ends with {LINEAR}, so nothing can be quantized")
        _write_json(aside / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
        _write_json(aside / "config.json", config | {"quantization_config": _scheme()})
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja", ".model", ".txt") and not (aside / path.name).exists():
                shutil.copyfile(path, aside / path.name)


def round_weight(weight: torch.Tensor, most: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize [out, in] to int8 [out, in] within ±`most`, with float32 scales [out, 1]: weight ≈ int8 * scale."""
    import torch

    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / most
    return torch.round(weight.float() / scale).clamp_(-most, most).to(torch.int8), scale


def _tensors(source: Path, most: int) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file, not a dictionary
                weight = file.get_tensor(name)
                if name.endswith(LINEAR) and weight.ndim == 2:
                    integers, scale = round_weight(weight, most)
                    yield name, integers
                    yield f"{name}_scale", scale
                else:
                    yield name, weight


def _shards(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        shard[name] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _scheme() -> dict[str, Any]:
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": common | {"strategy": "channel", "dynamic": False},
        "input_activations": common | {"strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
