"""A run as a Ray job on a cluster of several nodes: however it ends, nothing of it is left behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core.process_guard import command_line, descendants
from tests.ray.harness import LATENCY, ROOT, Job, until, wait_until_gone
from tests.stub_api import stub_process

KEY = f"sk-{secrets.token_hex(16)}"
RAYS_OWN = ("JobSupervisor", "_AutoscalingCoordinatorActor", "PlacementGroupCleaner")
"""Detached actors of Ray itself, which hold no CPU and no GPU: of a job, of Ray Train, and of a fit cut off."""
NOTHING: dict[str, list[str]] = {"actors": [], "groups": [], "processes": []}


class LocalCluster:
    """A head without CPUs and two nodes, in processes of their own, behind a token."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str], addresses: dict[str, str]) -> None:
        self.process, self.environment = process, environment
        self.dashboard, self.address = addresses["dashboard"], addresses["address"]

    def submit(self, job: Job, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lion_ray", "submit", str(job.path), "--address", self.dashboard, *options]
        with job.log.open("w") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, env=self.environment)

    def ask(self, code: str) -> Any:
        """What `code` prints as JSON, in a process that knows the token; this one stays without Ray."""
        command = [sys.executable, "-c", f"import json\n{code}"]
        environment = self.environment | {"DASHBOARD": self.dashboard, "RAY_HEAD": self.address}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def jobs(self) -> list[dict[str, Any]]:
        """Every submitted job, the oldest first."""
        code = (
            "import os\nfrom ray.job_submission import JobSubmissionClient\n"
            "found = JobSubmissionClient(os.environ['DASHBOARD']).list_jobs()\n"
            "found = sorted((j for j in found if j.submission_id), key=lambda j: j.start_time)\n"
            "print(json.dumps([j.model_dump(mode='json') if hasattr(j, 'model_dump') else j.dict() for j in found]))"
        )
        found: list[dict[str, Any]] = self.ask(code)
        return found

    def leftovers(self) -> dict[str, list[str]]:
        """What the cluster itself still knows of: live actors and placement groups, and engines' processes."""
        code = (
            "import os\nfrom ray.util.state import list_actors, list_placement_groups\n"
            "at = {'address': os.environ['DASHBOARD'], 'limit': 1000}\n"
            f"actors = [a for a in list_actors(**at) if a.state != 'DEAD' and a.class_name not in {RAYS_OWN}]\n"
            "groups = [g for g in list_placement_groups(**at) if g.state != 'REMOVED']\n"
            "print(json.dumps({'actors': [a.class_name for a in actors], 'groups': [g.state for g in groups]}))"
        )
        found: dict[str, list[str]] = self.ask(code)
        return found | {"processes": [str(pid) for pid in descendants(self.process.pid) if engine_of(pid)]}

    def lose_head(self) -> None:
        """Kill all that runs on the head: Ray's control store, the job server, and every process they started."""
        for pid in descendants(self.process.pid):
            words = command_line(pid)
            if b"gcs_server" in words or (b"raylet" in words and b"--head" in words):
                for one in (pid, *descendants(pid)):
                    with suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)


def engine_of(pid: int) -> bool:
    return command_line(pid).startswith(b"VLLM::")


def is_actor(pid: int) -> bool:
    """One of the run's; Ray's own agents, which end with their node, go by the same prefix."""
    words = command_line(pid)
    return words.startswith(b"ray::") and b"Agent" not in words


@contextmanager
def local_cluster(*options: str) -> Iterator[LocalCluster]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "STUB_KEY": KEY}
    command = [sys.executable, str(ROOT / "cluster" / "local.py"), "--json", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        addresses = json.loads(next(line for line in process.stdout if line.startswith("{")))
        yield LocalCluster(process, environment, addresses)
    finally:
        started = descendants(process.pid)
        process.terminate()
        process.wait()
        wait_until_gone(started)


def job_on(tmp_path: Path, base_url: str) -> Job:
    job = Job(tmp_path, base_url, {"student": {"model": str(tmp_path / "student")}})
    job.config["endpoints"]["default"] |= {"api_key_env": "STUB_KEY", "prices": {"input": 1.0, "output": 2.0}}
    job.write()
    return job


@pytest.mark.long
def test_a_job_leaves_nothing_however_it_ends_and_still_ends_well(tmp_path: Path) -> None:
    """Stopped, its driver killed, its head lost; then to its end on a new cluster."""
    with stub_process(*LATENCY, "--api-key", KEY) as base_url:
        job = job_on(tmp_path, base_url)

        def training() -> bool:
            folder = "iteration-1/checkpoint"
            return job.store.exists(f"{folder}/progress.json") and not job.store.exists(f"{folder}/manifest.json")

        with local_cluster("--nodes", "2", "--cpus", "4") as nodes:
            first = nodes.submit(job)
            until(lambda: bool(job.store.stage("iteration-0/heldout/verdicts").part_indexes()), first, job.words)
            ray = Path(sys.executable).with_name("ray")
            stop = [ray, "job", "stop", "--address", nodes.dashboard, nodes.jobs()[-1]["submission_id"]]
            subprocess.run(stop, env=nodes.environment, check=True, capture_output=True)
            assert first.wait() == 6
            assert "stopped" in job.log.read_text()
            until(lambda: nodes.leftovers() == NOTHING)

            second = nodes.submit(job)
            until(training, second, job.words)
            driver = next(pid for pid in descendants(nodes.process.pid) if b"lion_ray\0run" in command_line(pid))
            os.kill(driver, signal.SIGKILL)
            assert second.wait() == 6
            until(lambda: nodes.leftovers() == NOTHING)
            assert KEY not in json.dumps(nodes.jobs())
            assert nodes.jobs()[-1]["metadata"]["lion_ray_run"] == "job"

            third = nodes.submit(job)
            until(lambda: job.store.stage("iteration-1/student").part_indexes() != set(), third, job.words)
            working = [pid for pid in descendants(nodes.process.pid) if engine_of(pid) or is_actor(pid)]
            assert working
            nodes.lose_head()
            wait_until_gone(working)
            assert third.wait() == 6, job.words()
            assert "connection to the cluster's job server was lost" in job.log.read_text()
            assert "Traceback" not in job.log.read_text()

        with local_cluster("--nodes", "1", "--cpus", "4") as nodes:
            last = nodes.submit(job)
            assert last.wait() == 0, job.log.read_text()[-4000:]
            log = job.log.read_text()
            assert "attempt 4" in log
            assert "\x1b" not in log
            until(lambda: nodes.leftovers() == NOTHING)


def test_what_cannot_work_on_a_cluster_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    job = Job(tmp_path, "http://127.0.0.1:9/v1", {"storage_path": "runs"})
    told = subprocess.run(
        [sys.executable, "-m", "lion_ray", "submit", str(job.path)], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 2
    assert "storage_path: 'runs' would be lost" in told.stderr
    assert "student.model: the folder 'student' is on this machine" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    job = Job(tmp_path, "http://127.0.0.1:9/v1", {"student": {"model": str(tmp_path / "student")}})
    told = subprocess.run(
        [sys.executable, "-m", "lion_ray", "submit", str(job.path), "--address", "http://127.0.0.1:9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 6
    assert "http://127.0.0.1:9: the cluster's job server refuses" in told.stderr
    assert "Traceback" not in told.stderr
