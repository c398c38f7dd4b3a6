"""A run under Ray's own autoscaler (v2), whose nodes are processes of this machine (Ray's fake multi-node provider).

Long: the autoscaler does in minutes what it does in a cloud.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from lion_ray.core.process_guard import Guard, descendants
from lion_ray.inference.ports import free_port
from tests.ray.harness import LATENCY, ROOT, Job, kill, until, wait_until_gone
from tests.stub_api import stub_process

pytestmark = pytest.mark.long
SCALING: dict[str, Any] = {
    "cluster_name": "lion-ray-test",
    "max_workers": 2,
    "provider": {
        # Under its own name Ray wants a file of defaults that its wheels lack.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@contextmanager
def autoscaled(folder: Path) -> Iterator[str]:
    """A head whose autoscaler may add one node with a GPU; gives its address."""
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"  # a head listens there, and not on loopback
    config = folder / "scaling.json"
    config.write_text(json.dumps(SCALING | {"provider": SCALING["provider"] | {"gcs_address": address}}))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--autoscaling-config={config}", "--num-cpus=4", "--num-gpus=0", "--include-dashboard=false"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    fake = {
        "RAY_AUTH_MODE": "disabled",  # `ray start` would ask everyone for a token
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    guard = Guard()
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, cwd=ROOT, env=os.environ | fake, stdout=log, stderr=log)
    try:
        while True:
            guard.watch(head.pid, *descendants(head.pid))
            try:
                ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", namespace="tests")
                break
            except ConnectionError:
                assert head.poll() is None, (folder / "head.log").read_text()
        yield address
    finally:
        ray.shutdown()
        there = descendants(head.pid)
        head.terminate()
        head.wait()
        guard.watch(*there)
        guard.close()
        wait_until_gone(there)
        # What `ray start` leaves for whoever looks for a cluster, and only `ray stop` takes away.
        note = Path("/tmp/ray/ray_current_cluster")
        if note.exists() and note.read_text() == address:
            note.unlink()


def test_a_gpu_node_comes_when_it_is_needed_and_goes_when_not(tmp_path: Path) -> None:
    late = [{"fault": "late", "late_s": 90, "times": 1, "contains": "You invent tasks"}]
    rules = ("--rules", json.dumps(late))
    with autoscaled(tmp_path) as address, stub_process(*LATENCY, *rules) as base_url:
        student = {"use_gpu": True, "min_engines": 0}
        changes = {"placement": "handoff", "student": student, "imitation": {"use_gpu": True}}
        job = Job(tmp_path / "job", base_url, changes, environment={"RAY_ADDRESS": address})
        process = job.start()

        def saw(condition: Callable[[str], bool]) -> None:
            until(lambda: condition(job.log.read_text()), process, job.words)

        try:
            # What it waits for meanwhile is told where that takes long: see test_placement.
            assert not gpus()
            saw(lambda _: gpus() == 1)
            saw(lambda words: "iteration 1: generating" in words)
            saw(lambda words: gpus() == 0 and "iteration 1: generating: done" not in words)
            saw(lambda words: gpus() == 1 and "iteration 2: fine-tuning" in words)
            assert process.wait() == 0, job.words()
        finally:
            kill(process)
        until(lambda: not gpus())  # the run is over, and nothing of it keeps a node


def gpus() -> int:
    """Living nodes with a GPU."""
    return sum(bool(node["Alive"] and node["Resources"].get("GPU")) for node in ray.nodes())
