"""The known instructions spread over actors: the same pool as with one index, also if a shard is killed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bench.stub_run import bench_run, stub_config
from bench.texts import edited, made
from lion_ray.actors import novelty_shard
from lion_ray.actors.run_store import write_pool
from lion_ray.core import layout
from lion_ray.core.records import INSTRUCTION, instruction_id, table
from lion_ray.core.store import RunStore
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.stages.generating import Generating
from tests.ray.harness import until
from tests.ray.machines import Machines
from tests.stub_api import Answer, StubAPI, canonical_digest

KNOWN = made(60)
ASKED = [*itertools.islice(edited(KNOWN), 40), *made(60, seed=1)]


def instructions(*texts: str) -> pa.Table:
    rows = ({"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0} for t in texts)
    return table(rows, INSTRUCTION)


def answer(body: dict[str, Any]) -> Answer:
    """A candidate like a known text, or another one; some of both come more than once."""
    return Answer(random.Random(canonical_digest(body)).choice(ASKED))


async def generated(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The new pool and all candidates."""
    await Generating().run(replace(run, _feeds={}), 1)
    stage = run.store.stage(layout.pool(1))
    pool = stage.read((stage.manifest() or {})["parts"])
    return pool.to_pylist(), run.store.read_table(layout.candidates(1)).to_pylist()


async def test_a_killed_shard_changes_no_decision(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StubAPI(answer=answer) as stub:
        config = stub_config(tmp_path, "spread", stub.base_url, heldout=1, new=60)
        async with bench_run(config, tmp_path, None) as run:
            prepare(run.store)
            monkeypatch.setattr(novelty_shard, "SHARD_TEXTS", 25)
            stub.gate.clear()
            running = asyncio.create_task(generated(run))
            await stub.until(lambda stats: stats["in_flight"] > 0)  # every shard is built before the first call
            shards = {name: actor for name, actor in run.actors.actors().items() if name.startswith("novelty shard")}
            assert list(shards) == [f"novelty shard {number}" for number in range(3)]
            places = [await shard.alive.remote() for shard in shards.values()]
            os.kill(places[1].pid, signal.SIGKILL)
            while await shards["novelty shard 1"].alive.remote() == places[1]:  # each look is a round trip to it
                pass
            stub.gate.set()
            spread = await running
            until(lambda: not cluster.actors("NoveltyShard"))
            bought = stub.stats()["total"]

            monkeypatch.undo()
            for made_again in (layout.pool(1), layout.iteration(1)):
                run.store.delete_folder(made_again)
            prepare(run.store)
            one = await generated(run)
            assert stub.stats()["total"] == bought, "the journal answers"
    assert spread == one
    pool, candidates = spread
    assert len(pool) > 20
    reasons = Counter(row["reason"] for row in candidates)
    assert reasons["too similar to a known instruction"] > 20


def prepare(store: RunStore) -> None:
    """Commit what a generation needs: the known and the held-out instructions, and the hard and easy ones."""
    for name, texts in (("0", KNOWN), (layout.HELDOUT, ["Held out and secret words."])):
        store.stage(layout.pool(name)).commit(write_pool(store, name, instructions(*texts), 10))
    verdicts = layout.verdicts(1)
    store.write_table(layout.hard(verdicts), instructions(*KNOWN[:20]))
    store.write_table(layout.easy(verdicts), instructions(*KNOWN[20:]))
