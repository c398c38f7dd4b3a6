"""A fit against the textbook: one answer at a time, nothing packed, and the optimizer's published defaults.

AdamW: Loshchilov and Hutter, ICLR 2019; its defaults and clipping by the whole gradient's norm are those of PyTorch and
of the paper's recipe.
"""

from __future__ import annotations

import pytest
import torch

from lion_ray.config import ImitationConfig
from lion_ray.imitation.training.data import encode, step_batches
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import load_model
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.prompter import Prompter
from tests.training.conftest import ROWS, weights

CPU = torch.device("cpu")
CLIP = 4.5
"""Of the tiny model's gradients some are longer, and some are not."""


def textbook(spec):
    """The weights by name, and the gradient's norm at each step, before it was clipped."""
    model = load_model(spec.model_dir, CPU).train()
    samples, _ = encode(ROWS, Prompter.load(spec.model_dir, spec.prompt), spec.max_length, spec.truncated)
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = []
    batches = step_batches(len(samples), spec.epochs, spec.batch_size, spec.seed, start=0)
    for step, indices in enumerate(batches, start=1):
        labelled = sum(samples[i].labelled for i in indices)
        for i in indices:
            ids = torch.tensor([samples[i].ids])
            # An answer's tokens, each from all before it.
            first = ids.shape[1] - samples[i].labelled
            scores = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
            (-scores.gather(1, ids[0, first:, None]).sum() / labelled).backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        norms.append(norm)
        with torch.no_grad():
            for name, p in model.named_parameters():
                gradient = p.grad * min(1.0, spec.max_grad_norm / norm)
                average[name] = 0.9 * average[name] + 0.1 * gradient
                square[name] = 0.999 * square[name] + 0.001 * gradient**2
                p.mul_(1 - spec.learning_rate * spec.weight_decay)
                p -= (
                    spec.learning_rate
                    * (average[name] / (1 - 0.9**step))
                    / ((square[name] / (1 - 0.999**step)).sqrt() + 1e-8)
                )
        model.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}, norms


@pytest.mark.parametrize(("weight_decay", "max_grad_norm"), [(0.0, 1e9), (0.1, 1e9), (0.0, CLIP)])
def test_a_fit_takes_the_textbooks_steps(make_spec, tmp_path, weight_decay, max_grad_norm):
    spec = make_spec(
        epochs=2,
        warmup_ratio=0.0,
        schedule="constant",
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
    )
    steps = []
    train(spec, rows=ROWS, report=lambda step, _: steps.append(step), device=CPU)
    expected, norms = textbook(spec)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-3)
    if max_grad_norm == CLIP:
        assert min(norms) < CLIP < max(norms), "some steps are clipped, and some are not"
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5, msg=name)


def test_the_recipes_defaults_are_the_papers():
    spec = TrainSpec.of(ImitationConfig(), model_dir="m", output_dir="o")
    assert (spec.epochs, spec.learning_rate, spec.batch_size, spec.max_length) == (3, 2e-5, 128, 1024)
    assert (spec.schedule, spec.warmup_ratio, spec.weight_decay, spec.max_grad_norm) == ("cosine", 0.03, 0.0, 1.0)
