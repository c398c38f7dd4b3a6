"""More calls at once than this process may open connections: told in one line at once, and nothing is lost by it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core import descriptors
from tests.stub_api import fetch_stats, stub_process

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64
CALLS = 150
BUYER = """
import asyncio, json, sys
from lion_ray.config import EndpointConfig
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from tests.gateway.support import call

async def main(base_url, folder, transport, calls):
    journal = Journal.open(folder)
    settings = {"transport": transport, "max_concurrency": 1000, "prices": {"input": 1, "output": 1}}
    config = EndpointConfig(model="stub-model", api_key_env=None, **settings)
    client = Client("default", config, journal, run="job", base_url=base_url)
    await client.complete(call("The first?"))  # until it is answered, few go out
    outcomes = await asyncio.gather(*(client.complete(call(f"Question {n}?")) for n in range(calls)),
                                    return_exceptions=True)
    errors = sorted({f"{type(one).__name__}: {one}" for one in outcomes if isinstance(one, BaseException)})
    answers = sum(not isinstance(one, BaseException) for one in outcomes)
    await client.close()
    uncertain = sum(one.usd for one in journal.uncertain("job"))
    await journal.close()
    print(json.dumps({"errors": errors, "answers": answers, "uncertain": uncertain}))

asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
"""


def buy(base_url: str, folder: Path, transport: str, limit: int | None) -> dict[str, Any]:
    """What a process came to that may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard) if limit is None else (limit, limit))

    command = [sys.executable, "-c", BUYER, base_url, str(folder), transport, str(CALLS)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=narrow)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("transport", ["aiohttp", "openai"])
def test_descriptors_that_are_used_up_are_told_and_nothing_is_lost(tmp_path: Path, transport: str) -> None:
    with stub_process("--latency-ms", "700") as base_url:
        short = buy(base_url, tmp_path, transport, LIMIT)
        bought = fetch_stats(base_url)["completed"]
        assert short["errors"], "it has met the limit"
        assert all("\n" not in error for error in short["errors"])
        (line,) = [error for error in short["errors"] if "no connection to" in error]
        assert line.startswith(f"InfrastructureError: no connection to {base_url}")
        assert f"may open no more files and connections (its limit is {LIMIT})" in line
        assert "ulimit -n 4096" in line
        assert "max_concurrency" in line
        assert short["uncertain"] == 0, "a call that could not be sent was not billed"
        assert bought >= short["answers"] + 1
        whole = buy(base_url, tmp_path, transport, None)
        assert (whole["errors"], whole["answers"]) == ([], CALLS)
        stats = fetch_stats(base_url)
        assert stats["total"] - stats["completed"] == 0
        assert sum(stats["repeated"].values()) - len(stats["repeated"]) == 0, "what was answered was kept"


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    code = (
        "import resource; from lion_ray.core.descriptors import raise_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 100)); raise_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(100, 100)"


def test_a_remedy_names_the_hard_limit_where_it_is_in_the_way() -> None:
    assert "(the hard limit, 100, has to be raised too)" in descriptors.remedy(50, 100)
    assert "hard limit" not in descriptors.remedy(1024, 10**6)
    assert "ulimit -n 8192" in descriptors.remedy(2048, resource.RLIM_INFINITY)
