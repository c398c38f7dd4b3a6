"""Every attention kernel gives the losses of a dense mask on packed rows; the choice falls on one that does."""

from __future__ import annotations

import pytest
import torch

from lion_ray.core.errors import ConfigError
from lion_ray.imitation.training import attention
from lion_ray.imitation.training.data import collate, encode, pack
from lion_ray.imitation.training.model import LabelledLogits, load_model
from lion_ray.models.prompter import Prompter
from tests.training.conftest import ROWS
from tests.training.test_loss import gemma, gradients

CPU = torch.device("cpu")


@pytest.fixture
def batch(tiny):
    samples = encode(ROWS, Prompter.load(tiny, "chat"), 128, "drop")[0]
    return collate(pack(samples[:8], 200))


def test_a_batch_knows_where_its_samples_begin(batch):
    flat = batch.position_ids.flatten()
    assert batch.starts.tolist() == [*(flat == 0).nonzero().flatten().tolist(), len(flat)]
    assert batch.longest == int(flat.max()) + 1


@pytest.mark.parametrize("kind", ["llama", "gemma"])  # gemma: a window of 8 keys in one of two layers
@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_a_kernel_gives_the_losses_of_a_dense_mask(kind, kernel, tiny, batch):
    model = gemma() if kind == "gemma" else load_model(tiny, CPU)
    logits = LabelledLogits(model.eval())
    with torch.no_grad():
        dense = logits.losses(batch)
        attention.use(model, kernel)
        torch.testing.assert_close(logits.losses(batch), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_borders_give_the_gradients_of_a_dense_mask(kind, tiny, batch):
    model = gemma() if kind == "gemma" else load_model(tiny, CPU)
    logits = LabelledLogits(model.train())
    logits.losses(batch).sum().backward()
    dense = gradients(model)
    attention.use(model, "varlen")
    logits.losses(batch).sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, dense[name], rtol=1e-4, atol=1e-5, msg=name)


def chosen(model, batch, wanted, monkeypatch, *, agreed=lambda good: good):
    """The choice as on a GPU that has both kernels."""
    monkeypatch.setattr(attention, "available", lambda model, device: ["varlen", "flex"])
    logits = LabelledLogits(model.eval())

    def losses():
        return logits.losses(batch)

    return attention.choose(model, wanted, losses, losses, CPU, agreed, print)


def test_the_first_kernel_that_is_right_is_taken(tiny, batch, monkeypatch):
    model = load_model(tiny, CPU)
    assert chosen(model, batch, "varlen", monkeypatch) == "varlen"
    assert model.config._attn_implementation == "lion_varlen"


def test_a_wrong_kernel_is_refused(tiny, batch, monkeypatch):
    right = attention._one_by_one

    def leaking(q, k, v, starts, longest, scale, left):
        return right(q, k, v, starts[[0, -1]], longest, scale, left)

    monkeypatch.setattr(attention, "_one_by_one", leaking)
    model = load_model(tiny, CPU)
    with pytest.raises(ConfigError, match="varlen cannot be used with LlamaForCausalLM on cpu: its gradients are off"):
        chosen(model, batch, "varlen", monkeypatch)
    monkeypatch.setattr(attention, "check_backward", lambda *_: None)
    with pytest.raises(ConfigError, match="its losses are off"):
        chosen(model, batch, "varlen", monkeypatch)
    assert model.config._attn_implementation == "sdpa"


def test_a_kernel_is_used_by_all_processes_or_none(tiny, batch, monkeypatch):
    with pytest.raises(ConfigError):
        chosen(load_model(tiny, CPU), batch, "varlen", monkeypatch, agreed=lambda good: False)


def test_flex_attention_cannot_train_on_a_cpu(tiny, batch, monkeypatch):
    with pytest.raises(ConfigError, match=r"imitation.attention: flex .*backward on CPU"):
        chosen(load_model(tiny, CPU), batch, "flex", monkeypatch)


def test_what_a_kernel_would_leave_out_keeps_it_from_a_model(tiny):
    llama = load_model(tiny, CPU)
    assert all(attention.supports(llama, kernel) for kernel in attention.ORDER)
    assert attention.supports(gemma(), "varlen")
    llama.config.attention_dropout = 0.1
    assert not any(attention.supports(llama, kernel) for kernel in attention.ORDER)
    llama.config.attention_dropout = 0.0
    llama.config.layer_types = ["chunked_attention", "full_attention"]
    assert [kernel for kernel in attention.ORDER if attention.supports(llama, kernel)] == ["flex"]


def test_on_a_cpu_nothing_is_tried(tiny, batch, monkeypatch):
    model = load_model(tiny, CPU)
    monkeypatch.setattr(attention, "use", None)
    assert chosen(model, batch, "auto", monkeypatch) == "sdpa"
    monkeypatch.undo()
    assert attention.available(model, CPU) == []
