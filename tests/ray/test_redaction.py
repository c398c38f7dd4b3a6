"""A planted API key is looked for in everything that whole runs wrote, Ray's own logs included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.conftest import Whole
from tests.ray.harness import CANARY, ROOT, UNJUDGED, Job, job_with_key, short_folder
from tests.stub_api import stub_process


@pytest.fixture
def scratch() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def files_with(folder: Path, text: str) -> list[Path]:
    needle = text.encode()
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_whole_run_keeps_the_key_to_itself(undisturbed: Job) -> None:
    scratch = undisturbed.folder.parent
    told = subprocess.run(
        [sys.executable, "-m", "lion_ray", "status", undisturbed.store.root, "--json"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert CANARY.encode() not in told.stdout + told.stderr
    logs = list((scratch / "ray").rglob("*.log"))
    assert logs, "Ray's logs were not where they were looked for"
    assert files_with(scratch, "item 3"), "the search itself finds things"
    assert files_with(scratch, CANARY) == []


def test_a_whole_run_s_processes_do_not_inherit_the_key(whole_run: Whole) -> None:
    kinds = ("raylet", "gcs_server", "TeacherProxy", "StudentEngine", "RunStoreServer", "Generator")
    assert all(any(kind in name for name in whole_run.started) for kind in kinds), sorted(whole_run.started)
    # That it reached the endpoint all the same, the endpoint has seen: it refuses whoever has it not.
    assert whole_run.exposed == set()


@pytest.mark.long
def test_a_run_that_ends_in_a_refusal_keeps_the_key_to_itself(scratch: Path) -> None:
    with stub_process("--lion", "--api-key", "sk-another") as base_url:
        job = job_with_key(scratch, base_url, CANARY)
        job.changes |= UNJUDGED
        job.write()
        assert job.end() == 4, job.words()
    assert "refuses the key in LION_TEST_KEY" in job.words()
    assert files_with(scratch, CANARY) == []
