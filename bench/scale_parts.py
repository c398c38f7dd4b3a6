"""What keeps something in memory for every row, part by part: `bench/README.md` says what is measured.

`python -m bench.scale_parts PART ROWS` measures one part in this process and prints JSON. Needs Linux.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

import numpy as np

from bench.measure import cpu_s
from bench.scale_pool import HELDOUT, config, write_pool
from bench.texts import made
from lion_ray.actors.run_store import write_pool as write_parts
from lion_ray.config import DataConfig
from lion_ray.core.store import RunStore
from lion_ray.data.importing import import_data
from lion_ray.gateway.calls import Account, Completion
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.index import Index, Where
from lion_ray.gateway.journal.reader import Reader
from lion_ray.gateway.journal.record import encode_record
from lion_ray.gateway.journal.segments import SIDECAR, SUFFIX, encode_sidecar, load
from lion_ray.similarity.novelty import NoveltyIndex

SEGMENT_ROWS = 50_000
ASKED = 2000
"""Texts that the novelty index is asked about."""


@dataclass
class Memory:
    """MB by which a process grew, at the most: on the heap, and with the mapped files' pages, which may be dropped."""

    heap: float = 0.0
    resident: float = 0.0


def _resident() -> tuple[float, float]:
    status = Path("/proc/self/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "VmRSS:"))}
    return kb["RssAnon"] * 1024 / 1e6, kb["VmRSS"] * 1024 / 1e6


@contextmanager
def watched(every_s: float = 0.05) -> Iterator[Memory]:
    """The growth of this process during the block."""
    found, before, over = Memory(), _resident(), threading.Event()

    def look() -> None:
        heap, resident = _resident()
        found.heap = max(found.heap, round(heap - before[0], 1))
        found.resident = max(found.resident, round(resident - before[1], 1))

    def watch() -> None:
        while not over.wait(every_s):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        look()


def importing(rows: int, folder: Path) -> dict[str, Any]:
    """A .jsonl file into the parts of pool 0, as the run store actor does it."""
    write_pool(folder / "pool.jsonl", rows)
    store = RunStore(str(folder / "run"))
    store.claim()
    shard_rows = config(folder, rows).rows_per_shard(rows)
    import_data(DataConfig(pool="pool.jsonl", heldout=1, limit=100), folder, 0)  # what is imported late
    with watched() as memory:
        began = cpu_s()
        taken = import_data(DataConfig(pool="pool.jsonl", heldout=HELDOUT), folder, 0)
        read = cpu_s()
        manifest = write_parts(store, "0", taken.pool, shard_rows)
        written = cpu_s()
    return {
        "file_mb": round((folder / "pool.jsonl").stat().st_size / 1e6, 1),
        "table_mb": round(taken.pool.nbytes / 1e6, 1),
        "parts": manifest["parts"],
        "read_cpu_s": round(read - began, 1),
        "write_cpu_s": round(written - read, 1),
        "heap_mb": memory.heap,
        "resident_mb": memory.resident,
    }


def journal(rows: int, folder: Path) -> dict[str, Any]:
    """Opening a journal without and with sidecars, and adding the same records to an index one by one."""
    account = Account("bench", "teacher", "answers-0")
    keys = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(rows)]
    for start in range(0, rows, SEGMENT_ROWS):
        with (folder / f"{start + 1:020d}-bench-{0:08d}{SUFFIX}").open("wb") as file:
            for key in keys[start : start + SEGMENT_ROWS]:
                file.write(
                    encode_record(Completion(key, "It is known. " * 20, "stop", "m", "default", 100, 60), account)
                )
    place = Folder.at(str(folder))
    found: dict[str, Any] = {"journal_mb": round(sum(place.sizes().values()) / 1e6, 1)}
    found["scan_cpu_s"] = _opened(place, rows)
    for name, size in place.sizes().items():
        place.write(name + SIDECAR, encode_sidecar(load(place, name, size, sidecar=False)))
    with watched() as memory:
        found["open_cpu_s"] = _opened(place, rows)
    found["open_heap_mb"] = memory.heap
    index, longest, began = Index(), 0.0, cpu_s()
    for row, key in enumerate(keys):
        at = time.perf_counter()
        index.add(bytes.fromhex(key), Where(0, row, 100))
        longest = max(longest, time.perf_counter() - at)
    found |= {"add_us": round((cpu_s() - began) / rows * 1e6, 2), "longest_add_ms": round(longest * 1e3, 1)}
    return found | {"index_mb": round(index.nbytes / 1e6, 1)}


def _opened(folder: Folder, rows: int) -> float:
    began = cpu_s()
    reader = Reader(folder)
    reader.update()
    assert len(reader.index) == rows
    return round(cpu_s() - began, 2)


def novelty(rows: int, folder: Path) -> dict[str, Any]:
    """The generator's index of all known instructions."""
    texts = made(rows + ASKED)
    NoveltyIndex(["warm up"]).is_novel("warm up")
    with watched() as memory:
        began = cpu_s()
        index = NoveltyIndex(texts[:rows])
        built = cpu_s()
    times = []
    for text in texts[rows:]:
        at = time.process_time()
        index.is_novel(text)
        times.append(time.process_time() - at)
    return {
        "build_cpu_s": round(built - began, 1),
        "heap_mb": memory.heap,
        "query_ms": round(float(np.mean(times)) * 1e3, 3),
        "query_p99_ms": round(float(np.quantile(times, 0.99)) * 1e3, 3),
    }


PARTS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "import": importing,
    "journal": journal,
    "novelty": novelty,
}


def main() -> int:
    part, rows = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as name:
        print(json.dumps({"part": part, "rows": rows} | PARTS[part](rows, Path(name))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
