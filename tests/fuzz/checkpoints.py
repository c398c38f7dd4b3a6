"""Target: a checkpoint's metadata, which is a pickle."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from lion_ray.imitation.training.dcp_files import Reader
from lion_ray.imitation.training.state import _DAMAGE
from tests.fuzz.target import FOLDER, target


class _Elsewhere:
    """Code that an unsafe unpickler would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def _checkpoints() -> Iterable[bytes]:
    root = FOLDER.empty()
    save({"w": torch.zeros(2), "n": 3}, storage_writer=FileSystemWriter(root), no_dist=True)
    yield (root / ".metadata").read_bytes()
    yield pickle.dumps({"a": [1, 2]})
    yield pickle.dumps(_Elsewhere())


@target("checkpoints", *_DAMAGE, seeds=_checkpoints)
def checkpoints(data: bytes) -> None:
    """A checkpoint's metadata: `imitation.training.state` reports these errors in one line, and no code runs."""
    root = FOLDER.empty()
    (root / ".metadata").write_bytes(data)
    Reader(root).read_metadata()
