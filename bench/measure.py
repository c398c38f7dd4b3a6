"""Shared by all clients under test: rows, timing, and reporting.

Only the standard library, because the peers run this in separate environments.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

MODEL = "gpt-4o-mini"
"""A name that every client knows; the server accepts any."""
MAX_TOKENS = 64
WARM_UP = range(-256, 0)
"""Rows before timing starts: for connections, late imports and the first answer's limits."""


def prompt(row: int) -> str:
    """A user's message, different for every row."""
    return (
        f"Row {row}: explain to a careful reader, in two or three sentences, why a bridge that was built for carts can "
        "carry trains today, what had to be changed for that, and how an engineer would check it before the first one."
    )


@dataclass
class Measured:
    """One run of one client."""

    calls: int = 0
    answered: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured(calls: int) -> Iterator[Measured]:
    """Time the block; the caller sets `answered`. Prints the result as one line of JSON."""
    result = Measured(calls)
    cpu, began = cpu_s(), time.perf_counter()
    yield result
    result.seconds = time.perf_counter() - began
    result.cpu_s = cpu_s() - cpu
    result.peak_mb = peak_mb()
    print(json.dumps(asdict(result)), flush=True)


def cpu_s() -> float:
    """CPU seconds of this process, its threads and the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mb(pid: int | str = "self") -> float:
    """A process's peak memory in MB; unlike ru_maxrss, without its parent's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM"))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="the server's base URL")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--in-flight", type=int, default=256)
    return parser
