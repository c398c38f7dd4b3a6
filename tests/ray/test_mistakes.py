"""Mistakes that only show once a run is under way: one line, an exit code, and nothing left running.

Rows that fail: see test_placement. A budget that is spent: see test_resume. A key that is refused: see test_redaction.
"""

from __future__ import annotations

from pathlib import Path

from lion_ray.inference.server import free_port
from tests.ray.harness import UNJUDGED, Job

NOBODY = f"http://127.0.0.1:{free_port()}/v1"


def told(job: Job, *overrides: str) -> tuple[int, str]:
    """The exit code and the one line that the user is told."""
    code = job.start(*overrides).wait()
    return code, the_line(job)


def the_line(job: Job) -> str:
    """The one line that the user was told."""
    lines = [line for line in job.log.read_text().split("\n") if line.startswith("lion-ray: ")]
    assert len(lines) == 1, job.words()
    assert "Traceback" not in job.log.read_text()
    return lines[0]


def test_an_endpoint_that_nobody_answers_at(tmp_path: Path) -> None:
    code, line = told(Job(tmp_path, NOBODY, UNJUDGED), "endpoints.default.max_attempts=2")
    assert code == 4
    assert NOBODY in line


def test_a_malformed_row_stops_the_run_before_a_call(tmp_path: Path) -> None:
    job = Job(tmp_path, NOBODY, UNJUDGED)
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write('{"instruction": ""}\n')
    code, line = told(job)
    assert code == 3
    assert "pool.jsonl:21" in line
