"""The run folder and the journal in an S3 bucket, over real HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from lion_ray import attempts as store_module
from lion_ray.addresses import below
from lion_ray.errors import InfrastructureError, RunConflictError
from lion_ray.gateway.batch.state import BatchRecord, BatchRecords
from lion_ray.gateway.journal import Journal
from lion_ray.store import RunStore
from tests.gateway.support import ACCOUNT, completion, served
from tests.object_store import BUCKET, s3_server

TABLE = pa.table({"id": ["a", "b"], "n": [1, 2]})


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


def test_stages_are_committed_there(bucket: str, tmp_path: Path) -> None:
    store = RunStore(f"{bucket}/stages")
    assert store.claim() == 1
    stage = store.stage("iteration-1/student")
    stage.write_part(0, TABLE)
    stage.write_part(1, TABLE.slice(1))
    assert (stage.manifest(), stage.part_indexes()) == (None, {0, 1})
    stage.commit({"parts": 2})
    again = RunStore(f"{bucket}/stages")
    assert again.stage("iteration-1/student").manifest() == {"parts": 2}
    assert again.stage("iteration-1/student").read(2)["n"].to_pylist() == [1, 2, 2]
    store.delete("iteration-1/student/part-00001.parquet")
    assert stage.part_indexes() == {0}


def test_a_checkpoint_goes_there_and_comes_back(bucket: str, tmp_path: Path) -> None:
    store = RunStore(f"{bucket}/checkpoints")
    made = tmp_path / "made"
    (made / "model" / "deeper").mkdir(parents=True)
    (made / "model" / "deeper" / "config.json").write_text("{}")
    (made / "model" / "weights.safetensors").write_bytes(b"x" * 100_000)
    store.adopt_folder(made, "iteration-1/checkpoint")
    found = store.local_folder("iteration-1/checkpoint/model", cache=tmp_path / "cache")
    assert (found / "weights.safetensors").read_bytes() == b"x" * 100_000
    assert (found / "deeper" / "config.json").read_text() == "{}"


def test_of_two_drivers_one_goes_on_and_the_other_says_so(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RunStore(f"{bucket}/fenced"), RunStore(f"{bucket}/fenced")
    first.claim()
    with pytest.raises(RunConflictError, match="another attempt"):
        second.claim()
    # The first one's machine stops answering for longer than an attempt may.
    monkeypatch.setattr(store_module, "STALE_S", 0.0)
    assert second.claim() == 2
    with pytest.raises(RunConflictError, match="another attempt"):
        first.stage("pool-0").commit({"parts": 0})
    with pytest.raises(RunConflictError):
        first.heartbeat()
    second.stage("pool-0").commit({"parts": 0})
    assert first.stage("pool-0").manifest() == {"parts": 0}


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(InfrastructureError, match="nowhere/run/x: the storage refused"):
        RunStore("s3://nowhere/run").write_bytes("x", b"1")


async def test_the_journal_is_kept_there(bucket: str) -> None:
    journal = Journal.open(f"{bucket}/journal")
    for number in range(3):
        await journal.put(completion(number), ACCOUNT)
    await journal.close()
    again = Journal.open(f"{bucket}/journal")
    assert await served(again, range(4)) == [0, 1, 2]
    assert again.spending(ACCOUNT.run)[ACCOUNT].prompt_tokens == 3
    await again.close()


@pytest.mark.parametrize("turn", range(3))
def test_options_in_the_address_reach_the_storage(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turn: int
) -> None:
    """Without the environment's endpoint and region, in any order; every run has its own folder."""
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").replace(":", "%3A")
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    options = [f"endpoint_override={host}", "scheme=http", "region=us-east-1"]
    storage = f"{bucket}/options{turn}?{'&'.join(options[turn:] + options[:turn])}"
    for name in ("one", "two"):
        store = RunStore(below(storage, name))
        store.claim()
        store.write_json("mine.json", name)
        BatchRecords(store.journal(None)).write(BatchRecord("n", "a", "default", [], 0.0, 0.0))
    assert [RunStore(below(storage, name)).read_json("mine.json") for name in ("one", "two")] == ["one", "two"]
    assert RunStore(storage).names("") == ["one", "two"]
    assert RunStore(storage).names("one/journal/batches") == ["n.json"]


def test_what_is_wrong_with_an_address_is_one_line(bucket: str) -> None:
    with pytest.raises(InfrastructureError, match="there is no such bucket") as caught:
        RunStore("s3://nowhere/run").write_bytes("x", b"1")
    assert "\n" not in str(caught.value)
    with pytest.raises(InfrastructureError, match="no such storage") as caught:
        RunStore(f"{bucket}/x?reggion=us-east-1")
    assert "\n" not in str(caught.value)
