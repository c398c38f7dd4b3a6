"""What is in the data set, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lion_ray.core.records import instruction_id
from lion_ray.export.dataset import ANSWERS, JUDGED
from tests.export.runs import CUT_OFF, FAILED, GENERATED, HELD_OUT, SEEDS

LOAD = """
import json, sys
from datasets import load_dataset
found = {}
for config in (None, "answers", "judged"):
    loaded = load_dataset(sys.argv[1], config) if config else load_dataset(sys.argv[1])
    found[str(config)] = {split: rows.to_list() for split, rows in loaded.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data set as its readers load it: by the folder, as the card's front matter lays it out."""
    import json

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    command = [sys.executable, "-c", LOAD, str(exported / "data")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def texts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["instruction"] for row in rows}


def test_it_loads_by_its_folder_alone(loaded: dict[str, Any]) -> None:
    assert loaded["None"] == loaded["answers"]
    assert {config: list(splits) for config, splits in loaded.items() if config != "None"} == {
        "answers": ["train", "left_out", "heldout"],
        "judged": ["cache", "heldout"],
    }


def test_train_is_what_was_trained_on(loaded: dict[str, Any]) -> None:
    train = loaded["answers"]["train"]
    left = {SEEDS[FAILED], SEEDS[CUT_OFF]}
    assert texts(train) == set(SEEDS) - left | {text for text, _ in GENERATED}
    assert {row["iteration"] for row in train if row["source"] == "seed"} == {1}
    assert {row["iteration"] for row in train if row["source"] != "seed"} == {2}
    assert {row["parent_id"] for row in train if row["source"] != "seed"} == {instruction_id(SEEDS[0])}
    one = train[0]
    assert one == {
        "id": instruction_id(SEEDS[0]),
        "instruction": SEEDS[0],
        "messages": [{"role": "user", "content": SEEDS[0]}],
        "answer": f"Answer: {SEEDS[0]}",
        "source": "seed",
        "parent_id": None,
        "iteration": 1,
        "left_out": None,
        "teacher": "teacher-1",
        "endpoint": "api",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": 0.25,
        "call": "call-0-0",
    }


def test_what_was_paid_for_and_not_trained_on_is_apart(loaded: dict[str, Any]) -> None:
    (row,) = loaded["answers"]["left_out"]
    assert (row["instruction"], row["left_out"], row["cost_usd"]) == (SEEDS[CUT_OFF], "answer cut off", 0.25)
    everything = [row for splits in loaded.values() for rows in splits.values() for row in rows]
    assert SEEDS[FAILED] not in texts(everything), "an answer that failed is nowhere"


def test_the_held_out_set_is_apart(loaded: dict[str, Any]) -> None:
    assert texts(loaded["answers"]["heldout"]) == set(HELD_OUT)
    assert not texts(loaded["answers"]["train"]) & set(HELD_OUT)
    judged = loaded["judged"]["heldout"]
    assert sorted((row["iteration"], row["instruction"]) for row in judged) == sorted(
        (iteration, text) for iteration in (0, 2) for text in HELD_OUT
    )


def test_judged_rows_say_who_scored_what(loaded: dict[str, Any]) -> None:
    rows = loaded["judged"]["cache"]
    assert texts(rows) == set(SEEDS) - {SEEDS[FAILED]}
    for row in rows:
        assert row["hard"] == (row["teacher_score"] - row["student_score"] >= 1.0)
        assert row["teacher_first"] == [row["teacher_score"], row["student_score"]]
        assert row["teacher_answer"] == f"Answer: {row['instruction']}"
        assert row["student_answer"].startswith("Student: ")
        assert (row["judge"], row["judge_endpoint"], row["calls"]) == ("teacher-1", "api", ["one", "two"])
    assert {row["hard"] for row in rows} == {True, False}


def test_the_columns_of_every_file_are_the_same(exported: Path) -> None:
    for config, schema in (("answers", ANSWERS), ("judged", JUDGED)):
        files = sorted((exported / "data" / config).glob("*.parquet"))
        assert len(files) > 2
        for path in files:
            assert pq.read_schema(path).equals(schema), path.name
