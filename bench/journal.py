"""The costs of a journal: opening it, writes per second, its index's memory, compacting it.

`bench/README.md` explains the keys. Everything is written to a temporary folder and deleted at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lion_ray.gateway.calls import Account, Completion
from lion_ray.gateway.journal import Journal
from lion_ray.gateway.journal.compaction import compact
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.record import encode_record, head_of
from lion_ray.gateway.journal.segments import SIDECAR, SUFFIX
from lion_ray.gateway.journal.writer import SEGMENT_BYTES, Line, Writer

ACCOUNTS = [Account("bench", role, stage) for role in ("teacher", "referee") for stage in ("one", "two")]

# In a separate process, because memory used before would hide the memory of opening.
OPENING = """
import gc, json, random, sys, time
from lion_ray.gateway.journal import Journal

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

import pyarrow, numpy, concurrent.futures.thread
before = memory("VmRSS")
began = time.perf_counter()
journal = Journal.open(sys.argv[1])
seconds = time.perf_counter() - began
gc.collect()
resident, most = memory("VmRSS") - before, memory("VmHWM") - before
keys = [f"{random.getrandbits(256):064x}" for _ in range(20000)]
began = time.perf_counter()
for key in keys:
    key in journal
lookup = (time.perf_counter() - began) / len(keys)
print(json.dumps({"seconds": seconds, "mib": resident, "most_mib": most, "calls": len(journal), "lookup": lookup}))
"""


def completion(number: int, text: str) -> Completion:
    return Completion(
        key=hashlib.sha256(str(number).encode()).hexdigest(),
        text=text,
        finish_reason="stop",
        model="bench-model",
        endpoint="default",
        prompt_tokens=200,
        completion_tokens=400,
        seconds=1.5,
        cost_usd=0.0006,
    )


def texts(size: int) -> list[str]:
    """Some texts that give lines of about `size` bytes."""
    rng = random.Random(0)
    empty = len(encode_record(completion(0, ""), ACCOUNTS[0]))
    words = ["lion", "pool", "of", "the", "teacher", "answers", "instruction", "and", "score", "\n"]
    return [" ".join(rng.choices(words, k=size))[: max(1, size - empty)] for _ in range(64)]


def fill(root: str, records: int, size: int) -> None:
    """Write records like those of a run, in large batches."""
    writer = Writer(Folder.at(root), sync=os.fsync, claim=lambda name: None, segment_bytes=SEGMENT_BYTES)
    some = texts(size)
    for start in range(0, records, 10_000):
        batch = []
        for number in range(start, min(start + 10_000, records)):
            one, account = completion(number, some[number % len(some)]), ACCOUNTS[number % len(ACCOUNTS)]
            batch.append(Line(head_of(one, account), encode_record(one, account)))
        writer.commit(batch)
    writer.close()


async def puts(root: str, records: int, lanes: int, size: int) -> float:
    """Writes per second with `lanes` concurrent callers, each waiting until its record is durable."""
    journal = Journal.open(root)
    some = texts(size)

    async def lane(first: int) -> None:
        for number in range(first, records, lanes):
            await journal.put(completion(number, some[number % len(some)]), ACCOUNTS[number % len(ACCOUNTS)])

    began = time.perf_counter()
    await asyncio.gather(*(lane(first) for first in range(lanes)))
    seconds = time.perf_counter() - began
    await journal.close()
    return records / seconds


def opened(root: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", OPENING, root], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def measure(root: Path, records: int, size: int) -> dict[str, object]:
    """All measurements, by the keys that `bench/README.md` explains."""
    held, put = root / "held", root / "put"
    held.mkdir()
    fill(str(held), records, size)
    files = list(held.glob(f"*{SUFFIX}"))
    found: dict[str, object] = {
        "records": records,
        "record_bytes": round(sum(file.stat().st_size for file in files) / records),
        "segments": len(files),
    }
    with_sidecars = opened(str(held))
    assert with_sidecars["calls"] == records
    began = time.perf_counter()
    assert compact(Folder.at(str(held))).copies == 0
    found["compact_s"] = round(time.perf_counter() - began, 2)
    found["open_compacted_s"] = round(opened(str(held))["seconds"], 3)
    for file in held.glob(f"*{SIDECAR}"):
        file.unlink()
    without = opened(str(held))
    assert without["calls"] == records
    found |= {
        "open_s": round(with_sidecars["seconds"], 3),
        "open_without_sidecars_s": round(without["seconds"], 2),
        "index_mib": round(with_sidecars["mib"], 1),
        "open_peak_mib": round(with_sidecars["most_mib"], 1),
        "open_without_sidecars_peak_mib": round(without["most_mib"], 1),
        "lookup_us": round(with_sidecars["lookup"] * 1e6, 2),
    }
    for lanes in (1, 64, 1024):
        rate = asyncio.run(
            puts(str(put / str(lanes)), min(records, 300 * lanes if lanes < 64 else 30_000), lanes, size)
        )
        found[f"puts_per_s_{lanes}"] = round(rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, help="records in the opened journal (default 1,000,000)")
    parser.add_argument("--bytes", type=int, default=2000, help="length of a record's line (default 2,000)")
    parser.add_argument("--quick", action="store_true", help="50,000 records")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--folder", help="where to write, instead of the system's temporary folder")
    options = parser.parse_args()
    records = options.records or (50_000 if options.quick else 1_000_000)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lion-ray-bench-") as root:
        found = measure(Path(root), records, options.bytes)
    for key, value in found.items():
        print(f"{key:32} {value}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
