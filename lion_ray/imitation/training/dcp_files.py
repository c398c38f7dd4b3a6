"""Read files of torch.distributed.checkpoint (DCP) as data only.

Invariants:
- Nothing in a checkpoint runs code. DCP's metadata is a pickle; unpickling allows only the few classes that DCP itself
  writes there. Everything else goes through `torch.load(weights_only=True)`, which has such an allow-list too.
- Only files in the checkpoint's own folder are read, whatever its metadata names.

Why DCP: it saves and loads shards on any number of processes, and these are its files. Why the allow-list: otherwise
anyone with write access to a run folder could run code on the training machines, which hold keys.

This module does not know what a checkpoint holds.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = frozenset(
    [
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        *((_METADATA, f"{kind}Metadata") for kind in ("TensorStorage", "BytesStorage", "ChunkStorage")),
        (_METADATA, "TensorProperties"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),  # a look-up by name
        ("collections", "OrderedDict"),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
    ]
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Compare whole names: a dotted name could lead from a class to its module.
        if (module, name) in _CLASSES:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of a fit contains")


class Reader(FileSystemReader):
    """Reads a checkpoint's folder without running code from it.

    Raises pickle.UnpicklingError if the folder needs a class that is not allowed; damaged data may raise other errors.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            data = stream.read()
        _check_memo(data)
        metadata = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its metadata has the wrong type")
        for info in metadata.storage_data.values():
            _check_place(info)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Planner(DefaultLoadPlanner):
    """DCP's own planner would unpickle non-tensors (the optimizer's settings) with any class; this one restricts it."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        again = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), again)
        again.seek(0)
        super().load_bytes(read_item, again)  # receives only the bytes that were written here


def _check_memo(data: bytes) -> None:
    """Raise UnpicklingError if a memo index is too large: the unpickler allocates memory up to it."""
    for operation, number, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and number is not None and int(number) > len(data):
            raise pickle.UnpicklingError("its metadata would allocate more memory than it can need")


def _check_place(info: Any) -> None:
    place = PurePath(info.relative_path) if isinstance(info, _StorageInfo) else None
    if place is None or len(place.parts) != 1 or place.name == "..":
        raise pickle.UnpicklingError("its metadata names a file outside the checkpoint")
