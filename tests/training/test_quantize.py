"""Weights rounded to 8 bits for serving: what is rounded, by how much, and what stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lion_ray.config import ServeConfig
from lion_ray.core.errors import ModelError
from lion_ray.inference.int8_kernel import look_up, multiply, pack, shorten
from lion_ray.models import quantize
from lion_ray.models.quantize import LINEAR, levels, round_weight, served_folder
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that each quantized model, which takes a process with torch, is made once."""
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """To be read only."""
    return make_tiny_model(folder / "tiny", initializer_range=0.5)


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LION_RAY_CACHE", str(folder / "cache"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_rounding_is_to_the_nearest_of_255_steps() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 33)
    weight[3] = 0.0  # a dead channel has no scale of its own
    integers, scale = round_weight(weight)
    assert (integers.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (7, 1))
    assert ((integers * scale - weight).abs() <= scale / 2 + 1e-7).all()
    assert (integers[torch.arange(7) != 3].abs().amax(1) == 127).all(), "each channel uses its whole range"
    assert torch.isfinite(integers * scale).all()


def test_linear_layers_are_rounded_and_nothing_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "SHARD_BYTES", 4096)
    made = tmp_path / "made"
    quantize.quantize(tiny, made)
    assert len(list(made.glob("*.safetensors"))) > 1, "so large a model is never in memory at once"
    before, after = weights(tiny), weights(made)
    linear = [name for name in before if name.endswith(LINEAR)]
    assert len(linear) == 14, "7 in each of two layers"
    for name, weight in before.items():
        if name in linear:
            scale = after[f"{name}_scale"]
            assert after[name].dtype == torch.int8
            assert ((after[name] * scale - weight).abs() <= scale / 2 + 1e-6).all()
        else:
            assert torch.equal(after[name], weight), name
    assert len(after) == len(before) + len(linear)
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(after)
    config = json.loads((made / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == json.loads((tiny / "config.json").read_text())
    assert (made / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def test_it_is_made_once_and_anew_for_other_weights(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "other", initializer_range=0.5)
    said: list[str] = []
    config = ServeConfig(model=str(tiny), quantization="int8")
    first = served_folder(config, None, said.append)
    assert served_folder(config, None, said.append) == first
    assert len(said) == 1
    make_tiny_model(tiny, seed=1, initializer_range=0.5)
    other = served_folder(config, None, said.append)
    assert other != first
    assert served_folder(ServeConfig(model=str(tiny)), None, said.append) == tiny, "as it is, unless it is asked for"


def test_what_cannot_be_rounded_is_said_and_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = served_folder(ServeConfig(model=str(tiny), quantization="int8"), None, lambda _: None)
    with pytest.raises(ModelError, match="quantized already"):
        quantize.quantize(made, tmp_path / "twice")
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    monkeypatch.setenv("LION_RAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="cannot be quantized to 8 bits"):
        served_folder(ServeConfig(model=str(broken), quantization="int8"), None, lambda _: None)
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_cpu_that_adds_in_16_bits_gets_smaller_integers_of_its_own(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ServeConfig(model="tiny", quantization="int8")
    found = {}
    for able, most in ((True, 127), (False, 63)):
        monkeypatch.setattr(quantize, "multiplies_int8", lambda able=able: able)
        assert levels() == most
        found[most] = served_folder(serve, tiny.parent, lambda line: None)
        largest = max(w.abs().max() for name, w in weights(found[most]).items() if name.endswith(LINEAR))
        assert largest == most
    assert found[127] != found[63], "two machines may share a cache folder"


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no FBGEMM: not an x86 CPU")
@pytest.mark.parametrize("rows", [1, 64])
def test_the_product_of_8_bit_weights(rows: int) -> None:
    torch.manual_seed(0)
    torch.backends.quantized.engine = "fbgemm"
    weight, given, bias = torch.randn(96, 256), torch.randn(rows, 256), torch.randn(96)
    given[0, 3] = 40.0  # an outlier, as in language models
    integers, scale = round_weight(weight, 63)
    packed = pack(integers, scale.flatten())
    product = multiply(given, packed, bias)
    rounded = given.abs().amax(1, keepdim=True) / 127
    exact = (torch.round(given / rounded) * rounded) @ (integers * scale).T + bias
    torch.testing.assert_close(product, exact, rtol=1e-4, atol=1e-3)
    others = torch.randn(7, 256) * 100
    assert torch.equal(multiply(torch.cat([given, others]), packed, bias)[:rows], product), "each row by itself"
    assert not multiply(torch.zeros(1, 256), packed, None).any(), "a row of zeros has no scale"


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no FBGEMM: not an x86 CPU")
def test_the_largest_sum_of_two_products_still_fits() -> None:
    torch.backends.quantized.engine = "fbgemm"
    packed = pack(torch.full((8, 64), 63, dtype=torch.int8), torch.ones(8))
    assert torch.equal(multiply(torch.full((1, 64), 127.0), packed, None), torch.full((1, 8), 127.0 * 63 * 64))


@pytest.mark.parametrize(("exact", "held"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_embedding_is_halved_where_that_loses_nothing(exact: bool, held: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(16, 8)
    rows = rows.bfloat16().float() if exact else rows
    weight, ids = torch.nn.Parameter(rows.clone(), requires_grad=False), torch.tensor([3, 0, 15])
    tied = weight
    shorten(weight)
    assert tied.dtype == held
    assert torch.equal(look_up(ids, tied), rows[ids])


def test_an_embedding_in_bfloat16_stays_so() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 8).bfloat16(), requires_grad=False)
    assert look_up(torch.tensor([1]), weight).dtype == torch.bfloat16
