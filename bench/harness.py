"""A bench's processes: the stub server, and clients that print their result as their last line.

Every process started here ends with the block that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Measured

ROOT = Path(__file__).resolve().parents[1]


class BenchError(Exception):
    """A client under test failed."""


@dataclass(frozen=True)
class Stub:
    """A running stub server."""

    url: str

    def stats(self, *, bodies: bool = False) -> dict[str, Any]:
        query = "?bodies" if bodies else ""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/stats{query}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextlib.contextmanager
def stub_server(*options: str) -> Iterator[Stub]:
    command = [sys.executable, "-m", "bench.stub_server", *options]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Stub(process.stdout.readline().strip())
        finally:
            process.terminate()


def environment() -> dict[str, str]:
    """This process's environment, without variables that send a client through a proxy or to a real endpoint."""
    unwanted = ("http_proxy", "https_proxy", "all_proxy", "openai_api_key", "openai_base_url", "pythonpath")
    return {name: value for name, value in os.environ.items() if name.lower() not in unwanted}


def run_client(python: str | Path, module: str, *arguments: str, timeout_s: float = 600) -> dict[str, Any]:
    """Run a client to its end; returns the JSON of its last line.

    Raises BenchError with its last output if it failed.
    """
    command = [str(python), "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{module} took more than {timeout_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"{module} ended with {done.returncode}: {output[-1][:300] if output else 'no output'}")
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(line)
            return found
    raise BenchError(f"{module} printed no result")


def measure(stub: Stub, module: str, *arguments: str, calls: int, in_flight: int, python: str | Path = "") -> Measured:
    """One run of one client against a server."""
    sizes = ("--url", stub.url, "--calls", str(calls), "--in-flight", str(in_flight))
    return Measured(**run_client(python or sys.executable, module, *arguments, *sizes))
