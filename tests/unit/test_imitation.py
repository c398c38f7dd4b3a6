"""What an imitation begins with: the checkpoint of the one before, and rows that may be trained on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from lion_ray.actors.trainer import drawn, read_rows
from lion_ray.config import ImitationConfig, RunConfig
from lion_ray.core.errors import TrainingError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ANSWER, INSTRUCTION, OK, QUARANTINED, table
from lion_ray.core.store import Manifest, RunStore
from lion_ray.models.model_ref import ModelRef
from lion_ray.pipeline.loop import imitation
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stages.fine_tuning import FineTuning, job_of, student_after


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
    jobs: list[dict[str, Any]] = []

    async def fit(self: FineTuning, run: Run, iteration: int) -> Manifest:
        jobs.append(job_of(run, iteration))
        return {"heldout_loss_after": 1.0 / iteration}

    monkeypatch.setattr(FineTuning, "fit", fit)
    for iteration in (1, 2, 3):
        await imitation(run, iteration)
    trained = [ModelRef(f"iteration-{k}", folder=f"iteration-{k}/checkpoint/model") for k in (1, 2, 3)]
    assert [student_after(run, k) for k in (1, 2, 3)] == trained
    assert [job["iteration"] for job in jobs] == [1, 2, 3]
    assert [job["start"] for job in jobs] == [ModelRef("base", source="./student"), *trained[:2]]
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
    for iteration in (1, 2, 3):
        await imitation(run, iteration)
    assert len(jobs) == 3


def test_earlier_rows_are_those_of_the_pools_before(run: Run) -> None:
    jobs = [job_of(run, iteration) for iteration in (1, 2, 3)]
    assert [len(job["earlier"]) for job in jobs] == [0, 2, 5]
    assert jobs[2]["earlier"] == [*jobs[0]["rows"], *jobs[1]["rows"]]


def test_an_imitation_from_the_base_model_trains_on_all_rows_so_far(run: Run) -> None:
    as_published = [job_of(run, iteration) for iteration in (1, 2, 3)]
    run.config = run.config.model_copy(update={"imitation": ImitationConfig(start="base")})
    jobs = [job_of(run, iteration) for iteration in (1, 2, 3)]
    assert [job["start"] for job in jobs] == [ModelRef("base", source="./student")] * 3
    assert jobs[2]["rows"] == [part for job in as_published for part in job["rows"]]
    assert [job["earlier"] for job in jobs] == [[], [], []]
    assert [job["target"] for job in jobs] == [job["target"] for job in as_published]


@pytest.mark.parametrize("other", [{"replay": 1.0}, {"later_learning_rate": 1e-6}])
def test_an_imitation_anew_has_no_earlier_rows_to_add(other: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="leave out replay and later_learning_rate"):
        ImitationConfig.model_validate({"start": "base"} | other)


def test_preference_compares_answers_alone() -> None:
    for loss_on in ("assistant_turns", "all_tokens"):
        with pytest.raises(ValidationError, match="set loss_on to answer"):
            ImitationConfig(objective={"type": "preference"}, loss_on=loss_on)


def test_replayed_rows_are_drawn_by_the_seed_alone() -> None:
    rows = [{"instruction": str(number)} for number in range(20)]
    once = drawn(rows, 5, seed=3)
    assert once == drawn(rows, 5, seed=3)
    assert once != drawn(rows, 5, seed=4)
    assert len({row["instruction"] for row in once}) == 5, "none twice"
    assert len(drawn(rows, 50, seed=3)) == 20


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
        {"instruction": "Question a", "answer": "Answer a", "finish_reason": "stop", "messages": ()},
        {"instruction": "Question c", "answer": "Cut", "finish_reason": "length", "messages": ()},
    ]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    parts = write(store, ["a"], [{"id": "b", "text": "Answer b", "status": OK}])
    with pytest.raises(TrainingError, match=r"a\.parquet does not answer q\.parquet"):
        read_rows(store, parts)
