"""What a newer lion-ray wrote: refused in one line, before anything is written or bought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.core.attempts import FORMAT as ATTEMPT_FORMAT
from lion_ray.core.attempts import read_attempt
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import FORMAT, RunStore
from lion_ray.gateway.batch.state import VERSION, BatchRecord, BatchRecords
from tests.unit.test_cli import KEY
from tests.warm import lion


def whole(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was begun, and the file that began it."""
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Name a river."}\n')
    config: dict[str, Any] = {
        "run_name": "r",
        "storage_path": str(tmp_path / "runs"),
        "data": {"pool": "pool.jsonl"},
        "endpoints": {"default": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}},
        "student": {"model": "./student"},
    }
    (tmp_path / "c.yaml").write_text(str(config))  # a YAML of one line
    store = RunStore(str(tmp_path / "runs" / "r"))
    store.claim()
    described = {"format": FORMAT, "config": RunConfig(**config).model_dump(mode="json"), "versions": {}}
    store.write_record("run.json", described)
    store.heartbeat(ended=True)
    return tmp_path


@pytest.mark.parametrize("name", ["run.json", "attempt.json"])
def test_a_run_of_a_newer_release_is_left_alone(run: Path, name: str) -> None:
    store = RunStore(str(run / "runs" / "r"))
    found = store.read_record(name)
    assert found is not None
    store.write_record(name, {**found, "format": found["format"] + 1})
    before = whole(run / "runs")
    outcome = lion("run", "c.yaml", cwd=run, env={"OPENAI_API_KEY": KEY})
    assert outcome.code == 2
    assert f"{name}: " in outcome.message
    assert "newer lion-ray" in outcome.message
    assert "(format 2; this version knows 1); use that version" in outcome.message
    assert whole(run / "runs") == before


def test_an_attempt_says_its_format_and_one_without_is_the_first(run: Path) -> None:
    store = RunStore(str(run / "runs" / "r"))
    attempt = read_attempt(store)
    assert attempt is not None
    assert attempt.pop("format") == ATTEMPT_FORMAT
    store.write_record("attempt.json", attempt)
    assert store.claim() == 2


def test_a_newer_release_that_took_a_run_over_is_told(run: Path) -> None:
    store = RunStore(str(run / "runs" / "r"))
    store.claim()
    attempt = read_attempt(store)
    assert attempt is not None
    store.write_record("attempt.json", {**attempt, "format": ATTEMPT_FORMAT + 1})
    with pytest.raises(ConfigError, match="a newer lion-ray wrote it"):
        store.stage("pool-0").commit({"parts": 0})
    assert store.stage("pool-0").manifest() is None


def test_a_batch_of_a_newer_release_is_not_bought_again(tmp_path: Path) -> None:
    records = BatchRecords(str(tmp_path))
    records.write(BatchRecord("n", "http://there", "default", ["k"], 0.0, 0.0, version=VERSION + 1))
    for look in (lambda: records.load("http://there"), lambda: records.reread("n")):
        with pytest.raises(
            ConfigError, match=r"n\.json: a newer lion-ray wrote it \(version 2; this version knows 1\)"
        ):
            look()
    records.write(BatchRecord("n", "http://there", "default", ["k"], 0.0, 0.0))
    assert [record.nonce for record in records.load("http://there")] == ["n"]
