"""Adapters over frozen weights: rounded where the arithmetic rounds, and merged row by row."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lion_ray.config import LoraConfig
from lion_ray.core.errors import ConfigError, ModelError
from lion_ray.imitation.training import adapters, held
from lion_ray.imitation.training.adapters import adapters_of, gathered, initialise, merged, round_frozen
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import add_adapters, load_model
from lion_ray.imitation.training.sharded import plain
from tests.training.conftest import HELDOUT, ROWS, weights

CPU = torch.device("cpu")


def adapted(folder, **lora):
    model = add_adapters(load_model(folder, CPU), LoraConfig(rank=4, **lora))
    initialise(model, seed=3)
    return model


def test_frozen_weights_in_bfloat16_change_no_bit_of_a_fit_in_bfloat16(make_spec, monkeypatch, tmp_path):
    seen = []

    def fit(name):
        train(make_spec(name, precision="bf16", lora=LoraConfig(rank=4), epochs=1), rows=ROWS, report=lambda *_: None)

    def rounded(model):
        round_frozen(model)
        seen.append({weight.dtype for weight in model.parameters()})

    monkeypatch.setattr(held, "round_frozen", rounded)
    fit("rounded")
    monkeypatch.setattr(held, "round_frozen", lambda model: None)
    fit("float32")
    assert seen == [{torch.float32, torch.bfloat16}]
    one, two = weights(tmp_path / "rounded"), weights(tmp_path / "float32")
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_an_embedding_and_a_head_tied_to_it_are_not_rounded(tiny):
    model = adapted(tiny)
    round_frozen(model)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32 and not p.requires_grad}
    assert kept
    assert all("embed" in name or "norm" in name for name in kept), kept


def test_merged_row_by_row_is_what_peft_merges(tiny):
    model = adapted(tiny)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    changes = adapters_of(model, gathered(model))
    base = {plain(name): p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    rows = merged(lambda name, begin, end: base[name][begin:end], changes)
    expected = dict(model.merge_and_unload().named_parameters())
    assert len(changes) == 14, "seven layers in each of two blocks"
    for name, weight in expected.items():
        split = torch.cat([rows(name, 0, 3), rows(name, 3, None)])
        torch.testing.assert_close(split, weight.detach(), msg=name)


def test_a_change_of_a_transposed_weight(tiny):
    change = adapters.Adapter(torch.randn(2, 5), torch.randn(3, 2), 0.5, transposed=True)
    torch.testing.assert_close(change.rows(1, 4), (0.5 * (change.up @ change.down)).T[1:4])


def test_an_adapter_that_cannot_be_merged_by_rows_is_one_line(tiny):
    model = adapted(tiny, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ModelError, match=r"lora\.target_modules: model\.embed_tokens\.lora.*is not of a linear layer"):
        adapters_of(model, gathered(model))


def test_four_bits_without_their_package_are_refused_in_one_line(make_spec, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^imitation\.lora\.base: nf4 needs the package bitsandbytes.*auto$"):
        train(make_spec(lora=LoraConfig(base="nf4")), rows=ROWS, report=lambda *_: None)


def test_a_model_that_does_not_fit_is_measured_layer_by_layer(make_spec, monkeypatch, tmp_path):
    spec = {"precision": "bf16", "serve_dtype": "float16", "lora": LoraConfig(rank=4), "epochs": 1}
    found = [train(make_spec("whole", **spec), rows=ROWS, heldout_rows=HELDOUT, report=lambda *_: None)]
    monkeypatch.setattr(held, "fits", lambda folder, device: False)
    moved = []

    def to(self, place):
        moved.append(place)
        return self

    monkeypatch.setattr(LlamaDecoderLayer, "to", to)
    found.append(train(make_spec("streamed", **spec), rows=ROWS, heldout_rows=HELDOUT, report=lambda *_: None))
    # A layer comes before it works and goes afterwards, one at a time.
    assert moved
    assert moved == [CPU, "cpu"] * (len(moved) // 2)
    for name in ("heldout_loss_before", "heldout_loss_after", "heldout_loss_served", "last_loss"):
        assert found[0][name] == found[1][name], name
