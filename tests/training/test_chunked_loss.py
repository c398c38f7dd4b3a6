"""A cross-entropy that never makes all logits at once is that of all of them, with its gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from lion_ray.config import LoraConfig
from lion_ray.config.plugins import PreferenceConfig
from lion_ray.imitation.objectives.cross_entropy import CrossEntropy
from lion_ray.imitation.objectives.preference import Preference
from lion_ray.imitation.training.data import REFERENCE, collate, encode, pack
from lion_ray.imitation.training.loss import rows_at_once
from lion_ray.imitation.training.model import LabelledLogits, add_adapters, load_model
from lion_ray.models.prompter import Prompter
from tests.training.conftest import ROWS
from tests.training.test_loss import gemma

CPU = torch.device("cpu")


@pytest.fixture
def samples(tiny):
    return encode(ROWS, Prompter.load(tiny, "chat"), 128, "drop")[0]


def models(kind, tiny):
    if kind == "gemma":  # tied to the embeddings, with a cap on logits
        return gemma()
    model = load_model(tiny, CPU)
    if kind == "adapted head":
        torch.manual_seed(3)
        model = add_adapters(model, LoraConfig(rank=4, target_modules=("lm_head", "q_proj"), dropout=0.0))
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.1)
    return model


def widest(model):
    """Counts the most rows that the head takes at once."""
    most = [0]
    head = model.get_output_embeddings()
    inner = head.forward

    def counted(hidden, *rest):
        most[0] = max(most[0], len(hidden))
        return inner(hidden, *rest)

    head.forward = counted
    return most


def loss_and_gradients(model, objective, batch, rows):
    most = widest(model)
    loss = objective.loss(LabelledLogits(model, rows), batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found, most[0]


@pytest.mark.parametrize("kind", ["llama", "gemma", "adapted head"])
def test_cross_entropy_in_chunks_is_the_whole(kind, tiny, samples):
    model = models(kind, tiny).train()
    batch = collate(pack(samples, 256))
    whole, expected, all_rows = loss_and_gradients(model, CrossEntropy(), batch, 0)
    chunked, found, most = loss_and_gradients(model, CrossEntropy(), batch, 70)
    assert (all_rows, most) == (len(batch.targets), 70)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_preferences_in_chunks_are_the_whole(tiny, samples):
    model = load_model(tiny, CPU).train()
    pairs = [
        one._replace(rejected=two, columns={REFERENCE: (-10.0, -12.0)})
        for one, two in zip(samples[:6], samples[6:12], strict=True)
    ]
    batch = collate(pack([*pairs, *samples[12:]], 512))
    objective = Preference(PreferenceConfig(type="preference"))
    whole, expected, _ = loss_and_gradients(model, objective, batch, 0)
    chunked, found, most = loss_and_gradients(model, objective, batch, 64)
    assert most == 64
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-4)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_model_that_changes_its_logits_goes_without_chunks(samples):
    torch.manual_seed(1)
    config = GraniteConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=4.0,
    )
    model = GraniteForCausalLM(config)
    batch = collate(pack(samples, 256))
    whole, _, _ = loss_and_gradients(model, CrossEntropy(), batch, 0)
    found, _, most = loss_and_gradients(model, CrossEntropy(), batch, 70)
    assert most == len(batch.targets)
    assert torch.equal(found, whole)


def test_a_share_without_rows_has_gradients_in_chunks_too(tiny):
    model = load_model(tiny, CPU)
    loss, found, _ = loss_and_gradients(model, CrossEntropy(), collate([]), 16)
    assert loss == 0.0
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in found.values())


def test_the_model_s_own_head_stays(tiny, samples):
    model = gemma()
    cap = model.config.final_logit_softcapping
    LabelledLogits(model, 8).losses(collate(pack(samples, 256)))
    assert model.config.final_logit_softcapping == cap
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 400)


def test_how_many_rows():
    gpu = torch.device("cuda", 0)
    assert rows_at_once(None, 151_936, CPU) == 0
    assert rows_at_once(100, 151_936, CPU) == 100
    assert rows_at_once(0, 151_936, gpu) == 0
    assert rows_at_once(None, 151_936, gpu) == 1536
    assert rows_at_once(None, 32_000, gpu) == 8192
