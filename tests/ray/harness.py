"""Small whole runs for tests: the real command line in a process of its own, a tiny student, a stub for the API.

What is waited for is a state of the run folder or of the stub, never a time. Only processes started here are ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml

from lion_ray.core.process_guard import descendants, start_time
from lion_ray.core.store import RunStore
from tests.stub_api import fetch_stats
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("river", "engine", "violin", "harbour", "glacier", "orchard", "senate", "bakery")
MODEL = "stub-model"
UNJUDGED = {"discrimination": {"judge_heldout": "never"}, "evaluation": {"checks": []}}
"""Changes for a run that needs no engine before its first fine-tuning is done."""
CANARY = "sk-canary-9d2f41c07be8"
"""A planted key, looked for in everything that a run writes."""
REFERENCE = "planted-reference-77ac"
"""How every row's reference begins; no model is ever to be shown one."""
PRICES = {"input": 0, "output": 1000}
"""A tenth of a cent for each token of an answer, so that a small budget is soon spent."""
LATENCY = ("--lion", "--latency-ms", "40")
"""A stub that gives the roles what they want, in a time in which something can be done to a run."""
LOOK_S = 0.1
"""Between looks at a state that is waited for."""


def write_pool(path: Path, rows: int, *, start: int = 0) -> None:
    """Rows with a reference each, which only the checks of held-out answers look at."""
    lines = [
        json.dumps(
            {
                "instruction": f"Describe item {n} of the {KINDS[n % len(KINDS)]} list in {n + 3} words.",
                "reference": f"{REFERENCE} {n}",
            }
        )
        for n in range(start, start + rows)
    ]
    path.write_text("\n".join(lines) + "\n")


@dataclass
class Job:
    """A run's files and how to start it."""

    folder: Path
    base_url: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Values by section, over the ones below."""
    environment: dict[str, str] = field(default_factory=dict)

    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "student").exists():
            make_tiny_model(self.folder / "student", initializer_range=0.5)
            write_pool(self.folder / "pool.jsonl", 20)
            write_pool(self.folder / "heldout.jsonl", 4, start=100)
        self.config = {
            "run_name": "job",
            "storage_path": str(self.folder / "runs"),
            "iterations": 1,
            "data": {"pool": "pool.jsonl", "heldout": "heldout.jsonl"},
            "endpoints": {
                "default": {
                    "base_url": self.base_url,
                    "model": MODEL,
                    "api_key_env": None,
                    "max_concurrency": 2,
                    # Every wanted repetition then has a body of its own, so the stub can count what was bought twice.
                    "send_seed": True,
                    "max_backoff_s": 0.2,
                    "prices": PRICES,
                }
            },
            "teacher": {"max_tokens": 40},
            "referee": {"prompt": "scores", "max_tokens": 16, "replicas": 2},
            "student": {
                "model": "student",
                "dtype": "float32",
                "max_tokens": 12,
                "max_model_len": 256,
                "max_num_seqs": 8,
                "enforce_eager": True,
            },
            "imitation": {
                "epochs": 4,
                "batch_size": 2,
                "max_length": 192,
                "learning_rate": 1e-3,
                "precision": "fp32",
                "checkpoint_every_steps": 5,
                "truncated": "keep",
            },
            "generation": {"hard": 4, "easy": 4},
            "evaluation": {
                "checks": [{"type": "number"}, {"type": "regex", "name": "says something", "pattern": r"\w"}]
            },
            "placement": "dedicated",
            "shard_rows": 4,
            "max_shards_in_flight": 2,
        }
        self.write()

    def write(self) -> None:
        """Write the config file, with `changes` over what it was."""
        for key, value in self.changes.items():
            self.config[key] = self.config.get(key, {}) | value if isinstance(value, dict) else value
        self.path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    @property
    def path(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def store(self) -> RunStore:
        return RunStore(f"{self.config['storage_path']}/job")

    @property
    def log(self) -> Path:
        return self.folder / "job.log"

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        """Start the run; its words go to `log`."""
        return self._start("lion_ray", "run", str(self.path), *overrides)

    def _start(self, *module: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *module]
        # A cluster that happens to be on this machine is not ours to use.
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment | self.environment, start_new_session=True
            )

    def end(self, *overrides: str) -> int:
        """Run to the end; the exit code."""
        process = self.start(*overrides)
        try:
            return process.wait()
        except BaseException:
            kill(process)
            raise

    def finish(self, *overrides: str) -> None:
        """Run to the end; anything but success fails with the log."""
        assert self.end(*overrides) == 0, self.words()

    def finish_in_notebook(self, file: Path) -> None:
        """Run a file of cells, which finds the configuration in LION_RAY_EXAMPLE, to its end."""
        self.environment["LION_RAY_EXAMPLE"] = str(self.path)
        process = self._start("tests.ray.cells", str(file))
        try:
            assert process.wait() == 0, self.words()
        except BaseException:
            kill(process)
            raise

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def run_until(self, condition: Callable[[], bool], *overrides: str) -> subprocess.Popen[bytes]:
        """Start the run and return it once `condition` holds; it must not end before."""
        process = self.start(*overrides)
        try:
            # Often, for some states are short; a bucket is another process's work.
            until(condition, process, self.words, look_s=0.25 if "://" in self.store.root else 0.005)
        except BaseException:
            kill(process)
            raise
        return process


def until(
    condition: Callable[[], object],
    process: subprocess.Popen[Any] | None = None,
    words: Callable[[], str] = str,
    look_s: float = LOOK_S,
) -> None:
    """Return once `condition` holds; `process` must not end before, or fails with its last `words`."""
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode} too soon:\n{words()}"
        time.sleep(look_s)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short name: Ray's sockets live below it, and a socket's path has room for 107 bytes only."""
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def job_with_key(folder: Path, base_url: str, key: str) -> Job:
    """A job in ``folder/job`` whose endpoint wants a key, and which writes nowhere outside `folder`, nor does Ray."""
    environment = {"LION_TEST_KEY": key, "RAY_TMPDIR": str(folder / "ray"), "TMPDIR": str(folder / "tmp")}
    environment["RAY_metrics_report_interval_ms"] = "1000"
    for name in ("ray", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    job = Job(folder / "job", base_url, environment=environment)
    job.changes = {"endpoints": {"default": job.config["endpoints"]["default"] | {"api_key_env": "LION_TEST_KEY"}}}
    job.write()
    return job


def kill(process: subprocess.Popen[bytes]) -> list[int]:
    """SIGKILL a run's driver alone, as a machine's out-of-memory killer would; returns what it had started."""
    children = descendants(process.pid)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return children


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still run (zombies do not)."""
    return [pid for pid in pids if start_time(pid)]


def wait_until_gone(pids: list[int]) -> None:
    """Return once none of these processes runs any more: nothing outlives its run."""
    while alive(pids):
        os.sched_yield()


def metrics_with(*wanted: str) -> str:
    """What the nodes of this process's cluster show Prometheus, once all of `wanted` is in it."""
    while True:  # Ray exports every few seconds
        text = ""
        for node in ray.nodes():
            if node["Alive"]:
                with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics") as answer:
                    text += str(answer.read().decode())
        if all(name in text for name in wanted):
            return text
        time.sleep(LOOK_S)


def requests(base_url: str) -> int:
    """Requests that the stub has seen."""
    total: int = fetch_stats(base_url)["total"]
    return total
