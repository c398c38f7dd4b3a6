"""Delta weights: the changes of fine-tuning, for users who may not redistribute the base model's weights.

Invariants:
- A delta holds the difference of the weights' *bits*, modulo 2^16 (2^32 for float32, and so on), so base and delta
  restore the tuned weights exactly, each tensor in its own type. A difference of numbers would not, because sums are
  rounded.
- A wrong base is refused at the first tensor that differs from the delta's base (SHA-256 of its bits), and the restored
  tensors are checked in the same way.
- Tensors are processed one by one, each mapped only while it is needed, into shards of `SHARD_BYTES`: memory is bounded
  by a shard and a few copies of the largest tensor, whatever the model's size.
- Only safetensors are read and written. An output folder is complete or absent.

Tensors that the base lacks, and additional rows of the tuned embeddings (new tokens), are differences from zero: the
delta holds them unchanged, and `make` reports these tensors.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lion_ray.core.durable import whole_folder
from lion_ray.core.errors import InfrastructureError, ModelError, one_line

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 2**30
"""The largest size of a shard, unless a single tensor is larger."""
ABOUT = "delta.json"
INDEX = "model.safetensors.index.json"
FORMAT = 2
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf")


class Weights:
    """The tensors of a model's folder, mapped into memory one at a time."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ModelError: a shard in the index is missing, or a file is truncated or not a safetensors file.
        """
        self.folder = folder
        self._where = _index(folder)
        files = sorted(set(self._where.values())) or sorted(path.name for path in folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder}: holds no .safetensors files")
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(files)} shards)")
        found = {tensor: name for name in files for tensor in self._names_in(name)}
        self._where = self._where or found

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """Sorted, so that the order is the same on every machine."""
        return sorted(self._where)

    def get(self, name: str) -> torch.Tensor:
        """A tensor. Raises ModelError if its shard does not hold it.

        Its file is mapped only while the tensor is in use: the mapped pages of a whole model would evict all others.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / self._where[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: {name}: {one_line(error)}") from None
        return tensor

    def _names_in(self, name: str) -> list[str]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / name, framework="pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{self.folder / name}: cannot be read; is the file complete? ({one_line(error)})"
            ) from None


@dataclass(frozen=True, slots=True)
class Entry:
    """A delta's description of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """The tuned tensor's type, by torch's name."""
    base: str
    """SHA-256 of the base's bits, in that type and with zeros for missing rows."""
    tuned: str
    """SHA-256 of the restored bits."""


def make(base: Path, tuned: Path, out: Path, *, dtype: str | None = None, say: Callable[[str], None] = print) -> None:
    """Write the delta from `base` to `tuned` into the folder `out`.

    Args:
        dtype: the type of restored floating-point tensors: float16, bfloat16 or float32; by default the tuned model's.

    Raises:
        ModelError: a model is incomplete, or the shapes do not match.
        DataError: `out` exists already.
    """
    import torch

    before, after = Weights(base), Weights(tuned)
    own = [name for name in after.names() if name not in before]
    if len(own) == len(after.names()):
        raise ModelError(f"{base}: has no tensor in common with {tuned}; is it the model that was tuned?")
    entries: dict[str, Entry] = {}

    def differences() -> Iterator[tuple[str, torch.Tensor]]:
        for name in after.names():
            wanted = after.get(name)
            if dtype is not None and wanted.is_floating_point():
                wanted = wanted.to(getattr(torch, dtype))
            had = _grown(before, name, tuple(wanted.shape), wanted.dtype)
            type_name = str(wanted.dtype).removeprefix("torch.")
            entries[name] = Entry(tuple(wanted.shape), type_name, _digest(had), _digest(wanted))
            yield name, _bits(wanted) - _bits(had)

    with whole_folder(out) as folder:
        _write(folder, differences(), say)
        _copy_rest(tuned, folder)
        tensors = {
            name: {"shape": list(one.shape), "dtype": one.dtype, "base": one.base, "tuned": one.tuned}
            for name, one in entries.items()
        }
        about = {"format": FORMAT, "tensors": tensors, "not_in_base": own}
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    types = ", ".join(sorted({one.dtype for one in entries.values()}))
    say(f"{out}: {len(entries)} tensors, to be restored in {types}")
    if own:
        say(f"  {len(own)} that the base lacks are included unchanged: {', '.join(own[:3])}{' …' if own[3:] else ''}")


def recover(base: Path, delta: Path, out: Path, *, say: Callable[[str], None] = print) -> None:
    """Restore the tuned model from `base` and `delta` into the folder `out`.

    Raises:
        ModelError: the delta is incomplete, or `base` is not the model that it was made from.
        DataError: `out` exists already.
    """
    import torch

    entries = _read_about(delta)
    before, change = Weights(base), Weights(delta)
    absent = sorted(set(entries) - set(change.names()))
    if absent:
        raise ModelError(f"{delta}: {absent[0]} is missing ({len(absent)} of {len(entries)} tensors)")

    def tuned() -> Iterator[tuple[str, torch.Tensor]]:
        for name, entry in sorted(entries.items()):
            difference = change.get(name)
            kind = getattr(torch, entry.dtype)
            if tuple(difference.shape) != entry.shape or difference.element_size() != kind.itemsize:
                raise ModelError(f"{delta}: {name} does not match its description in {ABOUT}")
            had = _grown(before, name, entry.shape, kind)
            if _digest(had) != entry.base:
                raise ModelError(f"{base}: not the model that {delta} was made from: {name} differs")
            tensor = (_bits(had) + difference).view(kind)
            if _digest(tensor) != entry.tuned:
                raise ModelError(f"{delta}: {name} is damaged: the restored tensor differs from the original")
            yield name, tensor

    with whole_folder(out) as folder:
        _write(folder, tuned(), say)
        _copy_rest(delta, folder)
    say(f"{out}: {len(entries)} tensors restored exactly")


def _index(folder: Path) -> dict[str, str]:
    """The index, from tensor to file; empty without an index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        where: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = set(where.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an index of shards ({one_line(error)})") from None
    if odd := sorted(name for name in names if Path(name).name != name):
        raise ModelError(f"{path}: names {odd[0]}, which is not in its folder")
    return where


def _read_about(delta: Path) -> dict[str, Entry]:
    import torch

    path = delta / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if (format_ := about["format"]) != FORMAT:
            raise ModelError(f"{delta}: a delta of format {format_}; this version reads {FORMAT}; make it again")
        entries = {
            name: Entry(tuple(one["shape"]), one["dtype"], one["base"], one["tuned"])
            for name, one in about["tensors"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a delta's description ({type(error).__name__}: {one_line(error)})") from None
    for name, entry in entries.items():
        if not isinstance(getattr(torch, entry.dtype, None), torch.dtype):
            raise ModelError(f"{path}: {name} has the unknown type {entry.dtype}")
    return entries


def _grown(base: Weights, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The base's tensor in a type, with zeros for missing rows."""
    import torch

    if name not in base:
        return torch.zeros(shape, dtype=dtype)
    had = base.get(name).to(dtype)
    own = tuple(had.shape)
    if own == shape:
        return had
    if own and len(own) == len(shape) and own[1:] == shape[1:] and own[0] < shape[0]:
        grown = torch.zeros(shape, dtype=dtype)
        grown[: own[0]] = had
        return grown
    raise ModelError(f"{base.folder}: {name} has shape {own}, but {shape} in the tuned model")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bits(tensor).reshape(-1).numpy().data).hexdigest()


def _write(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], say: Callable[[str], None]) -> None:
    """Write shards of at most `SHARD_BYTES`, and their index."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    total = size = 0

    def flush() -> None:
        nonlocal held, size
        path = folder / f"{len(shards)}.part"
        try:
            save_file(held, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise InfrastructureError(f"{path}: cannot be written: {one_line(error)}") from None
        shards.append(list(held))
        say(f"  {total / 2**30:.2f} GiB written")
        held, size = {}, 0

    for name, tensor in tensors:
        bytes_of = tensor.numel() * tensor.element_size()
        if held and size + bytes_of > SHARD_BYTES:
            flush()
        held[name] = tensor
        size += bytes_of
        total += bytes_of
    flush()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards):
        called = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / called)
        where |= dict.fromkeys(names, called)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _copy_rest(source: Path, target: Path) -> None:
    """Copy configuration and tokenizer: every file except weights in any format, their index and the delta's files."""
    for path in source.iterdir():
        if path.is_file() and path.suffix not in _OTHER_WEIGHTS and path.name not in (INDEX, ABOUT, "SHA256SUMS"):
            shutil.copy(path, target / path.name)
