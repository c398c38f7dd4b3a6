"""What a batch's loss is, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from lion_ray.core.errors import ModelError
from lion_ray.imitation.training.balance import micro_batches, share_out
from lion_ray.imitation.training.data import Sample, collate, encode, pack
from lion_ray.imitation.training.model import LabelledLogits, World, check_packing, load_model
from lion_ray.models.prompter import Prompter
from tests.training.conftest import ROWS

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny):
    return load_model(tiny, CPU).train()


@pytest.fixture(scope="module")
def samples(tiny):
    return encode(ROWS, Prompter.load(tiny, "chat"), 128, "drop")[0]


def gemma():
    """Sliding-window layers, a capped and scaled head: what a plain causal mask or a head of ours would get wrong."""
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
        initializer_range=0.2,
    )
    return Gemma3ForCausalLM(config)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def plain_loss(model, sample):
    """One sample by itself, all logits, the textbook way."""
    logits = model(torch.tensor([sample.ids])).logits[0]
    return F.cross_entropy(logits[sample.prompt - 1 : -1], torch.tensor(sample.ids[sample.prompt :]), reduction="sum")


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_packed_and_plain_have_the_same_loss_and_gradients(kind, model, samples):
    model = gemma() if kind == "gemma" else model
    plain = sum(plain_loss(model, sample) for sample in samples)
    plain.backward()
    expected = gradients(model)
    logits = LabelledLogits(model)
    rows = pack(samples, 256)
    assert len(rows) < len(samples) / 3
    total = torch.zeros(())
    for batch in micro_batches([rows], 3, World()):
        loss = logits.losses(batch).sum()
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, plain.detach(), rtol=1e-5, atol=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_samples_in_a_row_cannot_see_one_another(model, samples):
    logits = LabelledLogits(model.eval())
    second = samples[1]
    alone = logits.losses(collate([[second]])).sum()
    for first in (samples[0], Sample([9] * 20, 20), Sample([300] * 20, 20)):
        # No label in the first sample: the loss is the second's.
        unlabelled = Sample(first.ids, len(first.ids))
        torch.testing.assert_close(logits.losses(collate([[unlabelled, second]])).sum(), alone, rtol=1e-6, atol=1e-5)


def test_logits_are_made_at_labelled_positions_only(model, samples):
    logits = LabelledLogits(model)
    widths = []
    model.lm_head.register_forward_hook(lambda _module, args, _out: widths.append(tuple(args[0].shape)))
    logits(collate(pack(samples, 128)))
    labelled = sum(sample.labelled for sample in samples)
    assert widths == [(labelled, 64)]
    assert logits.head_rows == labelled < sum(len(sample.ids) for sample in samples) * 0.8
    # Outside of a loss the head is the model's own.
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, model.config.vocab_size)


def test_a_share_without_rows_adds_nothing_and_still_has_gradients(model):
    loss = LabelledLogits(model).losses(collate([])).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_every_process_takes_as_many_micro_batches_and_together_they_take_all(samples):
    rows = share_out(samples[:7], 64, 3)
    shares = [list(micro_batches(rows, 2, World(rank, 3))) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert sum(len(batch.targets) for share in shares for batch in share) == sum(s.labelled for s in samples[:7])


def test_a_model_that_lets_packed_samples_mix_is_refused(samples):
    config = MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=4, initializer_range=0.5)
    with pytest.raises(ModelError, match="Mamba"):
        check_packing(MambaForCausalLM(config), samples, CPU)
    check_packing(gemma(), samples, CPU)


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path, CPU)
    assert "\n" not in str(caught.value)


def test_weights_are_float32_whatever_the_folder_says(tiny, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path, CPU).parameters()} == {torch.float32}
