"""A real Prometheus that scrapes a run, found the way Ray's documentation says, and the dashboard's questions to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lion_ray.inference.ports import free_port
from tests.ray.harness import ROOT

PROMETHEUS = shutil.which("prometheus") or ""


def panels() -> dict[str, str]:
    """What the dashboard's panels ask for, for all runs, by what they show."""
    found = json.loads((ROOT / "cluster" / "grafana" / "lion-ray.json").read_text())["panels"]
    asked = {
        f"{panel['title']}: {target['expr']}": target["expr"] for panel in found for target in panel.get("targets", ())
    }
    return {name: one.replace("$run", ".*").replace("$__rate_interval", "1m") for name, one in asked.items()}


def written_by(ray_folder: Path) -> Path:
    """Where a run whose Ray works in `ray_folder` leaves Prometheus its configuration."""
    return ray_folder / "ray" / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"


@contextmanager
def scraping(config: Path, folder: Path) -> Iterator[Callable[[str], list[object]]]:
    """Scrape; gives what answers an expression now, which is nothing until Prometheus is ready."""
    port = free_port()
    log = folder / "prometheus.log"
    command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output, text=True
        )

    def answer(expression: str) -> list[object]:
        assert process.poll() is None, log.read_text()
        if not _ready(port):
            return []
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}") as response:
            found: list[object] = json.load(response)["data"]["result"]
        return found

    try:
        yield answer
    finally:
        process.kill()
        process.wait()


def _ready(port: int) -> bool:
    """Whether Prometheus answers questions: it listens before it does, and then answers 503."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"):
            return True
    except OSError:
        return False
