"""What a fit's tokens cost, and what makes it fast: counted by hand, and without a change in what is learned."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lion_ray.config import LoraConfig
from lion_ray.imitation.training import attention
from lion_ray.imitation.training.data import Sample, collate, read_rows
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.flops import ModelFlops, Speedometer, device_peak, peak
from lion_ray.imitation.training.loss import token_loss
from lion_ray.imitation.training.model import LabelledLogits, add_adapters, load_model
from lion_ray.imitation.training.speed import compile_layers, compiled_loss
from tests.training.conftest import HELDOUT, ROWS, weights
from tests.training.test_loss import gradients

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _compiler_on(monkeypatch):
    """An engine in this process may have switched it off."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)


def shape(**changes):
    """A model without weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**changes))


def test_flops_of_a_published_cell():
    """prime-rl trains Qwen3-0.6B on 8,192 tokens at 26,010 tokens/s on an H100 and calls it 16.8 % MFU."""
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sample = Sample([0] * 8192, 0)
    speed = Speedometer(ModelFlops.of(model), peak("NVIDIA H100 80GB HBM3", "bf16"), 1)
    assert speed.step([sample], 8192 / 26_010)["mfu"] == pytest.approx(0.168, abs=0.001)
    assert speed.overall()["tokens_per_second"] == pytest.approx(26_010)


def test_flops_by_hand():
    model = shape(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, head_dim=4
    )
    layer = 4 * 8 * 8 + 3 * 8 * 16
    flops = ModelFlops.of(model)
    assert (flops.token, flops.label, flops.pair) == (6 * 3 * layer, 6 * 800, 3 * 12 * 8)
    sample = Sample([1] * 5, 3)
    expected = 5 * flops.token + 2 * flops.label + (5 + 4 + 3 + 2 + 1) * flops.pair
    assert flops.of_samples([sample]) == expected
    pair = sample._replace(rejected=Sample([1] * 4, 3))
    assert flops.of_samples([pair]) == expected + 4 * flops.token + flops.label + 10 * flops.pair


def test_frozen_weights_cost_no_gradient(tiny):
    whole = ModelFlops.of(load_model(tiny, CPU))
    adapted = add_adapters(load_model(tiny, CPU), LoraConfig(rank=2, target_modules=("q_proj",)))
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    found = ModelFlops.of(adapted)
    assert found.token == pytest.approx(whole.token * 4 / 6 + 6 * added)
    assert found.label == pytest.approx(whole.label * 4 / 6)


def test_windows_and_experts():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 4}
    with torch.device("meta"):
        sliding = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("mistral", **sizes, sliding_window=3, intermediate_size=8)
        )
        routed = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "qwen3_moe", **sizes, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=4, mlp_only_layers=[]
            )
        )
    flops = ModelFlops.of(sliding)
    assert (flops.pair, flops.windows) == (0, ((3, 2 * 12 * 8),))
    no_labels = Sample([1] * 5, 5)
    assert flops.of_samples([no_labels]) == 5 * flops.token + (1 + 2 + 3 + 3 + 3) * 2 * 12 * 8
    every = sum(p.numel() for name, p in routed.named_parameters() if p.dim() == 3)
    rest = sum(p.numel() for name, p in routed.named_parameters() if p.dim() == 2 and "lm_head" not in name)
    embeddings = routed.get_input_embeddings().weight.numel()
    assert ModelFlops.of(routed).token == 6 * (every / 4 + rest - embeddings)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Some GPU", None),
    ],
)
def test_peaks(name, tera):
    assert peak(name, "bf16") == (None if tera is None else tera * 1e12)
    assert peak(name, "fp32") == (None if tera is None else tera * 0.5e12)


def test_a_cpu_has_no_mfu(make_spec):
    assert device_peak(CPU, "bf16") is None
    steps = []
    spec = make_spec(epochs=1)
    metrics = train(spec, rows=read_rows(spec.rows), report=lambda step, folder: steps.append(step))
    assert metrics["tokens_per_second"] > 0
    assert "mfu" not in metrics
    assert all("mfu" not in step and step["tokens_per_second"] > 0 for step in steps)
    assert metrics["attention"] == "sdpa"


def test_a_fast_fit_learns_the_same(make_spec, run_fit, tmp_path):
    fast = {"attention": "varlen", "logits_at_once": 40}

    def fit(name, **changes):
        return train(make_spec(name, epochs=1, **changes), rows=ROWS, heldout_rows=HELDOUT, report=lambda *_: None)

    usual, alone = fit("usual"), fit("alone", **fast)
    assert (usual["attention"], alone["attention"]) == ("sdpa", "varlen")
    assert run_fit(make_spec("sharded", epochs=1, sharding="full", **fast), 2)[0] == [0, 0]
    together = json.loads((tmp_path / "sharded" / "training.json").read_text())["metrics"]
    expected = weights(tmp_path / "usual")
    for name, metrics in (("alone", alone), ("sharded", together)):
        for key in ("first_loss", "last_loss", "heldout_loss_before", "heldout_loss_after"):
            assert metrics[key] == pytest.approx(usual[key], rel=1e-5)
        found = weights(tmp_path / name)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kernel", ["sdpa", "varlen"])
def test_compiled_layers_compute_the_same(kernel, tiny):
    """With activations that are computed again, as a fit may."""
    batch = collate([[Sample(list(range(5, 25)), 3), Sample(list(range(30, 60)), 1)]])
    model = load_model(tiny, CPU).train()
    LabelledLogits(model).losses(batch).sum().backward()
    expected = gradients(model)
    assert compile_layers(model, None, CPU) == 0
    attention.use(model, kernel)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch._dynamo.utils.counters.clear()
    assert compile_layers(model, True, CPU, backend="eager") == model.config.num_hidden_layers
    LabelledLogits(model).losses(batch).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_kernel_that_is_compiled_by_itself_is_so_within_compiled_layers():
    """`_flex` is left out of a layer's graph, and its own compilation goes on."""
    seen = []

    def backend(graph, _inputs):
        seen.append(graph)
        return graph.forward

    inner = torch.compile(lambda x: x * 2, backend=backend)

    @torch.compiler.disable
    def left_out(x):
        return inner(x)

    outer = torch.compile(lambda x: left_out(x) + 1, backend="eager")
    assert torch.equal(outer(torch.ones(3)), torch.full((3,), 3.0))
    assert len(seen) == 1


def test_a_compiled_loss_is_the_same():
    torch.manual_seed(2)
    logits = torch.randn(6, 50, dtype=torch.bfloat16)
    targets = torch.arange(6)
    assert compiled_loss(None, CPU) is token_loss
    compiled = torch.compile(token_loss, backend="eager")
    for reduction in ("none", "sum"):
        torch.testing.assert_close(compiled(logits, targets, reduction), token_loss(logits, targets, reduction))
    assert compiled_loss(True, CPU) is not token_loss
