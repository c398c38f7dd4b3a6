"""The `preference` objective: its loss against float64 by hand, its reference, and what a fit makes of pairs."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_ray.config.plugins import PreferenceConfig
from lion_ray.imitation.objectives.cross_entropy import CrossEntropy
from lion_ray.imitation.objectives.preference import Preference
from lion_ray.imitation.training.data import REFERENCE, Batch, Sample, collate, digest, encode, pack, read_rows
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import World, load_model
from lion_ray.imitation.training.reference import log_probabilities
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.prompter import Prompter
from lion_ray.testing import ObjectiveContract
from tests.training.conftest import ROWS, write_rows
from tests.training.test_processes import same_bits

CPU = torch.device("cpu")
VOCABULARY = 11
PAIRS = [
    {
        "instruction": f"Say number {i}.",
        "answer": f"It is {i}, of course.",
        "rejected": f"I cannot say {i} to you.",
    }
    for i in range(40, 52)
]
BOTH = [*ROWS[:12], *PAIRS]


def preference(**changes: Any) -> PreferenceConfig:
    return PreferenceConfig(type="preference", **changes)


def pair(prompt: list[int], chosen: list[int], rejected: list[int], reference: tuple[float, float]) -> Sample:
    columns = {REFERENCE: reference}
    return Sample([*prompt, *chosen], len(prompt), columns, (), Sample([*prompt, *rejected], len(prompt)))


SAMPLES = [
    pair([3, 4], [5, 6, 2], [7, 2], (-4.0, -9.5)),
    Sample([7, 8, 9, 10, 1, 2], 1),
    pair([5], [5, 1, 1, 2], [6], (-8.0, -1.25)),
]
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
"""Logits of the next token by the token before."""


def logits(batch: Batch) -> torch.Tensor:
    return TABLE[batch.input_ids.flatten()[batch.positions]]


def by_hand(sample: Sample, config: PreferenceConfig) -> float:
    """The loss of one sample times its answer's tokens, token by token in Python's floats."""

    def log_p(one: Sample) -> tuple[float, int]:
        found = 0.0
        for place in range(one.prompt, len(one.ids)):
            row = TABLE[one.ids[place - 1]].tolist()
            found += row[one.ids[place]] - math.log(sum(math.exp(each) for each in row))
        return found, len(one.ids) - one.prompt

    chosen, length = log_p(sample)
    if sample.rejected is None:
        return -chosen
    rejected, other = log_p(sample.rejected)
    before = sample.columns[REFERENCE]
    gains = chosen - before[0], rejected - before[1]
    if config.length_normalised:
        gains = gains[0] / length, gains[1] / other
    margin = config.beta * (gains[0] - gains[1])
    return length * math.log(1 + math.exp(-margin)) - config.sft_weight * chosen


@pytest.mark.parametrize("changes", [{}, {"beta": 2.5, "length_normalised": True}, {"sft_weight": 0.0, "beta": 0.5}])
def test_the_loss_is_the_formula_s(changes: dict[str, Any]) -> None:
    config = preference(**changes)
    found = Preference(config).loss(logits, collate([SAMPLES[:2], SAMPLES[2:]]))
    assert float(found) == pytest.approx(sum(by_hand(one, config) for one in SAMPLES), rel=1e-12)


def test_without_pairs_it_is_plain_imitation() -> None:
    alone = [one._replace(rejected=None, columns={}) for one in SAMPLES]
    batch, plain = collate([alone]), CrossEntropy()
    assert torch.equal(Preference(preference()).loss(logits, batch), plain.loss(logits, batch))
    assert Preference(preference()).count(alone) == plain.count(alone)


class TestPreference(ObjectiveContract):
    def make(self) -> Preference:
        return Preference(preference())

    def samples(self) -> list[Sample]:
        return SAMPLES


def test_a_pair_lies_in_one_row_however_long_it_is() -> None:
    rows = pack(SAMPLES, 6)
    assert sorted(map(len, rows)) == [1, 1, 1], "the first pair takes 9 tokens, the second 7"
    batch = collate(rows)
    assert batch.input_ids.shape == (3, 9)
    assert int(batch.rejected.sum()) == 3
    for row in batch.position_ids.tolist():
        assert row[0] == 0, "each answer of a pair is a sequence of its own"
    assert digest(SAMPLES) != digest([one._replace(rejected=None) for one in SAMPLES])


def test_pairs_that_cannot_be_used_are_counted(tiny: Path) -> None:
    prompter = Prompter.load(str(tiny), "chat", ".")
    rows = [PAIRS[0], PAIRS[1] | {"rejected": "  "}, PAIRS[2] | {"rejected_finish_reason": "length"}]
    samples, dropped = encode(rows, prompter, 64, "drop")
    assert dropped == {"rejected answer: empty answer": 1}
    ended, cut = (one.rejected for one in samples)
    assert ended is not None
    assert cut is not None
    assert ended.ids[-1] != cut.ids[-1], "nothing is learned of the end of an answer that was cut off"


def margins(model_dir: Path, spec: TrainSpec) -> list[tuple[float, float]]:
    """Log-probabilities of both answers of PAIRS under a model."""
    samples, _ = encode(PAIRS, Prompter.load(spec.model_dir, "chat", "."), spec.max_length, "drop")
    return log_probabilities(load_model(str(model_dir), CPU), samples, spec, CPU, World())


def test_a_fit_begins_at_its_reference_and_raises_the_better_answers(
    make_spec: Any, tiny: Path, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    spec = make_spec(objective=preference(sft_weight=0.0), precision="fp32", batch_size=12, epochs=6)
    train(spec, rows=PAIRS, report=lambda metrics, folder: told.append(metrics), device=CPU)
    assert told[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the first step's ratios are 1"
    assert told[-1]["loss"] < 0.6
    written = json.loads((Path(spec.output_dir) / "training.json").read_text())["metrics"]
    assert (written["samples"], written["pairs"]) == (len(PAIRS), len(PAIRS))
    gains = [
        (after[0] - before[0]) - (after[1] - before[1])
        for before, after in zip(margins(tiny, spec), margins(Path(spec.output_dir), spec), strict=True)
    ]
    assert min(gains) > 0


def test_the_supervised_term_keeps_the_better_answers_likely(make_spec: Any, tiny: Path) -> None:
    spec = make_spec("kept", objective=preference(sft_weight=1.0), batch_size=12, epochs=6)
    train(spec, rows=PAIRS, report=lambda metrics, folder: None, device=CPU)
    after = margins(Path(spec.output_dir), spec)
    assert sum(one[0] for one in after) > sum(one[0] for one in margins(tiny, spec))


@pytest.mark.parametrize("changes", [{}, {"sharding": "none", "micro_batch_rows": 1}], ids=["sharded", "replicated"])
def test_two_processes_learn_of_pairs_what_one_learns(
    make_spec: Any, run_fit: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    common = {"objective": preference(), "rows": write_rows(tmp_path / "both.jsonl", BOTH)}
    losses = []
    for name, processes in (("one", 1), ("two", 2)):
        codes, keep = run_fit(make_spec(name, **common, **changes), processes)
        assert codes == [0] * processes
        losses.append([json.loads(line)["loss"] for line in (keep / "steps-0.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_killed_fit_of_pairs_ends_with_the_same_bits(make_spec: Any, run_fit: Any, tmp_path: Path) -> None:
    common = {"objective": preference(), "rows": write_rows(tmp_path / "both.jsonl", BOTH)}
    assert run_fit(make_spec("whole", **common))[0] == [0]
    spec = make_spec("killed", **common)
    codes, keep = run_fit(spec, kill_at=5)
    assert codes == [-signal.SIGKILL]
    progress = json.loads((keep / "step-5" / "progress.json").read_text())
    assert len(progress["reference"]) == len(PAIRS), "computed once per fit, and kept with it"
    assert run_fit(spec, restore=keep / "step-5")[0] == [0]
    assert same_bits(tmp_path / "whole", tmp_path / "killed")
    assert len(read_rows(spec.rows)) == len(BOTH)
