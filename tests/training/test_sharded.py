"""A model that is filled shard by shard is the one that is loaded whole; of what differs in its files it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lion_ray.core.errors import ModelError
from lion_ray.imitation.training import sharded
from lion_ray.imitation.training.held import Sharded
from lion_ray.imitation.training.model import World, load_model
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.weights import Folder
from tests.training.test_foreign_models import made

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path: Path):
    """A process group of this process alone: what is sharded is its one shard."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield World()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "streamed"), [("llama", True), ("gpt2", True), ("gptneox", False), ("mixtral", False)]
)
def test_what_is_filled_shard_by_shard_is_what_is_loaded_whole(kind, streamed, alone, tmp_path):
    folder = made(kind, tmp_path / "model")
    assert (sharded.names_in(Folder(folder), sharded.skeleton(folder)) is not None) == streamed
    whole = load_model(folder, CPU)
    ids = torch.arange(40).reshape(2, 20)
    held = Sharded(TrainSpec(model_dir=str(folder), output_dir=str(tmp_path / "out")), alone, CPU)
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        assert torch.equal(held.measured()(input_ids=ids).logits, expected)
        trained = held.trained("sdpa")
        assert trained.training
        assert torch.equal(trained.eval()(input_ids=ids).logits, expected)
    (tmp_path / "saved").mkdir()
    again = held.save(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
        assert torch.equal(load_model(tmp_path / "saved", CPU)(input_ids=ids).logits, expected)


def damaged(folder: Path, change) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
    return folder


def drop(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def poison(weights):
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def lengthen(weights):
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(("change", "said"), [(drop, "lack"), (poison, "NaN"), (lengthen, "config.json says 2 layers")])
def test_damage_is_told_as_where_the_model_is_loaded_whole(change, said, alone, tmp_path):
    folder = damaged(made("llama", tmp_path / "model"), change)
    with pytest.raises(ModelError) as whole:
        load_model(folder, CPU)
    with pytest.raises(ModelError) as streamed:
        Sharded(TrainSpec(model_dir=str(folder), output_dir=str(tmp_path / "out")), alone, CPU).measured()
    assert said in str(whole.value)
    assert str(streamed.value) == str(whole.value)
