"""Weights read by rows and written piece by piece, against the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lion_ray.imitation.training import weights
from lion_ray.imitation.training.weights import Folder, Writer

TENSORS = {
    "embed.weight": torch.randn(7, 4),
    "a.weight": torch.randn(5, 3),
    "a.bias": torch.randn(5),
    "scale": torch.tensor(3.5),
    "none": torch.empty(0, 4),
}


@pytest.mark.parametrize(("file_bytes", "files"), [(1e9, 1), (100, 2), (1, 5)])
def test_what_is_written_in_pieces_is_what_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: float, files: int
) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", file_bytes)
    with Writer(tmp_path, {name: tensor.shape for name, tensor in TENSORS.items()}) as writer:
        for name, tensor in TENSORS.items():
            for piece in tensor.split(2) if tensor.ndim else [tensor]:
                writer.write(name, piece)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) == files
    found = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == TENSORS.keys()
        assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    folder = Folder(tmp_path)
    assert torch.equal(folder.rows("a.weight", 1, 3), TENSORS["a.weight"][1:3])
    assert torch.equal(folder.rows("scale"), TENSORS["scale"])


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    save_file({"w": TENSORS["a.weight"].bfloat16()}, tmp_path / "model.safetensors")
    found = Folder(tmp_path).rows("w", 2)
    assert torch.equal(found, TENSORS["a.weight"].bfloat16().float()[2:])


def test_a_tensor_that_is_not_written_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="missing"), Writer(tmp_path, {"a": (1,), "b": (2,)}) as writer:
        writer.write("a", torch.zeros(1))
