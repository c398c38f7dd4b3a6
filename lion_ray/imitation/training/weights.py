"""Weights in safetensors, read by rows and written piece by piece: never a whole model in memory.

Invariants:
- What is read is float32 and lies in main memory; of a tensor only the rows that are asked for are read.
- What is written is a folder that transformers loads: float32, files of at most `FILE_BYTES` (or one tensor), an index.

This module does not know processes or models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

FILE_BYTES = 5e9
Shapes = Mapping[str, Sequence[int]]


class Folder:
    """The tensors of a model folder."""

    def __init__(self, model_dir: str | Path) -> None:
        """Raises SafetensorError or OSError if a file is damaged."""
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(Path(model_dir).glob("*.safetensors")):
            opened = self._open.enter_context(safe_open(path, framework="pt"))
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                self._files[name] = opened
                self.shapes[name] = tuple(opened.get_slice(name).get_shape())

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Rows of a tensor, counted along its first dimension; of a scalar, all."""
        part = self._files[name].get_slice(name)
        found: torch.Tensor = part[begin:end] if self.shapes[name] else self._files[name].get_tensor(name)
        return found.to(torch.float32, copy=True)  # never a view of the file


class Writer:
    """Writes a folder's safetensors in the order of `shapes`; use as a context manager, and write every tensor."""

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self._folder, self._shapes = folder, shapes
        self._files = list(_files(shapes))
        self._open: Any = None
        self._left: dict[str, int] = {}

    def write(self, name: str, piece: torch.Tensor) -> None:
        """The next rows of a tensor. Pieces come in the order of `shapes`, a tensor's rows in their own."""
        if not self._left:
            self._begin()
        assert name == next(iter(self._left)), f"{name} is not next"
        data = piece.detach().to("cpu", torch.float32).contiguous()
        self._open.write(data.reshape(-1).view(torch.uint8).numpy().data)
        self._left[name] -= data.numel()
        if not self._left[name]:
            del self._left[name]

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        if kind is None:
            assert not [*self._left, *self._files], "tensors are missing"

    def _begin(self) -> None:
        if self._open is not None:
            self._open.close()
        name, tensors = self._files.pop(0)
        self._open = (self._folder / name).open("wb")
        self._open.write(_header({tensor: self._shapes[tensor] for tensor in tensors}))
        self._left = {tensor: math.prod(self._shapes[tensor]) for tensor in tensors}
        if not self._files and name != "model.safetensors":
            _write_index(self._folder, self._shapes)


def _files(shapes: Shapes) -> Iterable[tuple[str, list[str]]]:
    groups: list[list[str]] = []
    room = 0.0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        if not groups or size > room:
            groups.append([])
            room = FILE_BYTES
        groups[-1].append(name)
        room -= size
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        yield file, names


def _write_index(folder: Path, shapes: Shapes) -> None:
    places = {name: file for file, names in _files(shapes) for name in names}
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _header(shapes: Shapes) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
