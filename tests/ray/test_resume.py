"""A run that ran out of money, was killed in its stages and started again ends as one that was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lion_ray.status import read_status
from tests.ray.harness import LATENCY, Job, kill, requests, wait_until_gone
from tests.ray.outcome import assert_same, bought_twice, journaled, table_of
from tests.ray.test_mistakes import told
from tests.stub_api import fetch_stats, stub_process

RICH = "budget.usd=1000"


def stage_conditions(job: Job) -> dict[str, Callable[[], bool]]:
    """For each stage, when a run is in the middle of it."""
    store = job.store

    def committed(stage: str) -> bool:
        return store.exists(f"{stage}/manifest.json")

    def training() -> bool:
        seen = store.read_json("iteration-1/checkpoint/progress.json")
        return seen is not None and seen["step"] >= 12 and not committed("iteration-1/checkpoint")

    def generating() -> bool:
        if not committed("iteration-1/verdicts"):
            return False
        # The first look remembers where generation began.
        started = began.setdefault("requests", requests(job.base_url))
        return requests(job.base_url) > started and not committed("pool-1")

    began: dict[str, int] = {}
    return {
        "answering": lambda: bool(store.stage("answers-0").part_indexes()) and not committed("answers-0"),
        "training": training,
        "judging": lambda: (
            bool(store.stage("iteration-1/verdicts").part_indexes()) and not committed("iteration-1/verdicts")
        ),
        "generating": generating,
    }


@pytest.mark.parametrize(
    "stages",
    [
        # A kill while it answers is what running out of money is too; while it generates: see test_object_store.
        pytest.param(("training", "judging"), id="some"),
        pytest.param(("answering", "training", "judging", "generating"), id="all", marks=pytest.mark.long),
    ],
)
def test_out_of_money_then_killed(stages: tuple[str, ...], tmp_path: Path, undisturbed: Job) -> None:
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url)
        code, line = told(job, "budget.usd=0.3")
        assert code == 8
        assert "the budget of $0.30 is spent" in line
        assert "teacher answers" in line, "how far it got"
        assert "finishing would cost about $" in line
        paid_for = set(journaled(job.store))
        bought = sum(one["calls"] for one in read_status(job.store).spending)
        spent = sum(one["usd"] for one in read_status(job.store).spending)
        assert 0.2 < spent <= 0.3

        known: set[str] = set()
        for stage in stages:
            process = job.run_until(stage_conditions(job)[stage], RICH)
            if not known:
                assert not fetch_stats(base_url)["repeated"], "what the first attempt paid for was not bought again"
            children = kill(process)
            before = journaled(job.store)
            assert not job.store.exists("iteration-2/result.json"), f"the run was over before it was killed in {stage}"
            wait_until_gone(children)  # no engine, no server, no Ray process outlives a killed driver
            assert max(before.values(), default=1) == 1
            known |= set(before)
        job.finish(RICH)
        after = journaled(job.store)
        twice = {key for key in known | paid_for if after[key] > 1}
        assert not twice, "a journaled call was sent again"
        # Only what was in flight at a kill may have been bought twice: two calls at most for each.
        assert bought_twice(base_url) <= 2 * len(stages)
    assert_same(job.store, undisturbed.store)
    status = read_status(job.store)
    assert status.state == "finished"
    assert {one["role"] for one in status.spending} == {"teacher", "referee", "generator"}
    assert {one["iteration"] for one in status.spending} == {0, 1, 2}
    assert sum(one["calls"] for one in status.spending) > bought


def test_the_same_command_on_a_finished_run_does_nothing(undisturbed: Job) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path(undisturbed.store.path()).rglob("manifest.json")}
    # The stub is gone: a run that sent a single call would fail.
    undisturbed.finish()
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_what_came_out(undisturbed: Job) -> None:
    store = undisturbed.store
    result = store.read_json("iteration-1/result.json")
    assert result["train_rows"] == result["cache_rows"] == 20
    assert result["hard"] + result["easy"] + sum(result["quarantined"].values()) == 20
    assert result["loss_after"] < result["loss_before"]
    kinds = result["generation"]
    assert kinds["hard"]["accepted"] == kinds["easy"]["accepted"] == 4
    pool = table_of(store, "pool-1")
    assert Counter(pool["source"].to_pylist()) == {"hard": 4, "easy": 4}
    hard = set(store.read_table("iteration-1/verdicts/hard.parquet")["id"].to_pylist())
    parents = {row["parent"] for row in pool.to_pylist() if row["source"] == "hard"}
    assert parents <= hard
    answers = table_of(store, "iteration-1/student")
    assert set(answers["version"].to_pylist()) == {"iteration-1"}
    last = store.read_json("iteration-2/result.json")
    assert last["train_rows"] == 8
    assert last["quality_heldout"]["ratio"] > 0
