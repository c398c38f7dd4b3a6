"""A model's weights in pieces that pass through memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from lion_ray.actors.weights import SHARE, check_room
from lion_ray.core.errors import ModelError
from lion_ray.models.weight_chunks import chunks, weight_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files: a tensor larger than the others, and one without elements."""
    numbers = np.random.default_rng(0)
    one = {f"layer.{n}": numbers.random((4, n), np.float32) for n in range(6)}
    two: dict[str, Any] = {"large": numbers.random((64, 8)), "small": np.arange(3, dtype=np.int8)}
    save_file(one, tmp_path / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(two, tmp_path / "model-00002-of-00002.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("most", [1, 100, 10_000])
def test_every_tensor_comes_once_with_its_bits(folder: Path, most: int) -> None:
    expected = {name: tensor for path in sorted(folder.iterdir()) for name, tensor in load_file(path).items()}
    found: dict[str, Any] = {}
    for chunk in chunks(folder, most):
        tensors = load(chunk.tobytes())
        assert tensors
        assert not tensors.keys() & found.keys()
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= most
        found |= tensors
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()
    assert len(list(chunks(folder, 10_000))) == 2, "one for each file"


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: is truncated"):
        list(chunks(folder))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no \.safetensors files"):
        list(chunks(tmp_path))


def test_weights_take_a_bounded_part_of_every_object_store(folder: Path) -> None:
    size = weight_bytes(folder)
    enough = {"object_store_memory": size / SHARE}
    check_room(size, [enough, {"object_store_memory": 1e12}])
    with pytest.raises(ModelError, match="more than 50% of the cluster's smallest object store"):
        check_room(size + 1, [{"object_store_memory": 1e12}, enough])
