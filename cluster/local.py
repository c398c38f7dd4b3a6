"""A Ray cluster of several nodes on this one machine, to try what runs on a real one: ``python cluster/local.py``.

A head that schedules nothing, like the other definitions here, and worker nodes with CPUs and, if you like, logical
GPUs (numbers that placement counts; nothing computes on them). Every port is a free one, on loopback. The cluster asks
for a token: yours in ~/.ray/auth_token, which is made where there is none, or RAY_AUTH_TOKEN.

It ends with Ctrl-C, SIGTERM or this process, whichever way that ends, and takes nothing else with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lion_ray.core.process_guard import Guard, descendants
from lion_ray.inference.ports import free_port


def reap(*_: object) -> None:
    """Take note of children that have ended: to its workers a raylet that nobody has waited for looks alive."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="worker nodes")
    parser.add_argument("--cpus", type=int, default=4, help="of each worker node")
    parser.add_argument("--gpus", type=int, default=0, help="of each worker node, logical ones")
    parser.add_argument("--dashboard-port", type=int, default=0, help="a free one by default")
    parser.add_argument("--json", action="store_true", help="the addresses as one JSON object")
    given = parser.parse_args()

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Jobs start with `python`, and must find this environment's.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        subprocess.run(["ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    from ray.cluster_utils import Cluster

    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))
    port = given.dashboard_port or free_port()
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": True, "dashboard_port": port}
    head["dashboard_agent_listen_port"] = free_port()  # Ray's default is one port, which another cluster may have
    guard = Guard()
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(given.nodes):
            # A folder of its own, as on a machine of its own: in a shared one, one node deletes jobs' working
            # directories that another still uses.
            own = f"runtime_resources_{number}"
            cluster.add_node(
                num_cpus=given.cpus,
                num_gpus=given.gpus,
                runtime_env_dir_name=own,
                dashboard_agent_listen_port=free_port(),
            )
        guard.watch(*descendants(os.getpid()))
        dashboard = f"http://{cluster.webui_url}"
        if given.json:
            print(json.dumps({"address": cluster.address, "dashboard": dashboard}), flush=True)
        else:
            print(f"{given.nodes} nodes and a head; Ctrl-C ends them")
            print(f"  dashboard   {dashboard}")
            print(f"  run on it   RAY_AUTH_MODE=token lion-ray submit configs/demo.yaml --address {dashboard} \\")
            print(f"                storage_path={Path('runs').absolute()}", flush=True)
        signal.signal(signal.SIGCHLD, reap)
        while True:
            signal.pause()
    finally:
        cluster.shutdown()
        guard.close()


if __name__ == "__main__":
    main()
