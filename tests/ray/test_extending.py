"""A whole run in which every exchangeable part is docs/extending.md's own, on rows of one turn and of several.

The parts' contracts, and what is told of parts that cannot be used: `unit/test_extending.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.ray.harness import LATENCY, Job
from tests.ray.outcome import table_of
from tests.stub_api import stub_process
from tests.unit.test_extending import example_config, examples

POOL = (
    {"instruction": "Describe item 1 of the kitchen list."},
    {"instruction": "Summarize the passage.", "context": "Bread rises."},
    {"system_prompt": "You are a baker.", "question": "How long does dough rest?", "response": "An hour."},
    {
        "messages": [
            {"role": "user", "content": "Name a metal."},
            {"role": "assistant", "content": "Iron."},
            {"role": "user", "content": "And a lighter one?"},
        ]
    },
    {
        "conversations": [
            {"from": "human", "value": "Count to three."},
            {"from": "gpt", "value": "One, two, three."},
            {"from": "human", "value": "Now backwards."},
        ]
    },
    {"instruction": "Say that you are sorry."},
)
HELDOUT = (
    {"instruction": "Compare two trees."},
    {
        "messages": [
            {"role": "system", "content": "You are a guide."},
            {"role": "user", "content": "Where is the library?"},
        ]
    },
)
OWN: dict[str, Any] = {
    "iterations": 0,
    "student": {"prompt": "chat"},
    "imitation": {"loss_on": "assistant_turns"},
    "discrimination": {"judge_heldout": "ends"},
    "evaluation": {"checks": []},
}
"""Over the page's own settings."""


KNOWN = (
    (("at most 100 words", "You are a baker.", "How long does dough rest?"), "One hour, said the baker."),
    (("at most 100 words", "Name a metal.", "Iron.", "And a lighter one?"), "Lithium is lighter than iron."),
    (("at most 100 words", "Say that you are sorry."), "I am sorry for that."),
)
"""What the teacher answers only where it was asked by the page's source, and the whole conversation."""
TRACE = """

def traced(loss):
    def method(self, logits, batch):
        __import__("pathlib").Path(__file__).with_name("objective").write_text(repr(self.factor))
        return loss(self, logits, batch)
    return method

HardRowsCountMore.loss = traced(HardRowsCountMore.loss)
"""
"""Leaves a file behind: of seeds alone its loss is the built-in one's."""


def test_a_run_of_the_page_s_own_parts(tmp_path: Path, one_cluster: Cluster) -> None:
    for name, code in examples().items():
        (tmp_path / name).write_text(code + (TRACE if name == "my_objective.py" else ""))
    with stub_process(*LATENCY, "--known", json.dumps(KNOWN)) as base_url:
        changes = example_config()
        for section, keys in OWN.items():
            changes[section] = changes.get(section, {}) | keys if isinstance(keys, dict) else keys
        job = Job(tmp_path, base_url, changes, {"RAY_ADDRESS": one_cluster.address})
        for name, rows in (("pool", POOL), ("heldout", HELDOUT)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job.finish()
    store = job.store

    asked = {row["id"]: row["text"] for row in table_of(store, "pool-0").to_pylist()}
    answers = {asked[row["id"]]: row["text"] for row in table_of(store, "answers-0").to_pylist()}
    assert {text for _, text in KNOWN} <= set(answers.values()), "by the page's source, system message and turns too"
    assert answers["Now backwards."]

    filtered = store.stage("answers-0/filtered").manifest() or {}
    assert filtered["filtered"] == {"an apology": 1}
    measured = store.read_json("iteration-1/checkpoint/model/training.json")
    assert measured["metrics"]["samples"] == len(POOL) - 1

    assert (tmp_path / "objective").read_text() == "3.0"

    for iteration in (0, 1):
        said = table_of(store, f"iteration-{iteration}/heldout/student").to_pylist()
        assert [row["status"] for row in said] == ["ok"] * len(HELDOUT)
        verdicts = table_of(store, f"iteration-{iteration}/heldout/verdicts").to_pylist()
        words = [json.loads(row["detail"])["word"] for row in verdicts]
        assert [row["gap"] for row in verdicts] == [{"first": 2.0, "both": 0.0, "second": -2.0}[word] for word in words]
    assert store.exists("report.html")
