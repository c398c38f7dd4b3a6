"""The policy gradient of on-policy rounds: its loss against float64 by hand, its reference, and what a fit learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_ray.config.plugins import PolicyGradientConfig
from lion_ray.imitation.objectives.policy_gradient import ADVANTAGE, SAMPLED, PolicyGradient
from lion_ray.imitation.training import fit as fitting
from lion_ray.imitation.training.data import REFERENCE, Batch, Sample, collate, digest, encode
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import World, load_model
from lion_ray.imitation.training.reference import token_log_probabilities, with_reference
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.prompter import Prompter
from tests.training.test_preference import TABLE, logits

CPU = torch.device("cpu")
CONFIG = PolicyGradientConfig(clip=0.2, importance_cap=2.0)


def sample(prompt: list[int], answer: list[int], advantage: float, before: list[float], engine: list[float]) -> Sample:
    return Sample([*prompt, *answer], len(prompt), {ADVANTAGE: advantage, REFERENCE: before, SAMPLED: engine})


SAMPLES = [
    sample([3, 4], [5, 6, 2], 0.6, [-2.0, -9.5, -3.0], [-2.0, -9.4, -3.5]),
    sample([5], [5, 1, 1, 2], -0.4, [-1.0, -2.5, -2.0, -6.0], [-3.0, -2.5, -2.0, -6.0]),
    sample([7], [2], 0.3, [-2.0], [-2.0, -1.0]),  # cut: the engine sampled more
]


def by_hand(one: Sample) -> float:
    found = 0.0
    for place in range(one.prompt, len(one.ids)):
        row = TABLE[one.ids[place - 1]].tolist()
        now = row[one.ids[place]] - math.log(sum(math.exp(each) for each in row))
        before, engine = (one.columns[name][place - one.prompt] for name in (REFERENCE, SAMPLED))
        ratio, advantage = math.exp(now - before), one.columns[ADVANTAGE]
        gained = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        found -= min(math.exp(before - engine), 2.0) * gained
    return found


@pytest.mark.parametrize("rows", [[SAMPLES], [[one] for one in SAMPLES], [SAMPLES[:1], SAMPLES[1:]]])
def test_the_loss_is_the_sum_by_hand_however_it_is_packed(rows: list[list[Sample]]) -> None:
    objective = PolicyGradient(CONFIG)
    loss = objective.loss(logits, collate(rows))
    assert float(loss) == pytest.approx(sum(map(by_hand, SAMPLES)), rel=1e-12)
    assert objective.count(SAMPLES) == 8


def test_its_gradient_is_that_of_the_clipped_objective() -> None:
    table = TABLE.clone().requires_grad_()

    def seen(batch: Batch) -> torch.Tensor:
        return table[batch.input_ids.flatten()[batch.positions]]

    PolicyGradient(CONFIG).loss(seen, collate([SAMPLES])).backward()
    # By differences: the loss by hand reads TABLE.
    for place in ((4, 5), (5, 1), (7, 2), (0, 0)):
        sides = []
        for step in (1e-6, -1e-6):
            TABLE[place] += step
            sides.append(sum(map(by_hand, SAMPLES)))
            TABLE[place] -= step
        assert float(table.grad[place]) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-6)  # type: ignore[index]


def rewarded_rows(prompter: Prompter, count: int = 12) -> list[dict[str, Any]]:
    """Two answers to each instruction, a good and a poor one, as an engine would have sampled them."""
    rows = []
    for number in range(count):
        for text, advantage in ((f"It is {number}.", 0.5), ("I cannot say.", -0.5)):
            tokens = prompter.completion_ids(text, complete=True)
            rows.append(
                {
                    "instruction": f"Say number {number}.",
                    "answer": text,
                    "tokens": tokens,
                    "advantage": advantage,
                    "logprobs": [-3.0] * len(tokens),
                }
            )
    return rows


@pytest.fixture
def spec(tiny: Path, tmp_path: Path) -> TrainSpec:
    return TrainSpec(
        model_dir=str(tiny),
        output_dir=str(tmp_path / "out"),
        prompt="instruction",
        epochs=1,
        batch_size=8,
        max_length=128,
        learning_rate=1e-3,
        schedule="constant",
        warmup_ratio=0.0,
        precision="fp32",
        truncated="keep",
        objective=PolicyGradientConfig(),
    )


def test_an_answer_is_learned_as_the_tokens_that_were_sampled(spec: TrainSpec) -> None:
    prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
    row = rewarded_rows(prompter)[0]
    odd = row | {"tokens": [5, 5, 6], "finish_reason": "length"}
    (plain, other), dropped = encode([row, odd], prompter, 128, "keep")
    assert not dropped
    assert other.ids[other.prompt :] == [5, 5, 6]
    assert plain.ids[: plain.prompt] == other.ids[: other.prompt]
    assert digest([plain]) != digest([other])


def test_the_ratio_is_exactly_1_in_the_first_step(spec: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: list[torch.Tensor] = []
    loss = PolicyGradient.loss

    def watched(self: PolicyGradient, model: Any, batch: Batch) -> torch.Tensor:
        now = torch.log_softmax(model(batch), -1)[torch.arange(len(batch.targets)), batch.targets]
        before = now.new_tensor([one for columns in batch.columns for one in columns[REFERENCE]])
        ratios.append(torch.exp(now - before).detach())
        return loss(self, model, batch)

    monkeypatch.setattr(PolicyGradient, "loss", watched)
    steps: list[int] = []
    prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
    metrics = train(spec, rows=rewarded_rows(prompter), report=lambda seen, _: steps.append(len(ratios)))
    assert metrics["steps"] == 3
    first, later = torch.cat(ratios[: steps[0]]), torch.cat(ratios[steps[0] :])
    assert torch.equal(first, torch.ones_like(first))
    assert not torch.equal(later, torch.ones_like(later))
    assert metrics["engine_gap_max"] >= metrics["engine_gap_mean"] > 0


def test_the_better_answers_become_likelier(spec: TrainSpec) -> None:
    prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
    rows = rewarded_rows(prompter)
    samples, _ = encode(rows, prompter, spec.max_length, "keep")

    def likelihoods(folder: str) -> list[float]:
        found = token_log_probabilities(load_model(folder, CPU), samples, spec, CPU, World(0, 1))
        assert [len(one) for one in found] == [one.labelled for one in samples]
        return [sum(one) for one in found]

    before = likelihoods(spec.model_dir)
    train(spec, rows=rows, report=lambda *_: None)
    after = likelihoods(spec.output_dir)
    gains = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert sum(gains[::2]) > 0 > sum(gains[1::2])


def test_a_killed_round_goes_on_with_the_probabilities_of_its_start(spec: TrainSpec, tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.training.test_processes import same_bits

    prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
    rows = rewarded_rows(prompter)
    whole = replace(spec, output_dir=str(tmp_path / "whole"))
    train(whole, rows=rows, report=lambda *_: None)
    saved = tmp_path / "saved"

    class KilledError(Exception):
        pass

    def kill(metrics: dict[str, Any], folder: Path | None) -> None:
        if folder is not None:
            folder.rename(saved)
            raise KilledError

    cut = replace(spec, output_dir=str(tmp_path / "cut"), checkpoint_every_steps=2)
    with pytest.raises(KilledError):
        train(cut, rows=rows, report=kill)
    train(replace(cut, checkpoint_every_steps=50), rows=rows, report=lambda *_: None, restore=saved)
    assert same_bits(tmp_path / "whole", tmp_path / "cut")


def test_reference_columns_are_kept_beside_the_others() -> None:
    (one,) = with_reference([Sample([1, 2], 1, {ADVANTAGE: 1.0})], [[-0.5]], per_token=True)
    assert one.columns == {ADVANTAGE: 1.0, REFERENCE: [-0.5]}
    assert fitting.PolicyGradient is PolicyGradient
