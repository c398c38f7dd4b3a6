"""What an imitation begins with: the checkpoint of the one before, and rows that may be trained on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lion_ray.actors.student import ModelRef
from lion_ray.actors.trainer import job_of, read_rows
from lion_ray.config import RunConfig
from lion_ray.core.errors import TrainingError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ANSWER, INSTRUCTION, OK, QUARANTINED, table
from lion_ray.core.store import Manifest, RunStore
from lion_ray.pipeline import loop
from lion_ray.pipeline.loop import checkpoint, imitation
from lion_ray.pipeline.shard_stage import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose pools, and the teacher's answers to them, are committed: three iterations can be imitated."""
    config = RunConfig.model_validate(
        {
            "run_name": "small",
            "seed": 5,
            "data": {"pool": "pool.jsonl"},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "./student"},
            "imitation": {"learning_rate": 2e-5, "later_learning_rate": 1e-5},
        }
    )
    store = RunStore(str(tmp_path))
    store.claim()
    for parts, pool in enumerate(("heldout", "0", "1", "2"), start=1):
        store.stage(f"pool-{pool}").commit({"rows": 0, "parts": parts})
        store.stage(f"answers-{pool}").commit({"rows": 0, "parts": parts})
    return Run(config, tmp_path, store, Progress(io.StringIO()), SimpleNamespace())


async def test_every_imitation_goes_on_from_the_one_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[tuple[int, ModelRef, dict[str, Any]]] = []

    async def finetune(run: Run, iteration: int, start: ModelRef) -> Manifest:
        fits.append((iteration, start, job_of(run, iteration, start)))
        return {"heldout_loss_after": 1.0 / iteration}

    monkeypatch.setattr(loop, "finetune", finetune)
    trained = [await imitation(run, iteration) for iteration in (1, 2, 3)]
    assert [iteration for iteration, _, _ in fits] == [1, 2, 3]
    assert [start for _, start, _ in fits] == [ModelRef("base", source="./student"), *trained[:2]]
    assert trained == [ModelRef(f"iteration-{k}", folder=f"iteration-{k}/checkpoint/model") for k in (1, 2, 3)]
    assert [checkpoint(run, k) for k in (1, 2, 3)] == trained
    jobs = [job for _, _, job in fits]
    assert [job["start"] for job in jobs] == [start for _, start, _ in fits]
    assert [job["target"] for job in jobs] == [one.folder for one in trained]
    # Iteration k trains on what the one before wrote: pool k - 1, all of it.
    assert [job["rows"] for job in jobs] == [
        [(f"pool-{pool}/part-{n:05d}.parquet", f"answers-{pool}/part-{n:05d}.parquet") for n in range(pool + 2)]
        for pool in range(3)
    ]
    assert [job.get("heldout_before") for job in jobs] == [None, 1.0, 0.5]
    assert len({job["seed"] for job in jobs}) == 3
    assert [job["config"].learning_rate for job in jobs] == [2e-5, 1e-5, 1e-5]
    # All three are committed now.
    assert [await imitation(run, iteration) for iteration in (1, 2, 3)] == trained
    assert len(fits) == 3


def write(store: RunStore, asked: list[str], given: list[dict[str, Any]]) -> list[tuple[str, str]]:
    questions = ({"id": one, "text": f"Question {one}", "source": "seed", "iteration": 0} for one in asked)
    store.write_table("q.parquet", table(questions, INSTRUCTION))
    store.write_table("a.parquet", table(given, ANSWER))
    return [("q.parquet", "a.parquet")]


def test_what_was_quarantined_is_never_trained_on(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    given = [
        {"id": "a", "text": "Answer a", "status": OK, "finish_reason": "stop"},
        # Paid for, with a text, and no answer.
        {"id": "b", "text": "I cannot", "status": QUARANTINED, "reason": "filtered", "finish_reason": "content_filter"},
        {"id": "c", "text": "Cut", "status": OK, "finish_reason": "length"},
        {"id": "d", "text": "", "status": QUARANTINED, "reason": "timed out"},
    ]
    assert read_rows(store, write(store, list("abcd"), given)) == [
        {"instruction": "Question a", "answer": "Answer a", "finish_reason": "stop"},
        {"instruction": "Question c", "answer": "Cut", "finish_reason": "length"},
    ]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    parts = write(store, ["a"], [{"id": "b", "text": "Answer b", "status": OK}])
    with pytest.raises(TrainingError, match=r"a\.parquet does not answer q\.parquet"):
        read_rows(store, parts)
