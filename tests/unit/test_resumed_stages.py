"""What a resumed stage does again, what it does not, and when too many failed rows end it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.actors.run_store import RunStoreServer
from lion_ray.config import RunConfig
from lion_ray.core.errors import DataError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ANSWER, OK, QUARANTINED, table
from lion_ray.core.store import Manifest, RunStore
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Feed, Shard
from lion_ray.pipeline.shard_stage import shard_stage
from tests.in_process import Here

STAGE, SHARDS, ROWS = "answers-0", 4, 5


class Scene:
    """A stage of four shards of five rows each, in a run that may be started again."""

    def __init__(self, root: Path, **config: Any) -> None:
        written = {
            "run_name": "small",
            "data": {"pool": "pool.jsonl"},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "./student"},
        }
        self._config = RunConfig.model_validate(written | config)
        self.store = RunStore(str(root))
        self.store.claim()
        self.done: list[int] = []
        """The shards that were worked on, since the last start."""
        self.failing: dict[int, int] = {}
        """How many rows of a shard fail."""
        self.run_store = Here(RunStoreServer(self.store))

    async def start(self) -> Manifest:
        self.done.clear()
        self.run_store.calls.clear()
        group = SimpleNamespace(run_store=self.run_store)
        run = Run(self._config, Path(), self.store, Progress(io.StringIO()), group)
        shards = [Shard("0", index) for index in range(SHARDS)]
        return await shard_stage(run, STAGE, "the teacher answers", Feed.of(shards), self._work)

    async def _work(self, index: int, shard: Shard) -> pa.Table:
        assert shard == Shard("0", index)
        self.done.append(index)
        return self.part(index)

    def part(self, index: int) -> pa.Table:
        failed = self.failing.get(index, 0)
        status = [QUARANTINED] * failed + [OK] * (ROWS - failed)
        reason = ["timed out"] * failed + [None] * (ROWS - failed)
        rows = ({"id": f"{index}-{n}", "text": "t", "status": status[n], "reason": reason[n]} for n in range(ROWS))
        return table(rows, ANSWER)

    @property
    def parts(self) -> set[int]:
        return self.store.stage(STAGE).part_indexes()


@pytest.mark.parametrize("kept", [[], [0], [3], [1, 2], [0, 1, 2, 3]])
async def test_a_committed_part_is_read_and_never_done_again(tmp_path: Path, kept: list[int]) -> None:
    scene = Scene(tmp_path)
    for index in kept:
        scene.store.stage(STAGE).write_part(index, scene.part(index))
    manifest = await scene.start()
    assert sorted(scene.done) == sorted({0, 1, 2, 3} - set(kept))
    assert (manifest["rows"], manifest["parts"]) == (SHARDS * ROWS, SHARDS)
    given = {arguments[1]: arguments[2] for name, arguments in scene.run_store.calls if name == "commit"}
    assert {index for index, rows in given.items() if rows is None} == set(kept)


async def test_a_committed_stage_is_not_looked_at_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    manifest = await scene.start()
    assert await scene.start() == manifest
    assert scene.done == []
    assert scene.run_store.calls == [], "not even its parts are read"


async def test_too_many_failed_rows_end_the_run_and_only_their_parts_are_done_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_failure_rate=0.2)
    scene.failing = {1: 4, 2: 1}  # 5 of 20 rows: a quarter
    with pytest.raises(DataError, match=r"5 of 20 rows failed \(25%, allowed 20%\): 5 × timed out"):
        await scene.start()
    assert scene.parts == {0, 3}
    assert scene.store.stage(STAGE).manifest() is None
    scene.failing = {1: 4}  # 4 of 20 are as many as may
    manifest = await scene.start()
    assert sorted(scene.done) == [1, 2]
    assert manifest["quarantined"] == {"timed out": 4}


async def test_a_share_of_none_allows_none(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_failure_rate=0.0)
    scene.failing = {3: 1}
    with pytest.raises(DataError, match="1 of 20 rows failed"):
        await scene.start()
    scene.failing = {}
    assert (await scene.start())["quarantined"] == {}
