"""A whole run whose folder is a bucket: nothing of it on a disk that every machine mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.object_store import BUCKET, s3_server
from tests.ray.harness import LATENCY, ROOT, Job, kill, until
from tests.ray.outcome import assert_same
from tests.stub_api import fetch_stats, stub_process


# The first attempt cannot get past generation, however slow the second one is to start.
STOPS = ("--rules", json.dumps([{"fault": "hang", "times": 1, "contains": "You invent tasks"}]))


def test_a_run_lives_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Job) -> None:
    root = f"s3://{BUCKET}/team/runs"
    with s3_server() as environment, stub_process(*LATENCY, *STOPS) as base_url:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        job = Job(tmp_path, base_url, {"storage_path": root}, environment=environment)
        assert job.store.root == f"{root}/job"

        first = job.run_until(lambda: bool(job.store.stage("iteration-1/verdicts").part_indexes()))
        second = job.start()
        assert second.wait() == 7, "two drivers went on in one folder"
        assert "another attempt at this run is under way" in job.words()
        until(lambda: hangs(job), first, job.words)
        kill(first)
        # A bucket has no locks: a driver that is gone is known by its silence, which `stale` need not wait out here.
        gone = job.store.read_json("attempt.json")
        job.store.write_json("attempt.json", gone | {"alive": 0.0})

        job.finish()
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
        assert_same(job.store, undisturbed.store)


def hangs(job: Job) -> bool:
    """Whether the run is generating, with a call out that is not answered."""
    return job.store.exists("iteration-1/verdicts/manifest.json") and fetch_stats(job.base_url)["in_flight"] > 0
