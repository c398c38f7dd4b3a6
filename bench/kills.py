"""One job that is killed repeatedly: which answers are lost, and which calls are sent twice.

The server counts a request when it accepts it. A separate process reads the journal after each kill. So each attempt's
sent calls and the journaled calls before and after it are known; calls sent but not journaled were in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.clients import run, shards_at_once
from bench.harness import ROOT, BenchError, Stub, environment, run_client, stub_server
from bench.measure import MAX_TOKENS, MODEL, prompt

LATENCY_MS = 200
ATTEMPT_TIMEOUT_S = 120.0
READY = "ready"


@dataclass
class Killed:
    """The result of a job."""

    calls: int
    in_flight: int
    kills: int = 0
    answered: int = 0
    """Rows that the last attempt answered."""
    bought: int = 0
    """Calls that the server accepted."""
    lost: int = 0
    """Rows that an attempt answered but the journal lacks at the end, and rows without an answer."""
    journaled_repeated: int = 0
    """Calls sent although they were journaled."""
    bought_twice: int = 0
    in_flight_at_kill: list[int] = field(default_factory=list)
    """Calls sent but not journaled, at each kill."""


def kill_often(calls: int, kills: int, in_flight: int, seed: int) -> Killed:
    """Run a job, kill it at random points of its progress, and let the last attempt finish."""
    rng = random.Random(seed)
    moments = sorted(rng.uniform(0, 0.96 * calls) for _ in range(kills))
    result = Killed(calls, in_flight)
    seen: set[int] = set()
    with (
        stub_server("--latency-ms", str(LATENCY_MS)) as stub,
        tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder,
    ):
        job = ("--url", stub.url, "--calls", str(calls), "--in-flight", str(in_flight), "--journal", folder)
        before: dict[str, int] = {}
        journaled: set[str] = set()
        for moment in [*moments, None]:
            seen |= _attempt(job, stub, moment, rng.uniform(0.0, 0.1))
            after = stub.stats(bodies=True)["bodies"]
            sent = {body for body, count in after.items() if count > before.get(body, 0)}
            result.journaled_repeated += len(sent & journaled)
            known = run_client(sys.executable, "bench.kills", "journaled", *job)
            journaled, before = set(known["bodies"]), after
            if moment is not None:
                result.kills += 1
                result.in_flight_at_kill.append(len(sent - journaled))
        rows = set(known["rows"])
        result.lost = len(seen - rows) + calls - len(rows)
        result.answered = len(seen & rows)
        result.bought = sum(before.values())
        result.bought_twice = result.bought - len(before)
        if not set(known["bodies"]) <= set(before):
            raise BenchError("the journal holds calls that the server did not see: the bodies are identified wrongly")
    return result


def _attempt(job: tuple[str, ...], stub: Stub, moment: float | None, delay_s: float) -> set[int]:
    """Run the job until `moment` (or its end); returns the rows that it answered."""
    command = [sys.executable, "-m", "bench.kills", "work", *job]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output) as process:
            deadline = time.monotonic() + ATTEMPT_TIMEOUT_S
            try:
                while process.poll() is None:
                    if time.monotonic() > deadline:
                        raise BenchError(f"an attempt of the job took more than {ATTEMPT_TIMEOUT_S:.0f} s")
                    if moment is not None and os.fstat(output.fileno()).st_size and stub.stats()["distinct"] >= moment:
                        time.sleep(delay_s)
                        break
                    time.sleep(0.01)
            finally:
                process.send_signal(signal.SIGKILL)
        if process.returncode != (0 if moment is None else -signal.SIGKILL):
            raise BenchError(f"an attempt of the job ended by itself with {process.returncode}")
        output.seek(0)
        # The last line may be cut off by the kill.
        return {int(line) for line in output if line.endswith("\n") and line.strip() != READY}


# --- the job


def _calls(count: int) -> Iterator[Any]:
    from lion_ray.gateway.calls import Call

    for row in range(count):
        yield Call(messages=({"role": "user", "content": prompt(row)},), max_tokens=MAX_TOKENS, role="teacher")


def _config(in_flight: int) -> Any:
    from lion_ray.config import EndpointConfig

    return EndpointConfig(model=MODEL, api_key_env=None, max_concurrency=in_flight)


async def _work(given: argparse.Namespace) -> None:
    from lion_ray.gateway.calls import Completion
    from lion_ray.gateway.client import Client
    from lion_ray.gateway.journal import Journal

    journal = Journal.open(given.journal)
    client = Client("default", _config(given.in_flight), journal, base_url=given.url)
    os.write(1, f"{READY}\n".encode())

    async def shard(rows: Sequence[tuple[int, Any]]) -> int:
        async def one(row: int, call: Any) -> bool:
            answered = isinstance(await client.complete(call), Completion)
            if answered:
                os.write(1, f"{row}\n".encode())
            return answered

        return sum(await asyncio.gather(*(one(row, call) for row, call in rows)))

    await shards_at_once(shard, list(enumerate(_calls(given.calls))), given.in_flight)
    await client.close()
    await journal.close()


async def _journaled(given: argparse.Namespace) -> None:
    """Print the rows in the journal, and the digests by which the server counts their bodies."""
    import orjson

    from bench.stub_server import digest_of
    from lion_ray.gateway.journal import Journal
    from lion_ray.gateway.request import as_sent, wire_body

    config = _config(given.in_flight)
    journal = Journal.open(given.journal)
    rows, bodies = [], []
    for row, call in enumerate(_calls(given.calls)):
        sent = as_sent(call, config)
        if await journal.get(sent.key(config.model)) is not None:
            rows.append(row)
            bodies.append(digest_of(orjson.dumps(wire_body(sent, config))))
    await journal.close()
    print(json.dumps({"rows": rows, "bodies": bodies}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("work", "journaled"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    given = parser.parse_args()
    given.journal = str(given.journal)
    run(_work(given) if given.part == "work" else _journaled(given))


if __name__ == "__main__":
    main()
