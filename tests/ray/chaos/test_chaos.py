"""Things go wrong in a run on a cluster; it ends by itself, or by the same command, and nothing is lost.

Long (`make test-all`): each is a whole run. `LION_RAY_CHAOS_LOG` names a file that gets a JSON line for each fault:
what `docs/reliability.md` tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from lion_ray.core.errors import InfrastructureError
from tests.ray.chaos.faults import ACTORS, NODES, NOTICES, Fault, answering, judging, lose_node
from tests.ray.harness import LATENCY, ROOT, Job, alive, kill, until
from tests.ray.machines import Machines, machines
from tests.ray.outcome import assert_same, bought_twice
from tests.stub_api import stub_process

IN_FLIGHT = 2
"""Calls that the job has out at most."""

pytestmark = pytest.mark.long


def note(**what: object) -> None:
    """A line for the record, where one is wanted."""
    if path := os.environ.get("LION_RAY_CHAOS_LOG"):
        with Path(path).open("a") as log:
            log.write(json.dumps(what) + "\n")


def strike(fault: Fault, job: Job, cluster: Machines, process: subprocess.Popen[bytes]) -> None:
    """Let the fault strike in its time; return once another process does what the victim did, and gets on with it."""
    victims: list[dict[str, Any]] = []
    before: Any = None

    def its_time() -> bool:
        victims[:] = cluster.actors(fault.victim) if fault.when(job) else []
        return bool(victims)

    def over() -> bool:
        nonlocal before
        if before is None:
            if {one["Pid"] for one in cluster.actors(fault.victim)} - known:
                before = fault.sign(job)
            return False
        return fault.sign(job) != before or job.store.stage(fault.work).manifest() is not None

    def words() -> str:
        return f"{fault.name}\n{job.words()}"

    until(its_time, process, words, look_s=0.005)
    known = {victim["Pid"] for victim in victims}
    fault.strike(cluster, victims)
    struck = time.monotonic()
    if fault.strike is lose_node and set(alive(list(known))) == known:  # it was beside the driver, and was spared
        before = fault.sign(job)
    until(over, process, words)
    note(fault=fault.name, back_s=round(time.monotonic() - struck, 1))


def disturb(job: Job, cluster: Machines, faults: Iterable[Fault]) -> None:
    """Run the job to its end, with each fault striking in its turn."""
    process = job.start()
    try:
        for fault in faults:
            strike(fault, job, cluster, process)
        assert process.wait() == 0, job.words()
    finally:
        kill(process)


@pytest.mark.parametrize("faults", [ACTORS, NODES, NOTICES], ids=["actors", "nodes", "notices"])
def test_what_runs_is_killed(faults: tuple[Fault, ...], tmp_path: Path, undisturbed: Job) -> None:
    with machines(head_cpus=0) as cluster, stub_process(*LATENCY) as base_url:
        for _ in range(2):
            cluster.add(cpus=2)
        # So few at once that the engine is still at it when the first answers are there.
        job = Job(tmp_path, base_url, {"student": {"max_num_seqs": 2}}, environment=cluster.environment)
        disturb(job, cluster, faults)
        twice = bought_twice(base_url)
        note(faults=[fault.name for fault in faults], bought_twice=twice, log=job.log.read_text())
        assert twice <= IN_FLIGHT * len(faults)
    assert "Traceback" not in job.log.read_text()
    assert_same(job.store, undisturbed.store)


def test_the_endpoint_goes_away_and_comes_back(tmp_path: Path, undisturbed: Job) -> None:
    stub = Stub()
    job = Job(tmp_path, stub.base_url)
    process = job.run_until(lambda: answering(job))
    try:
        stub.kill()
        struck = time.monotonic()
        until(lambda: "DOWN" in job.log.read_text(), process, job.words)
        told = time.monotonic() - struck
        stub.start()
        assert process.wait() == 0, job.words()
        note(fault="endpoint gone", told_s=round(told, 1), log=job.log.read_text())
    finally:
        kill(process)
        stub.kill()
    assert_same(job.store, undisturbed.store)


def test_the_object_store_is_full(tmp_path: Path, undisturbed: Job) -> None:
    with machines(head_cpus=4) as cluster, stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, environment=cluster.environment)
        process = job.run_until(lambda: answering(job))
        try:
            # Twice what the node's store holds, and held on to: Ray must spill, theirs and the run's.
            held = [ray.put(np.zeros(20_000_000, np.uint8)) for _ in range(15)]
            assert process.wait() == 0, job.words()
            note(fault="object store full", log=job.log.read_text())
        finally:
            kill(process)
        assert len(held) == 15
    assert_same(job.store, undisturbed.store)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**12))


def freeze(folder: Path, sign: str = "+") -> None:
    """Nothing can be made or removed in `folder` any more, not even by root; with "-" it can."""
    frozen = subprocess.run(["chattr", "-R", f"{sign}i", str(folder)], capture_output=True, text=True)
    if frozen.returncode and sign == "+":
        pytest.skip(f"this file system cannot be made to refuse: {frozen.stderr.strip()}")


@pytest.mark.parametrize(
    ("name", "spoil", "mend", "says"),
    [
        ("disk full", fill, lambda folder: (folder / "filler").unlink(), "No space left on device"),
        ("storage refuses", freeze, lambda folder: freeze(folder, "-"), "Operation not permitted"),
    ],
    ids=["full", "refusing"],
)
def test_the_storage_refuses(
    name: str,
    spoil: Callable[[Path], None],
    mend: Callable[[Path], None],
    says: str,
    tmp_path: Path,
    undisturbed: Job,
) -> None:
    place = disk if spoil is fill else plain
    with place(tmp_path / "disk") as folder, stub_process(*LATENCY) as base_url:
        job = Job(tmp_path / "job", base_url, {"storage_path": str(folder / "runs")})
        process = job.run_until(lambda: judging(job))
        struck = time.monotonic()
        try:
            spoil(folder)
            assert process.wait() == InfrastructureError.exit_code, job.words()
        finally:
            kill(process)
            mend(folder)
        took = time.monotonic() - struck
        (line,) = [line for line in job.log.read_text().split("\n") if line.startswith("lion-ray: ")]
        assert says in line
        assert "Traceback" not in job.log.read_text()
        job.finish()
        twice = bought_twice(base_url)
        note(fault=name, ended_s=round(took, 1), bought_twice=twice, line=line, log=job.log.read_text())
        assert twice <= IN_FLIGHT
        assert_same(job.store, undisturbed.store)


class Stub:
    """A stub that comes back at the same address."""

    def __init__(self) -> None:
        self._port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.stub_api", "--port", self._port, *LATENCY]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        self._port = self.base_url.rpartition(":")[2].removesuffix("/v1")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """A folder like any other."""
    folder.mkdir()
    yield folder
