"""The process of the ledger or of the run store is killed alone, while the teacher answers: that needs no engine.

Of the other actors: `chaos`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lion_ray.pipeline.status import read_status
from tests.ray.chaos.faults import answering
from tests.ray.harness import LATENCY, UNJUDGED, Job, kill, until
from tests.ray.machines import Machines
from tests.ray.outcome import bought_twice, journaled, table_of
from tests.ray.test_mistakes import the_line
from tests.stub_api import fetch_stats, stub_process

CAP = 0.3
"""US dollars: some of the answers, and not all."""


def strike(cluster: Machines, name: str, *, but: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """SIGKILL the process of the one living actor of a class; its pid."""
    (victim,) = [actor for actor in cluster.actors(name) if actor["Pid"] not in but]
    os.kill(victim["Pid"], signal.SIGKILL)
    return int(victim["Pid"])


def test_the_ledger_killed(tmp_path: Path, cluster: Machines) -> None:
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, UNJUDGED | {"budget": {"usd": CAP}}, cluster.environment)
        until(lambda: not cluster.actors("RunLedger"))  # of the runs before
        process = job.run_until(lambda: answering(job))
        try:
            strike(cluster, "RunLedger")
            assert process.wait() == 6, job.words()
        finally:
            kill(process)
        line = the_line(job)
        assert "ledger" in line
        assert "run the same command again" in line
        first = journaled(job.store)
        assert sum(first.values()) == fetch_stats(base_url)["completed"], "every answer that was paid for is kept"
        job.log.unlink()
        assert job.end() == 8, job.words()
        assert f"the budget of ${CAP:.2f} is spent" in the_line(job)
        assert bought_twice(base_url) == 0
        assert sum(journaled(job.store).values()) == fetch_stats(base_url)["completed"]
        assert 0.7 * CAP < sum(one["usd"] for one in read_status(job.store).spending) <= CAP
        assert journaled(job.store) > first


@pytest.mark.long
def test_the_run_store_killed(tmp_path: Path, cluster: Machines) -> None:
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, UNJUDGED, cluster.environment)
        until(lambda: not cluster.actors("RunStoreServer"))
        process = job.run_until(lambda: answering(job))
        try:
            before = strike(cluster, "RunStoreServer")
            until(lambda: job.store.stage("answers-0").manifest() is not None, process, job.words)
            assert {actor["Pid"] for actor in cluster.actors("RunStoreServer")} - {before}, (
                "another process does its work"
            )
        finally:
            kill(process)
        assert table_of(job.store, "answers-0").num_rows == 20
        assert bought_twice(base_url) == 0
        assert sum(journaled(job.store).values()) == fetch_stats(base_url)["completed"]
