"""Delta weights: back to the bit, and refused where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lion_ray.core.errors import DataError, ModelError
from lion_ray.models import delta

Tensors = dict[str, torch.Tensor]


def weights(seed: int, rows: int = 50, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    made = torch.Generator().manual_seed(seed)
    shapes = {"embed": (rows, 16), "layer.0": (16, 16), "layer.1": (16, 16), "norm": (16,)}
    return {name: torch.randn(shape, generator=made).to(dtype) for name, shape in shapes.items()}


def model(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {}
    for number, name in enumerate(tensors):
        called = f"model-{number % shards}.safetensors"
        where[name] = called
    for called in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == called}, folder / called)
    (folder / delta.INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def quiet(_: str) -> None:
    """Nobody reads along."""


def back(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def equal(left: Tensors, right: Tensors) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)

    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(bits(left[name]), bits(right[name])) for name in left
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("base_shards", "shard_bytes"), [(1, 2**30), (2, 600)])
def test_what_comes_back_is_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, base_shards: int, shard_bytes: int
) -> None:
    monkeypatch.setattr(delta, "SHARD_BYTES", shard_bytes)
    tuned = weights(2, rows=53, dtype=dtype)  # three new tokens
    tuned["norm"][0] = float("nan")
    tuned["norm"][1] = -0.0
    tuned["lm_head"] = torch.full((4, 4), 65504.0).to(dtype)  # which the base has not
    base = model(tmp_path / "base", weights(1, dtype=torch.float32), base_shards)
    model(tmp_path / "tuned", tuned)
    delta.make(base, tmp_path / "tuned", tmp_path / "delta", say=quiet)
    delta.recover(base, tmp_path / "delta", tmp_path / "again", say=quiet)
    assert equal(back(tmp_path / "again"), tuned)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == {"of": "tuned"}
    assert (tmp_path / "again" / delta.INDEX).exists() == (shard_bytes == 600)
    assert json.loads((tmp_path / "delta" / delta.ABOUT).read_text())["not_in_base"] == ["lm_head"]


def test_another_type_is_what_comes_back(tmp_path: Path) -> None:
    base = model(tmp_path / "base", weights(1))
    model(tmp_path / "tuned", weights(2, dtype=torch.float32))
    delta.make(base, tmp_path / "tuned", tmp_path / "delta", dtype="float16", say=quiet)
    delta.recover(base, tmp_path / "delta", tmp_path / "again", say=quiet)
    assert equal(back(tmp_path / "again"), {k: v.to(torch.float16) for k, v in weights(2, dtype=torch.float32).items()})


def test_every_tensor_keeps_its_own_type(tmp_path: Path) -> None:
    base = model(tmp_path / "base", weights(1))
    tuned = weights(2) | {
        "norm": torch.randn(16, dtype=torch.float32),
        "steps": torch.tensor(7, dtype=torch.int64),  # without a dimension
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(250, 262).to(torch.uint8),
        "nothing": torch.empty((0, 4), dtype=torch.float16),
    }
    model(tmp_path / "tuned", tuned)
    told: list[str] = []
    delta.make(base, tmp_path / "tuned", tmp_path / "delta", say=told.append)
    delta.recover(base, tmp_path / "delta", tmp_path / "again", say=quiet)
    found = back(tmp_path / "again")
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in tuned.items()}
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)
    assert any("4 that the base lacks are included unchanged: bytes, mask, nothing …" in line for line in told)


def test_other_weights_and_sums_do_not_go_along(tmp_path: Path) -> None:
    base = model(tmp_path / "base", weights(1))
    tuned = model(tmp_path / "tuned", weights(2))
    for name in ("pytorch_model.bin", "SHA256SUMS", "tokenizer.json"):
        (tuned / name).write_text("x")
    delta.make(base, tuned, tmp_path / "delta", say=quiet)
    names = {path.name for path in (tmp_path / "delta").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", delta.ABOUT}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    model(tmp_path / "base", weights(1), shards=2)
    model(tmp_path / "tuned", weights(2))
    delta.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", say=quiet)
    return tmp_path


def refused(made: Path) -> str:
    with pytest.raises(ModelError) as caught:
        delta.recover(made / "base", made / "delta", made / "again", say=quiet)
    assert not (made / "again").exists()
    assert not list(made.glob(".again*")), "nothing half made stays"
    return str(caught.value)


def test_a_wrong_base(made: Path) -> None:
    wrong = weights(1)
    wrong["layer.1"][3, 3] += 1
    other = made / "other"
    model(other, wrong)
    (made / "base").rename(made / "right")
    other.rename(made / "base")
    assert "not the model that" in (told := refused(made))
    assert "layer.1 differs" in told


def test_a_missing_shard(made: Path) -> None:
    (made / "base" / "model-1.safetensors").unlink()
    assert "model-1.safetensors is missing (1 of 2 shards)" in refused(made)


def test_a_file_that_is_cut_off(made: Path) -> None:
    path = made / "delta" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "model.safetensors: cannot be read; is the file complete?" in refused(made)


def test_a_damaged_delta(made: Path) -> None:
    path = made / "delta" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "is damaged" in refused(made)


def test_a_delta_without_one_of_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "SHARD_BYTES", 600)
    model(tmp_path / "base", weights(1))
    model(tmp_path / "tuned", weights(2))
    delta.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", say=quiet)
    (tmp_path / "delta" / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing (1 of 3 shards)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 1}, "a delta of format 1; this version reads 2"),
        ({"tensors": []}, "not a delta's description"),
        ({"tensors": {"embed": {}}}, "not a delta's description (KeyError: 'shape')"),
        ({"tensors": {"gone": {"shape": [1], "dtype": "float16", "base": "", "tuned": ""}}}, "gone is missing (1 of 1"),
        ({"tensors": {"norm": {"shape": [1], "dtype": "load", "base": "", "tuned": ""}}}, "the unknown type load"),
        (
            {"tensors": {"norm": {"shape": [10**12], "dtype": "float16", "base": "", "tuned": ""}}},
            "norm does not match",
        ),
    ],
)
def test_a_description_that_is_wrong(made: Path, change: dict[str, object], told: str) -> None:
    path = made / "delta" / delta.ABOUT
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert told in refused(made)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"embed": "../tuned/x.safetensors"}}']
)
def test_an_index_that_is_wrong(made: Path, index: str) -> None:
    (made / "base" / delta.INDEX).write_text(index)
    assert delta.INDEX in refused(made)


def test_an_index_that_names_the_wrong_shard(made: Path) -> None:
    path = made / "base" / delta.INDEX
    where = json.loads(path.read_text())["weight_map"]
    where["embed"] = "model-1.safetensors"
    path.write_text(json.dumps({"weight_map": where}))
    assert "model-1.safetensors: embed" in refused(made)


def test_a_base_of_another_kind(tmp_path: Path) -> None:
    model(tmp_path / "base", {f"other.{name}": one for name, one in weights(1).items()})
    model(tmp_path / "tuned", weights(2))
    with pytest.raises(ModelError, match="has no tensor in common with"):
        delta.make(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", say=quiet)
    assert not (tmp_path / "delta").exists()


def test_models_that_do_not_go_together(tmp_path: Path) -> None:
    base = model(tmp_path / "base", weights(1, rows=60))
    model(tmp_path / "tuned", weights(2))
    with pytest.raises(ModelError, match=r"embed has shape \(60, 16\), but \(50, 16\) in the tuned model"):
        delta.make(base, tmp_path / "tuned", tmp_path / "delta", say=quiet)


def test_a_folder_that_is_there_already(made: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        delta.make(made / "base", made / "tuned", made / "delta", say=quiet)
