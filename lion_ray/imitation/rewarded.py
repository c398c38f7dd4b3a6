"""Training rows of an on-policy round: the student's own answers with their advantages.

Invariant: an answer is learned as the tokens that were sampled; its text may have another tokenisation.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lion_ray.core.errors import TrainingError
from lion_ray.core.records import OK


def rewarded(prompts: pa.Table, samples: pa.Table, rewards: pa.Table) -> list[dict[str, Any]]:
    """A row for each answer whose advantage is not 0; the others would change nothing.

    Args:
        prompts: the round's INSTRUCTION rows.
        samples, rewards: SAMPLE and REWARD rows of the same order.

    Raises:
        TrainingError: the tables are not of the same answers.
    """
    names = ("id", "sample")
    if any(samples[name].to_pylist() != rewards[name].to_pylist() for name in names):
        raise TrainingError("the answers of a round and their rewards are not of the same rows")
    asked = {row["id"]: row for row in prompts.to_pylist()}
    return [
        {
            "instruction": asked[sample["id"]]["text"],
            "messages": asked[sample["id"]].get("messages") or (),
            "answer": sample["text"],
            "finish_reason": sample["finish_reason"],
            "tokens": sample["tokens"],
            "advantage": reward["advantage"],
            "logprobs": sample["logprobs"],
        }
        for sample, reward in zip(samples.to_pylist(), rewards.to_pylist(), strict=True)
        if reward["status"] == OK and reward["advantage"]
    ]
