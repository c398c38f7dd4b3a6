"""A run that ends because its student stopped gaining, whose report cannot be written while it goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from lion_ray.pipeline.early_stop import read_stop
from tests.ray.conftest import MOST, Whole
from tests.ray.harness import LATENCY, ROOT, Job, kill, requests
from tests.stub_api import stub_process


def test_a_plateau_ends_a_run(undisturbed: Job) -> None:
    store, words = undisturbed.store, undisturbed.log.read_text()
    decided = read_stop(store)
    assert decided is not None
    assert (decided["iteration"], decided["measure"]) == (2, "checks")
    assert len(decided["values"]) == 3
    assert "iteration 2 is the last: the checks' held-out score rose by less than 1000 in 2 iterations" in words
    assert store.exists("iteration-2/result.json")
    assert store.stage("iteration-2/heldout/verdicts").manifest(), "the last student is judged, though early"
    assert not store.exists("iteration-2/verdicts"), "nothing was bought for a next iteration"
    assert store.stage("pool-2").manifest() is None


def test_a_report_that_fails_does_not_end_a_run(whole_run: Whole) -> None:
    words = whole_run.job.log.read_text()
    assert "the report could not be written" in words
    assert "the run continues" in words
    assert whole_run.report.returncode == 0, whole_run.report.stderr
    decided = read_stop(whole_run.job.store)
    assert decided is not None
    shown = unescape(Path(whole_run.job.store.path("report.html")).read_text())
    assert decided["reason"].split(":")[0] in shown


@pytest.mark.long
def test_a_plateau_ends_a_run_killed_at_the_decision(tmp_path: Path) -> None:
    with stub_process(*LATENCY) as base_url:
        stop = {"plateau": {"rounds": 1, "min_gain": MOST}}
        changes = {"iterations": 2, "stop": stop, "discrimination": {"judge_heldout": "ends"}}
        changes["evaluation"] = {"checks": []}  # or it would be their score that is looked at
        job = Job(tmp_path, base_url, changes)
        store = job.store
        blocked = Path(store.path("report.html"))
        (blocked / "in the way").mkdir(parents=True)

        # Killed once the decision is taken, and its result is not written.
        first = job.run_until(lambda: store.exists("stopped.json"))
        kill(first)
        decided = store.read_json("stopped.json")
        assert (decided["iteration"], decided["measure"]) == (1, "loss")
        assert len(decided["values"]) == 2

        job.finish()
        assert read_stop(store) == decided, "what was decided once stands"
        assert "iteration 1 is the last: held-out loss fell by less than 1000" in job.words()
        assert store.exists("iteration-1/result.json")
        assert store.stage("iteration-1/heldout/verdicts").manifest(), "the last student is judged, though early"
        assert not store.exists("iteration-1/verdicts"), "nothing was bought for a next iteration"
        assert store.stage("pool-1").manifest() is None
        assert "the report could not be written" in job.words()
        assert "the run continues" in job.words()

        bought = requests(base_url)
        job.finish()
        assert "this run is finished" in job.words()
        assert requests(base_url) == bought

        shutil.rmtree(blocked)
        told = subprocess.run(
            [sys.executable, "-m", "lion_ray", "report", store.root], cwd=ROOT, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        assert decided["reason"].split(":")[0] in blocked.read_text()
