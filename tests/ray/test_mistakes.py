"""Mistakes that only show once a run is under way: one line, an exit code, and nothing left running."""

from __future__ import annotations

from pathlib import Path

from lion_ray.inference.server import free_port
from lion_ray.status import read_status
from tests.ray.harness import Job
from tests.stub_api import fetch_stats, stub_process

NOBODY = f"http://127.0.0.1:{free_port()}/v1"


def told(job: Job, *overrides: str) -> tuple[int, str]:
    """The exit code and the one line that the user is told."""
    code = job.start(*overrides).wait()
    lines = [line for line in job.log.read_text().split("\n") if line.startswith("lion-ray: ")]
    assert len(lines) == 1, job.words()
    assert "Traceback" not in job.log.read_text()
    return code, lines[0]


def test_an_endpoint_that_nobody_answers_at(tmp_path: Path) -> None:
    code, line = told(Job(tmp_path, NOBODY), "endpoints.default.max_attempts=2")
    assert code == 4
    assert NOBODY in line


def test_a_malformed_row_stops_the_run_before_a_call(tmp_path: Path) -> None:
    job = Job(tmp_path, NOBODY)
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write('{"instruction": ""}\n')
    code, line = told(job)
    assert code == 3
    assert "pool.jsonl:21" in line


def test_too_many_failures_stop_the_run_and_keep_what_succeeded(tmp_path: Path) -> None:
    rules = '[{"fault": "empty", "contains": "river"}, {"fault": "empty", "contains": "engine"}]'
    with stub_process("--lion", "--rules", rules) as base_url:
        code, line = told(Job(tmp_path, base_url))
    assert code == 3
    assert "6 of 20 rows failed (30%, allowed 20%): 6 × empty answer" in line


def test_a_budget_ends_a_run_with_its_state_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    with stub_process("--lion") as base_url:
        job = Job(tmp_path, base_url)
        prices = {"prices": {"input": 0, "output": 1000}}  # a tenth of a cent for each token
        job.changes = {"endpoints": {"default": job.config["endpoints"]["default"] | prices}}
        job.write()
        code, line = told(job, "budget.usd=0.3")
        assert code == 8
        assert "the budget of $0.30 is spent" in line
        assert "teacher answers" in line, "how far it got"
        assert "finishing would cost about $" in line
        bought = sum(one["calls"] for one in read_status(job.store).spending)
        spent = sum(one["usd"] for one in read_status(job.store).spending)
        assert 0.2 < spent <= 0.3
        job.finish("budget.usd=1000")
        assert not fetch_stats(base_url)["repeated"], "what the first attempt paid for was not bought again"
    after = read_status(job.store)
    assert after.state == "finished"
    assert {one["role"] for one in after.spending} == {"teacher", "referee", "generator"}
    assert {one["iteration"] for one in after.spending} == {0, 1, 2}
    assert sum(one["calls"] for one in after.spending) > bought
