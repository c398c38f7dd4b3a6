"""A run that ran out of money, was killed in its stages and started again ends as one that was left alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lion_ray.pipeline.status import read_status
from tests.object_store import BUCKET, s3_server
from tests.ray.harness import LATENCY, REFERENCE, ROOT, UNJUDGED, Job, kill, requests, wait_until_gone
from tests.ray.outcome import assert_same, bought_twice, journaled, table_of
from tests.ray.test_mistakes import told
from tests.stub_api import fetch_stats, stub_process

RICH = "budget.usd=1000"


def written_steps(folder: Path, name: str) -> list[int]:
    """The steps of every record with this number in a folder of TensorBoard's, doubles too, in the files' order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [one for file in sorted(folder.iterdir()) for one in EventFileLoader(str(file)).Load()]
    return [event.step for event in events if name in [value.tag for value in event.summary.value]]


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


def spend_the_budget(job: Job) -> Counter[str]:
    """A first attempt that runs out of money while the teacher answers; what it bought."""
    code, line = told(job, "budget.usd=0.3")
    assert code == 8
    assert "the budget of $0.30 is spent" in line
    assert "teacher answers" in line, "how far it got"
    assert "finishing would cost about $" in line
    assert 0.2 < sum(one["usd"] for one in read_status(job.store).spending) <= 0.3
    return journaled(job.store)


def kill_in(job: Job, stage: str, beside: Callable[[], None] = lambda: None) -> Counter[str]:
    """An attempt that is killed in the middle of a stage, after `beside` was done; what all attempts bought."""
    process = job.run_until(stage_conditions(job)[stage], RICH)
    try:
        beside()
    finally:
        children = kill(process)
    bought = journaled(job.store)
    assert not job.store.exists("iteration-2/result.json"), f"the run was over before it was killed in {stage}"
    wait_until_gone(children)  # no engine, no server, no Ray process outlives a killed driver
    assert max(bought.values(), default=1) == 1
    return bought


def assert_ended_well(job: Job, bought: list[Counter[str]], undisturbed: Job) -> None:
    """It came to what the undisturbed run came to, and paid once for what its attempts had `bought`."""
    after = journaled(job.store)
    twice = {key for before in bought for key in before if after[key] > 1}
    assert not twice, "a journaled call was sent again"
    # Only what was in flight at a kill may have been bought twice: two calls at most for each; the first ended itself.
    assert bought_twice(job.base_url) <= 2 * (len(bought) - 1)
    assert_same(job.store, undisturbed.store)
    status = read_status(job.store)
    assert status.state == "finished"
    assert {one["role"] for one in status.spending} == {"teacher", "referee", "generator"}
    assert {one["iteration"] for one in status.spending} == {0, 1, 2}
    assert sum(one["calls"] for one in status.spending) > bought[0].total()


def assert_every_step_was_told_once(job: Job, logs: Path) -> None:
    """The notebook's own tracker heard of all of them in the last attempt; TensorBoard's of each in the attempt that
    came to it, or in the next, and wrote it once."""
    steps = [(job.store.stage(f"iteration-{k}/checkpoint").manifest() or {})["steps"] for k in (1, 2)]
    assert f"{sum(steps)} steps; the loss went from" in job.words()
    assert "as it was before" in job.words(), "environment and signals were given back"
    assert f"checkpoint {job.store.root}/iteration-2/checkpoint/model" in job.words(), "an address, as the root is"
    (folder,) = logs.iterdir()
    assert len(list(folder.iterdir())) > 2, "each attempt wrote a file"
    assert written_steps(folder, "training/loss") == list(range(1, sum(steps) + 1))
    assert written_steps(folder, "iteration/train_rows") == [1, 2]
    assert written_steps(folder, "spend/usd")


def test_killed_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Job) -> None:
    """A run of one imitation, in a bucket, which a script resumes; up to there it is what the undisturbed run is."""
    with s3_server() as environment, stub_process(*LATENCY) as base_url:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        changes = {"iterations": 0, "storage_path": f"s3://{BUCKET}/team/runs"} | UNJUDGED
        job = Job(tmp_path, base_url, changes, environment)
        bought = kill_in(job, "training")
        forget(job)
        script = f"from lion_ray import distil; print(distil({str(job.path)!r}).checkpoint)"
        resumed = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
        )
        assert resumed.returncode == 0, resumed.stderr
        assert resumed.stdout.splitlines()[-1] == f"{job.store.root}/iteration-1/checkpoint/model"
        assert journaled(job.store) == bought
        assert not fetch_stats(base_url)["repeated"], "what was paid for was not bought again"
        for stage in ("pool-0", "answers-0"):
            assert table_of(job.store, stage).equals(table_of(undisturbed.store, stage)), f"{stage} differs"
        weights = "iteration-1/checkpoint/model/model.safetensors"
        assert job.store.read_bytes(weights) == undisturbed.store.read_bytes(weights)
        assert not (tmp_path / "runs").exists()


def test_the_notebook_opens_a_finished_run(undisturbed: Job) -> None:
    bought = requests(undisturbed.base_url)
    told = subprocess.run(
        [sys.executable, "-m", "tests.ray.cells", str(ROOT / "docs" / "notebook.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | undisturbed.environment | {"LION_RAY_EXAMPLE": str(undisturbed.path)},
    )
    assert told.returncode == 0, told.stderr
    steps = [(undisturbed.store.stage(f"iteration-{k}/checkpoint").manifest() or {})["steps"] for k in (1, 2)]
    assert f"{sum(steps)} steps; the loss went from" in told.stdout
    assert requests(undisturbed.base_url) == bought


def forget(job: Job) -> None:
    """A bucket has no locks: a driver that is gone is known by its silence, which need not be waited out here."""
    gone = job.store.read_json("attempt.json")
    job.store.write_json("attempt.json", gone | {"ended": True})


@pytest.mark.long
@pytest.mark.parametrize("in_training", [False, True], ids=["", "killed in training too"])
def test_a_run_in_a_bucket_out_of_money_killed_and_not_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Job, in_training: bool
) -> None:
    root = f"s3://{BUCKET}/team/runs"
    # The attempt that meets a second driver cannot get past generation, however long that one takes.
    stops = ("--rules", json.dumps([{"fault": "hang", "times": 1, "contains": "You invent tasks"}]))
    with s3_server() as environment, stub_process(*LATENCY, *stops) as base_url:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        tracking = [{"type": "tensorboard", "folder": str(tmp_path / "logs")}]
        job = Job(tmp_path, base_url, {"storage_path": root, "tracking": tracking} | UNJUDGED, environment)
        assert job.store.root == f"{root}/job"

        def another_is_refused() -> None:
            assert job.end(RICH) == 7, "two drivers went on in one folder"
            assert "another attempt at this run is running" in job.words()

        bought = [spend_the_budget(job)]
        if in_training:
            bought.append(kill_in(job, "training"))
            assert not fetch_stats(base_url)["repeated"], "what the first attempt paid for was not bought again"
            forget(job)
        bought.append(kill_in(job, "generating", another_is_refused))
        forget(job)
        # The last attempt is a notebook's, and its cells must all go through.
        job.changes = {"budget": {"usd": 1000}}
        job.write()
        job.finish_in_notebook(ROOT / "docs" / "notebook.py")
        assert_every_step_was_told_once(job, tmp_path / "logs")
        told = subprocess.run(
            [sys.executable, "-m", "lion_ray", "status", f"{root}/job", "--json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        )
        assert json.loads(told.stdout)["results"]
        assert job.store.names("iteration-2/checkpoint/model")
        assert job.store.names("journal"), "what was paid for is in the bucket too"
        assert json.loads(told.stdout)["spending"]
        assert job.store.exists("report.html")
        assert not (tmp_path / "runs").exists()
        assert_ended_well(job, bought, undisturbed)


@pytest.mark.long
def test_killed_in_every_stage(tmp_path: Path, undisturbed: Job) -> None:
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url)
        bought = [spend_the_budget(job)]
        bought += [kill_in(job, stage) for stage in stage_conditions(job)]
        job.finish(RICH)
        assert_ended_well(job, bought, undisturbed)


def test_the_same_command_on_a_finished_run_does_nothing(undisturbed: Job) -> None:
    files = {path: path.stat().st_mtime_ns for path in Path(undisturbed.store.path()).rglob("manifest.json")}
    bought = requests(undisturbed.base_url)
    undisturbed.finish()
    assert "this run is finished" in undisturbed.log.read_text(errors="replace")
    assert requests(undisturbed.base_url) == bought
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


def test_every_checkpoint_and_the_teacher_were_checked(undisturbed: Job) -> None:
    store = undisturbed.store
    teacher = store.stage("answers-heldout/checks").manifest() or {}
    assert (teacher["rows"], teacher["scored"], teacher["share_of_teacher"]) == (4, 4, None)
    assert teacher["by_check"]["says something"]["value"] == 1.0, "the stub answers in words"
    for iteration in range(3):
        rows = store.stage(f"iteration-{iteration}/heldout/checks").read_part(0).to_pylist()
        answers = {row["id"]: row for row in table_of(store, f"iteration-{iteration}/heldout/student").to_pylist()}
        assert {row["id"] for row in rows} == set(answers)
        for row in rows:
            said = {one["check"]: one["value"] for one in row["scores"]}
            assert said["says something"] == float(bool(re.search(r"\w", answers[row["id"]]["text"])))
            assert row["score"] == sum(said.values()) / 2
        checks = store.read_json(f"iteration-{iteration}/result.json")["checks"]
        assert checks["mean"]["value"] == pytest.approx(sum(row["score"] for row in rows) / 4)
        assert checks["teacher"] == teacher["mean"]
        assert (checks["gain"] is None) == (iteration == 0)
    words = undisturbed.log.read_text(errors="replace")
    assert "the base model; relative quality" in words
    assert len(re.findall(r"; checks [01]\.\d\d \[", words)) == 3
    assert "checks," in words.split("Results")[1]
    assert "3 held-out instructions, chosen by a hash of the run's seed" in words


def test_trackers_were_told_of_every_step_and_result(undisturbed: Job) -> None:
    store = undisturbed.store
    steps = sum((store.stage(f"iteration-{k}/checkpoint").manifest() or {})["steps"] for k in (1, 2))
    folder = Path(store.path("tensorboard"))
    assert written_steps(folder, "training/loss") == list(range(1, steps + 1))
    assert written_steps(folder, "training/learning_rate") == list(range(1, steps + 1))
    assert written_steps(folder, "iteration/checks") == [0, 1, 2]
    assert written_steps(folder, "iteration/heldout_loss") == [1, 2]
    assert len(written_steps(folder, "spend/usd")) > 1


def test_a_reference_is_shown_to_no_model(undisturbed: Job) -> None:
    store = undisturbed.store
    assert set(table_of(store, "pool-heldout")["reference"].to_pylist()) == {
        f"{REFERENCE} {n}" for n in range(100, 104)
    }
    assert table_of(store, "pool-1")["reference"].null_count == 8
    journal = b"".join(path.read_bytes() for path in Path(store.path("journal")).rglob("*") if path.is_file())
    assert REFERENCE.encode() not in journal
    for stage in ("answers-heldout", "answers-0", "iteration-1/student", "iteration-2/heldout/student"):
        assert not [text for text in table_of(store, stage)["text"].to_pylist() if REFERENCE in text]
