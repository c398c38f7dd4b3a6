"""Objectives: the built-in one's contract, and that a fit minimises what it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lion_ray.config.plugins import Own
from lion_ray.core.errors import ConfigError
from lion_ray.imitation.objectives.base import Logits, Objective
from lion_ray.imitation.objectives.cross_entropy import CrossEntropy
from lion_ray.imitation.training.data import Batch, Sample
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.testing import ObjectiveContract
from tests.training.conftest import ROWS

CPU = torch.device("cpu")


class TestCrossEntropy(ObjectiveContract):
    def make(self) -> CrossEntropy:
        return CrossEntropy()


class Scaled(CrossEntropy):
    """Cross-entropy by sample, times a column."""

    columns: tuple[str, ...] = ("weight",)

    def loss(self, logits: Logits, batch: Batch) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(logits(batch), batch.targets, reduction="none")
        weights = torch.tensor([float(one["weight"]) for one in batch.columns])
        return (losses * weights[batch.sample]).sum()

    def count(self, samples: Iterable[Sample]) -> float:
        return sum(float(one.columns["weight"]) * one.labelled for one in samples)


class TestScaled(ObjectiveContract):
    def make(self) -> Objective:
        return Scaled()

    def columns(self, number: int) -> dict[str, Any]:
        return {"weight": number + 1}


def fitted(spec: TrainSpec, rows: list[dict[str, Any]]) -> list[float]:
    """The losses of a fit's steps."""
    losses: list[float] = []

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        losses.append(metrics["loss"])

    train(spec, rows=rows, report=report, device=CPU)
    return losses


def test_a_fit_minimises_the_objective_of_its_configuration(make_spec: Any, tmp_path: Path) -> None:
    own = Own(import_path=f"{__name__}:Scaled")
    plain = fitted(make_spec(output_dir=str(tmp_path / "plain")), ROWS)
    even = fitted(make_spec(output_dir=str(tmp_path / "even"), objective=own), [row | {"weight": 2} for row in ROWS])
    assert even == pytest.approx(plain, rel=1e-5), "weights that are all alike change nothing"
    half = [row | {"weight": float(number % 2 == 0)} for number, row in enumerate(ROWS)]
    assert fitted(make_spec(output_dir=str(tmp_path / "half"), objective=own), half) != pytest.approx(plain, rel=1e-4)


def test_a_spec_with_an_objective_is_another_fit_and_one_without_is_what_it_was(make_spec: Any, tmp_path: Path) -> None:
    spec: TrainSpec = make_spec()
    other = dataclasses.replace(spec, objective=Own(import_path=f"{__name__}:Scaled", options={}))
    assert spec.fingerprint("x") != other.fingerprint("x")
    other.save(tmp_path / "spec.json")
    assert TrainSpec.load(tmp_path / "spec.json") == other
    assert "objective" in other.to_json()


def test_an_objective_s_missing_column_is_told(tmp_path: Path) -> None:
    from lion_ray.actors.trainer import read_rows
    from lion_ray.core.records import ANSWER, INSTRUCTION, table
    from lion_ray.core.store import RunStore

    store = RunStore(str(tmp_path))
    store.write_table("q.parquet", table([{"id": "1", "text": "q", "source": "hard", "iteration": 1}], INSTRUCTION))
    store.write_table("a.parquet", table([{"id": "1", "text": "a", "status": "ok"}], ANSWER))
    (row,) = read_rows(store, [("q.parquet", "a.parquet")], columns=("source",))
    assert row["source"] == "hard"
    with pytest.raises(ConfigError, match="it needs the column 'colour'"):
        read_rows(store, [("q.parquet", "a.parquet")], columns=("colour",))
