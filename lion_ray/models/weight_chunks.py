"""A model's weights in pieces of bounded size, to be passed to other processes through memory.

Invariants:
- Each chunk is itself in the safetensors format, so names, types and shapes travel with the bytes, and safetensors
  refuses a truncated one.
- The bytes are those of the files and nothing is rounded, so an engine loads the same bits as from the folder.

This module does not know who passes the chunks on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lion_ray.core.errors import ModelError

CHUNK_BYTES = 2**28
"""The largest size of a chunk, unless a single tensor is larger."""


def weight_bytes(folder: Path) -> int:
    """The size of a model folder's weights, in bytes."""
    return sum(path.stat().st_size for path in _files(folder))


def chunks(folder: Path, most: int = CHUNK_BYTES) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The weights of a model folder in chunks of at most `most` bytes, or of one tensor, in the order of the files.

    Raises:
        ModelError: the folder holds no safetensors, or a file is truncated.
    """
    if not (files := _files(folder)):
        raise ModelError(f"{folder}: holds no .safetensors files")
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for tensors in _groups(header, most):
                begin, end = _first(tensors)[0], max(entry["data_offsets"][1] for entry in tensors.values())
                head = _header(tensors, begin)
                chunk = np.empty(len(head) + end - begin, np.uint8)
                chunk[: len(head)] = np.frombuffer(head, np.uint8)
                file.seek(8 + length + begin)
                if file.readinto(chunk[len(head) :].data) != end - begin:
                    raise ModelError(f"{path}: is truncated; it should hold {end - begin} more bytes of weights")
                yield chunk


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _groups(header: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """The header's entries in the order of their bytes, in groups of at most `most` bytes."""
    group: dict[str, Any] = {}
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        if group and entry["data_offsets"][1] - _first(group)[0] > most:
            yield group
            group = {}
        group[name] = entry
    if group:
        yield group


def _first(tensors: dict[str, Any]) -> list[int]:
    return next(iter(tensors.values()))["data_offsets"]


def _header(tensors: dict[str, Any], begin: int) -> bytes:
    """A safetensors header of tensors whose bytes begin at `begin`."""
    moved = {
        name: entry | {"data_offsets": [at - begin for at in entry["data_offsets"]]} for name, entry in tensors.items()
    }
    text = json.dumps(moved, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
