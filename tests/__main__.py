"""``python -m tests`` (`make test`): the tests in two halves side by side, those with Ray and all others.

Much of what they do is one process that imports while all others wait for it, so two halves are done in two thirds of
the time on two cores. Where memory is short, the halves run one after the other. ``pytest`` alone runs everything in
one process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOM_GIB = 10
"""Memory that both halves together may need."""


def free_gib() -> float:
    """Memory that can be had now; where the kernel does not say, plenty."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    known = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return known.get("MemAvailable", 0) / 2**20


def main(options: list[str]) -> int:
    """Run both halves; returns the worse exit code."""
    pytest = [sys.executable, "-m", "pytest", *options]
    with_ray, others = [*pytest, "tests/ray"], [*pytest, "tests", "--ignore=tests/ray"]
    if free_gib() < ROOM_GIB:
        print(f"tests: less than {ROOM_GIB} GiB of memory are free; one half after the other", flush=True)
        return max(subprocess.run(one, cwd=ROOT).returncode for one in (others, with_ray))
    print("tests: those without Ray run beside these, and are shown at the end", flush=True)
    with tempfile.TemporaryFile() as shown:
        beside = subprocess.Popen([*others, "--color=no"], cwd=ROOT, stdout=shown, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run(with_ray, cwd=ROOT).returncode
        finally:
            second = beside.wait()
            shown.seek(0)
            print("\ntests: those without Ray", shown.read().decode(errors="replace"), sep="\n", flush=True)
    return max(first, second)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
