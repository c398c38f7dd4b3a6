"""On-policy rounds: whole small runs with real parts; one is out of money in a round, one is killed in each step.

The rewards' arithmetic: `unit/test_rubric.py`; the objective: `training/test_policy_gradient.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from lion_ray.core import layout
from lion_ray.core.errors import BudgetError
from lion_ray.core.store import RunStore
from lion_ray.models.checkpoints import last_round, student_ref
from lion_ray.pipeline.results import results
from lion_ray.pipeline.status import read_status
from tests.ray.harness import LATENCY, Job, kill, wait_until_gone
from tests.ray.outcome import bought_twice, journaled, table_of
from tests.stub_api import fetch_stats, stub_process

ROUNDS, PROMPTS, SAMPLES = 2, 4, 3
CHANGES: dict[str, Any] = {
    "iterations": 0,
    "data": {"limit": 12},
    "imitation": {"epochs": 2, "lora": {"rank": 4}},
    "on_policy": {
        "rounds": ROUNDS,
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "max_tokens": 8,
        "steps": 2,
        "learning_rate": 1e-3,
        "allow_same_judge": True,
    },
    "rubricator": {"max_tokens": 200},
    "verifier": {"max_tokens": 200},
    "discrimination": {"judge_heldout": "never"},
}
ENOUGH, TOO_LITTLE = {"usd": 100}, {"usd": 0.75}


@pytest.mark.long
def test_a_run_with_rounds_out_of_money_in_one_of_them(tmp_path: Path, one_cluster: Cluster) -> None:
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, CHANGES, {"RAY_ADDRESS": one_cluster.address})
        store = job.store
        job.changes |= {"budget": TOO_LITTLE, "student": {"refresh": "memory"}}
        job.write()
        assert job.end() == BudgetError.exit_code, job.words()
        assert store.stage(layout.checkpoint(1)).manifest() is not None
        assert store.stage(layout.rounds(1)).manifest() is None
        stopped_at = last_round(store, 1)
        assert stopped_at < ROUNDS
        assert store.exists(f"{student_ref(store, 1).folder}/model.safetensors"), "a student that can be used"

        job.changes["budget"] = ENOUGH
        job.write()
        job.finish()
        assert not fetch_stats(base_url)["repeated"]
        assert "; from memory" in job.words(), "running engines got a round's weights that way"
    check_rounds(store)


def check_rounds(store: RunStore) -> None:
    manifest = store.stage(layout.rounds(1)).manifest()
    assert manifest is not None
    assert len(manifest["rewards"]) == ROUNDS
    assert manifest["calls"] > 0
    drawn = []
    for number in range(1, ROUNDS + 1):
        prompts = store.read_table(layout.round_prompts(1, number))
        drawn += prompts["id"].to_pylist()
        samples = table_of(store, layout.round_samples(1, number)).to_pylist()
        rewards = table_of(store, layout.round_rewards(1, number)).to_pylist()
        assert len(samples) == len(rewards) == PROMPTS * SAMPLES
        assert len({row["version"] for row in samples}) == 1
        for sample, reward in zip(samples, rewards, strict=True):
            assert (sample["id"], sample["sample"]) == (reward["id"], reward["sample"])
            assert len(sample["tokens"]) == len(sample["logprobs"]) == sample["completion_tokens"] <= 8
        fit = store.stage(layout.round_checkpoint(1, number)).manifest()
        assert fit is not None
        assert fit["steps"] == (2 if fit["answers_learned"] else 0)
        if fit["steps"]:
            assert 0 <= fit["engine_gap_mean"] < 0.01, "engine and trainer agree in float32"
    assert len(set(drawn)) == len(drawn), "later rounds take other instructions while there are some"
    last = student_ref(store, 1)
    assert last.version == f"iteration-1-round-{last_round(store, 1)}"
    answered = table_of(store, "iteration-1/heldout/student").to_pylist()
    assert {row["version"] for row in answered} == {last.version}
    (result,) = [one for one in results(store) if one.iteration == 1]
    assert result.rewards is not None
    assert json.loads(json.dumps(result.to_json()))["rewards"] == manifest["rewards"]
    assert store.exists(layout.model(1)), "the imitation's student stays"


@pytest.mark.long
def test_rounds_end_when_nothing_is_left_to_learn(tmp_path: Path, one_cluster: Cluster) -> None:
    """Almost equal answers to each instruction: soon no criterion tells any apart."""
    rounds = CHANGES["on_policy"] | {"rounds": 9, "prompts": 12, "temperature": 0.01}
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, CHANGES | {"on_policy": rounds}, {"RAY_ADDRESS": one_cluster.address})
        job.write()
        job.finish()
    manifest = job.store.stage(layout.rounds(1)).manifest()
    assert manifest is not None
    done = len(manifest["rewards"])
    assert done < 9
    assert manifest["rewards"][-1]["answers_learned"] == 0
    assert f"on-policy rounds end after {done}: all criteria are settled" in job.words()
    last = last_round(job.store, 1)
    assert student_ref(job.store, 1).version == (f"iteration-1-round-{last}" if last else "iteration-1")


STEPS = (layout.round_samples, layout.round_rubrics, layout.round_rewards, layout.round_checkpoint)


@pytest.mark.long
def test_killed_in_each_step_of_its_rounds(tmp_path: Path, one_cluster: Cluster) -> None:
    """It buys nothing twice, and ends with the tokens, rewards and weights of a run that was left alone."""
    environment = {"RAY_ADDRESS": one_cluster.address}
    with stub_process(*LATENCY) as base_url:
        whole = Job(tmp_path / "whole", base_url, CHANGES, environment)
        whole.finish()
    with stub_process("--lion", "--latency-ms", "300") as base_url:  # the steps must last until the kill
        job = Job(tmp_path / "killed", base_url, CHANGES, environment)
        store = job.store
        bought: set[str] = set()
        for number in range(1, ROUNDS + 1):
            for step in STEPS:
                in_it = partial(begun, store, number, step)
                wait_until_gone(kill(job.run_until(in_it)))
                assert store.stage(step(1, number)).manifest() is None, "the step was over before the kill"
                now = journaled(store)
                assert max(now.values()) == 1
                assert bought <= set(now), "what was paid for is kept"
                bought = set(now)
        job.finish()
        assert set(journaled(store)) >= bought
        assert max(journaled(store).values()) == 1
        # Only what was in flight at a kill, two calls at most, may have been sent again.
        assert bought_twice(base_url) <= 2 * ROUNDS * len(STEPS)
    check_rounds(store)
    for number in range(1, ROUNDS + 1):
        for step in STEPS[:-1]:
            same = table_of(store, step(1, number)).equals(table_of(whole.store, step(1, number)))
            assert same, f"{step(1, number)} differs"
    weights = [one.read_bytes(f"{student_ref(one, 1).folder}/model.safetensors") for one in (store, whole.store)]
    assert weights[0] == weights[1], "the final weights differ"


def begun(store: RunStore, number: int, step: Callable[[int, int], str]) -> bool:
    """Whether everything before a step of a round is committed, so that the run is in it."""
    before = [layout.checkpoint(1)] if number == 1 else [layout.round_checkpoint(1, number - 1)]
    before += [one(1, number) for one in STEPS[: STEPS.index(step)]]
    # The first step's work begins with the round's instructions.
    return store.exists(layout.round_prompts(1, number)) and all(store.stage(one).manifest() for one in before)


@pytest.mark.long
def test_a_run_whose_answers_a_discriminator_rewards(tmp_path: Path, one_cluster: Cluster) -> None:
    reward = {"type": "discriminator", "learning_rate": 1e-3}
    changes = CHANGES | {"on_policy": CHANGES["on_policy"] | {"reward": reward, "allow_same_judge": False}}
    with stub_process(*LATENCY) as base_url:
        job = Job(tmp_path, base_url, changes, {"RAY_ADDRESS": one_cluster.address})
        store = job.store
        process = job.run_until(lambda: store.stage(layout.round_rewards(1, 1)).manifest() is not None)
        kill(process)
        first = store.read_bytes(layout.round_discriminator(1, 1) + f"/{layout.DISCRIMINATOR}")
        job.finish()
        assert {one["role"] for one in read_status(store).spending} == {"teacher"}, "it needs no calls"
    for number in range(1, ROUNDS + 1):
        rewards = table_of(store, layout.round_rewards(1, number)).to_pylist()
        assert len(rewards) == PROMPTS * SAMPLES
        for name in {row["id"] for row in rewards}:
            assert sum(row["advantage"] for row in rewards if row["id"] == name) == pytest.approx(0, abs=1e-6)
        manifest = store.stage(layout.round_rewards(1, number)).manifest()
        assert manifest is not None
        assert manifest["steps"] >= 1
    assert not store.exists(layout.round_discriminator(1, 1) + f"/{layout.DISCRIMINATOR}"), "only the newest stays"
    assert store.read_bytes(layout.round_discriminator(1, 2) + f"/{layout.DISCRIMINATOR}") != first
