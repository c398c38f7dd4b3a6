"""A real Ray on this machine and a whole run that nothing disturbs, each started once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from lion_ray.core.process_guard import descendants
from lion_ray.pipeline.ray_cluster import RAY_ENVIRONMENT
from tests.ray.harness import CANARY, LATENCY, ROOT, Job, job_with_key, kill, short_folder
from tests.ray.machines import Machines, joined, started
from tests.ray.prometheus import PROMETHEUS, panels, scraping, written_by
from tests.stub_api import fetch_stats, stub_process


@pytest.fixture(scope="package")
def one_cluster() -> Iterator[Cluster]:
    """For all who need a cluster and do nothing to its nodes; it ends with the last of them.

    Idle, it takes a tenth of a core from the other tests.
    """
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(one_cluster: Cluster) -> Iterator[Machines]:
    """It, joined by this process for the time of a module; what the module's tests leave there ends with it."""
    with joined(one_cluster) as found:
        yield found


# The clusters that tests start are set up as a driver sets Ray up; of itself Ray gives its workers a low priority.
for name, value in RAY_ENVIRONMENT.items():
    os.environ.setdefault(name, value)

WATCH_S = 1.0
"""Between looks at all processes and panels of a run; more often takes as much of a core as the run itself."""
MOST = 1000.0
"""Nats per token: no student gains so much in an iteration."""


@dataclass(frozen=True)
class Whole:
    """A run from its beginning to its end, to be looked at from all sides and changed by nobody."""

    job: Job
    empty_panels: set[str]
    """The dashboard's questions to which Prometheus had no answer at any time; all of them where there is none."""
    report: subprocess.CompletedProcess[str]
    """`lion-ray report`, once what was in its way while the run went on is gone."""
    started: set[str]
    """Every process that the run started, as it calls itself."""
    exposed: set[str]
    """Those of them in whose environment or command line the key stood."""


@pytest.fixture(scope="session")
def whole_run() -> Iterator[Whole]:
    """In a folder of its own with all that the run wrote, Ray's logs included; `CANARY` was its key.

    Of three imitations it makes two: its student gains too little. Its report cannot be written while it goes on.
    """
    # An endpoint with moods: it echoes the key in an error, drops lines, garbles. None of it shows in what comes out.
    rules = (
        '[{"fault": "500", "times": 2, "contains": "item 3"}, {"fault": "503", "times": 2, "contains": "item 11"},'
        ' {"fault": "garbage", "times": 1, "contains": "item 5"}, {"fault": "drop", "times": 1, "contains": "item 7"},'
        ' {"fault": "429", "times": 1, "retry_after": "0"}]'
    )
    with short_folder() as folder, stub_process(*LATENCY, "--api-key", CANARY, "--rules", rules) as base_url:
        job = job_with_key(folder, base_url, CANARY)
        job.changes |= {
            "iterations": 2,
            "stop": {"plateau": {"rounds": 2, "min_gain": MOST}},
            "discrimination": {"judge_heldout": "ends"},
            "tracking": [{"type": "tensorboard"}],
        }
        job.write()
        blocked = Path(job.store.path("report.html"))
        (blocked / "in the way").mkdir(parents=True)
        config = written_by(folder / "ray")
        process = job.run_until(config.exists)
        try:
            empty, started, exposed = watch(process, config, folder)
            assert process.wait() == 0, job.words()
        finally:
            kill(process)
        assert not fetch_stats(base_url)["repeated"], "one run bought the same call twice"
        assert fetch_stats(base_url)["total"] > 50, "the key did arrive"
        shutil.rmtree(blocked)
        report = [sys.executable, "-m", "lion_ray", "report", job.store.root]
        written = subprocess.run(report, cwd=ROOT, capture_output=True, text=True)
        yield Whole(job, empty, written, started, exposed)


@pytest.fixture(scope="session")
def undisturbed(whole_run: Whole) -> Job:
    """The whole run's files."""
    return whole_run.job


def watch(process: subprocess.Popen[bytes], config: Path, folder: Path) -> tuple[set[str], set[str], set[str]]:
    """Until the run has ended, ask Prometheus for every panel that has had nothing to show yet, and look at every
    process that the run has started; (panels that are missing, processes, those that could tell the key)."""
    missing, started, exposed = panels(), set[str](), set[str]()
    with scraping(config, folder) if PROMETHEUS else nullcontext() as answer:
        while process.poll() is None:
            if answer is not None:
                missing = {name: expression for name, expression in missing.items() if not answer(expression)}
            for pid in descendants(process.pid):
                with suppress(OSError):  # it has ended
                    told = Path(f"/proc/{pid}/cmdline").read_bytes()
                    # By its program's name and not its path, which may be long.
                    program, _, words = told.replace(b"\0", b" ").decode(errors="replace").partition(" ")
                    name = f"{program.rsplit('/', 1)[-1]} {words}"[:80]
                    started.add(name)
                    if CANARY.encode() in told + Path(f"/proc/{pid}/environ").read_bytes():
                        exposed.add(name)
            time.sleep(WATCH_S)
    return set(missing), started, exposed
