"""What a disturbed run came to, against one that was left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from lion_ray.core.store import RunStore
from lion_ray.gateway.journal.segments import SUFFIX
from tests.stub_api import fetch_stats

POOLS = ("pool-0", "pool-1", "pool-heldout", "answers-0", "answers-1", "iteration-1/student")
VERDICTS = ("iteration-1/verdicts/hard.parquet", "iteration-1/verdicts/easy.parquet")
WEIGHTS = "iteration-2/checkpoint/model/model.safetensors"


def journaled(store: RunStore) -> Counter[str]:
    """How often each call's completion is in the journal, torn tails left out."""
    segments: dict[str, list[dict[str, Any]]] = {}
    for name in store.names("journal"):
        if name.endswith(SUFFIX):
            lines = store.read_bytes(f"journal/{name}").split(b"\n")[:-1]
            segments[name] = [orjson.loads(line[9:]) for line in lines]
    # A segment that others were merged into says so in a line of its own, and they may still be there beside it.
    merged = [record["merged"] for records in segments.values() for record in records if "merged" in record]
    gone = {Path(name).name for one in merged for name in (*one["replaces"], *one["sums"])}
    return Counter(
        record["key"]
        for name, records in segments.items()
        for record in records
        if "key" in record and (name not in gone or any("merged" in one for one in records))
    )


def table_of(store: RunStore, stage: str) -> pa.Table:
    """All rows of a committed stage."""
    manifest = store.stage(stage).manifest()
    assert manifest is not None, f"{stage} was not committed"
    return store.stage(stage).read(manifest["parts"])


def assert_same(store: RunStore, undisturbed: RunStore) -> None:
    """Every pool, answer, verdict and the last weights are, byte for byte, those of the other run."""
    for stage in POOLS:
        assert table_of(store, stage).equals(table_of(undisturbed, stage)), f"{stage} differs"
    for name in VERDICTS:
        assert store.read_table(name).equals(undisturbed.read_table(name)), f"{name} differs"
    assert store.read_bytes(WEIGHTS) == undisturbed.read_bytes(WEIGHTS), "the final weights differ"


def bought_twice(base_url: str) -> int:
    """Answers that the stub gave in full to a call that it had answered before."""
    repeated = fetch_stats(base_url)["repeated"]
    return sum(repeated.values()) - len(repeated)
