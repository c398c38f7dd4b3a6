"""The gateway in a run's proxy actor, with shards sent to it through Ray's object store."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.clients import SHARD
from bench.measure import MAX_TOKENS, MODEL, WARM_UP, Measured, arguments, cpu_s, measured, peak_mb, prompt

SHARDS_IN_FLIGHT = 8
"""The configuration's default."""


def main() -> None:
    given = arguments().parse_args()
    # Set before Ray is imported: no usage report.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="warning")
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:
        result = _bench(given.url, given.calls, given.in_flight, folder)
    ray.shutdown()
    print(json.dumps(asdict(result)))


def _bench(url: str, calls: int, in_flight: int, folder: str) -> Measured:
    import ray

    from lion_ray.actors.budget import LedgerActor
    from lion_ray.actors.teacher import ProxySettings, TeacherActor
    from lion_ray.config import EndpointConfig, TeacherConfig
    from lion_ray.core.records import INSTRUCTION, OK, table

    ledger = LedgerActor.options(name="ledger").remote(None)
    settings = ProxySettings(
        endpoint="default",
        name="proxy",
        run="bench",
        config=EndpointConfig(model=MODEL, api_key_env=None, base_url=url, max_concurrency=in_flight),
        teacher=TeacherConfig(max_tokens=MAX_TOKENS),
        journal=folder,
        base_dir=Path.cwd(),
        seed=0,
        ledger="ledger",
    )
    proxy = TeacherActor.options(name="proxy").remote(settings)

    def shard(rows: range) -> Any:
        made = ({"id": f"row{row}", "text": prompt(row), "source": "seed", "iteration": 0} for row in rows)
        return ray.put(table(made, INSTRUCTION))

    def answer(shards: list[Any]) -> int:
        answered = 0
        under_way: list[Any] = []
        for one in shards:
            if len(under_way) == SHARDS_IN_FLIGHT:
                done, under_way = ray.wait(under_way)
                answered += sum(ray.get(part).column("status").to_pylist().count(OK) for part in done)
            under_way.append(proxy.answer.remote(one, "bench"))
        return answered + sum(part.column("status").to_pylist().count(OK) for part in ray.get(under_way))

    def usage(_: object) -> tuple[float, float]:
        return cpu_s(), peak_mb()

    def shards(rows: range) -> list[Any]:
        return [shard(rows[i : i + SHARD]) for i in range(0, len(rows), SHARD)]

    ray.get(proxy.ready.remote())
    answer(shards(WARM_UP))
    made = shards(range(calls))
    before, _ = ray.get(proxy.__ray_call__.remote(usage))
    with measured(calls) as result:
        result.answered = answer(made)
    after, result.peak_mb = ray.get(proxy.__ray_call__.remote(usage))
    # The actor's CPU time, not the driver's.
    result.cpu_s = after - before
    ray.get(proxy.close.remote())
    del ledger
    return result


if __name__ == "__main__":
    main()
