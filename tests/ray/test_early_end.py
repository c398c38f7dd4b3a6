"""A run that ends because its student stopped gaining, whose report cannot be written while it goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from lion_ray.evaluation.plateau import read_stop
from tests.ray.harness import LATENCY, ROOT, Job, kill, requests
from tests.stub_api import stub_process

MOST = 1000.0
"""Nats per token: no student gains so much."""


def test_a_plateau_ends_a_run_and_a_report_that_fails_does_not(tmp_path: Path) -> None:
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
        assert "the run goes on" in job.words()

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
