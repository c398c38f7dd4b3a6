"""The Grafana dashboard against what a real Prometheus scrapes from a run, found the way Ray's documentation says."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lion_ray.inference.server import free_port
from tests.ray.harness import LATENCY, LOOK_S, MODEL, ROOT, Job, kill, short_folder
from tests.stub_api import stub_process

PROMETHEUS = shutil.which("prometheus") or ""
pytestmark = pytest.mark.skipif(not PROMETHEUS, reason="no prometheus on the PATH")


@pytest.fixture
def scratch() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def expressions() -> dict[str, str]:
    """What the panels ask for, for all runs, by what they show."""
    panels = json.loads((ROOT / "cluster" / "grafana" / "lion-ray.json").read_text())["panels"]
    asked = {
        f"{panel['title']}: {target['expr']}": target["expr"] for panel in panels for target in panel.get("targets", ())
    }
    return {name: one.replace("$run", ".*").replace("$__rate_interval", "1m") for name, one in asked.items()}


def ready(port: int) -> bool:
    """Whether Prometheus answers questions: it listens before it does, and then answers 503."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"):
            return True
    except OSError:
        return False


def answer(port: int, expression: str) -> list[object]:
    """What Prometheus answers now; a mistake in the expression raises."""
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}") as response:
        found: list[object] = json.load(response)["data"]["result"]
    return found


def test_every_panel_has_something_to_show(scratch: Path) -> None:
    # A limit and an error, so that the panel that counts them has something to count.
    rules = '[{"fault": "429", "times": 1, "retry_after": "0"}, {"fault": "500", "times": 1}]'
    with stub_process(*LATENCY, "--rules", rules) as base_url:
        environment = {"RAY_TMPDIR": str(scratch), "RAY_metrics_report_interval_ms": "1000"}
        endpoint = {"base_url": base_url, "model": MODEL, "api_key_env": None, "prices": {"input": 1.0, "output": 2.0}}
        job = Job(scratch / "job", base_url, {"endpoints": {"default": endpoint}}, environment=environment)
        config = scratch / "ray" / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
        process = job.run_until(config.exists)
        port = free_port()
        command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={scratch / 'prometheus'}"]
        with (scratch / "prometheus.log").open("w") as log:
            scraping = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, text=True
            )
        missing = expressions()
        try:
            while missing and process.poll() is None:
                assert scraping.poll() is None, (scratch / "prometheus.log").read_text()
                if ready(port):
                    missing = {name: one for name, one in missing.items() if not answer(port, one)}
                time.sleep(LOOK_S)
            process.wait()
        finally:
            scraping.kill()
            scraping.wait()
            kill(process)
    assert process.returncode == 0, job.words()
    assert missing == {}
