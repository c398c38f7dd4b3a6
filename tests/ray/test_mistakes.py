"""Mistakes that only show once a run is under way: one line and an exit code. All on one cluster, without an engine.

A budget that is spent: see test_resume. A key that is refused: see test_redaction.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lion_ray.inference.ports import free_port
from tests.ray.harness import LOOK_S, UNJUDGED, Job, kill, until
from tests.ray.machines import Machines
from tests.stub_api import stub_process

NOBODY = f"http://127.0.0.1:{free_port()}/v1"


def told(job: Job, *overrides: str) -> tuple[int, str]:
    """The exit code and the one line that the user is told."""
    code = job.end(*overrides)
    return code, the_line(job)


def the_line(job: Job) -> str:
    """The one line that the user was told."""
    lines = [line for line in job.log.read_text().split("\n") if line.startswith("lion-ray: ")]
    assert len(lines) == 1, job.words()
    assert "Traceback" not in job.log.read_text()
    return lines[0]


def test_an_endpoint_that_nobody_answers_at(tmp_path: Path, cluster: Machines) -> None:
    code, line = told(Job(tmp_path, NOBODY, UNJUDGED, cluster.environment), "endpoints.default.max_attempts=2")
    assert code == 4
    assert NOBODY in line


@pytest.mark.long
def test_a_malformed_row_stops_the_run_before_a_call(tmp_path: Path, cluster: Machines) -> None:
    job = Job(tmp_path, NOBODY, UNJUDGED, cluster.environment)
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write('{"instruction": ""}\n')
    code, line = told(job)
    assert code == 3
    assert "pool.jsonl:21" in line


def test_two_runs_of_one_name_end_for_their_own_failures(tmp_path: Path, cluster: Machines) -> None:
    """As two people's do on one cluster: each for what is wrong with its own answers, not for the other's actors."""
    rules = json.dumps([{"fault": "empty", "contains": "river"}, {"fault": "empty", "contains": "engine"}])
    both_are_there = tmp_path / "both are there"
    with stub_process("--lion", "--rules", rules, "--gate", str(both_are_there)) as base_url:
        jobs = [Job(tmp_path / name, base_url, UNJUDGED, cluster.environment) for name in ("mine", "yours")]
        until(lambda: not cluster.actors("RunStoreServer"))  # of the runs before
        processes = [job.start() for job in jobs]
        try:
            while len(cluster.actors("RunStoreServer")) < 2:
                assert all(process.poll() is None for process in processes), jobs[0].words() + jobs[1].words()
                time.sleep(LOOK_S)
            both_are_there.touch()
            assert [process.wait() for process in processes] == [3, 3]
        finally:
            for process in processes:
                kill(process)
    for job in jobs:
        assert "6 of 20 rows failed (30%, allowed 20%): 6 × empty answer" in the_line(job)
