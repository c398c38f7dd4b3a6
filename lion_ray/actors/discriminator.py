"""Rewards of an on-policy round by a discriminator, as a Ray task on a machine that can train.

Invariant: the discriminator is in the run folder before the rewards that it gave are, so a resumed round either finds
both or makes both again, with the same bits.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lion_ray.actors.rewarder import REFERENCE
from lion_ray.config import ImitationConfig
from lion_ray.config.on_policy import DiscriminatorRewardConfig
from lion_ray.core.leftovers import scratch_folder
from lion_ray.core.records import OK, QUARANTINED, REWARD, table
from lion_ray.core.store import RunStore, Stage
from lion_ray.discrimination.rubric import advantages
from lion_ray.inference import wants_gpu
from lion_ray.models.model_ref import ModelRef

NO_ANSWER = "the teacher's answer cannot be used"


@dataclass(frozen=True, slots=True)
class Job:
    """One round's answers to reward."""

    store: RunStore
    base_dir: Path
    student: ModelRef
    """The student that gave the answers."""
    before: str
    """The folder of the discriminator of the round before in the run; empty for none."""
    target: str
    """The folder to write."""
    prompts: str
    samples: tuple[str, ...]
    """The parts with the answers."""
    rewards: str
    """The stage whose part 0 to write."""
    reward: DiscriminatorRewardConfig
    imitation: ImitationConfig
    prompt: str
    seed: int
    gpus: float | None = None
    """GPUs of a training worker; None: one."""


def rewarded_by_discriminator(job: Job) -> Any:
    """A Ray reference to the discriminator's metrics, once the rewards are written."""
    gpus = (job.gpus or 1.0) if wants_gpu(job.imitation.use_gpu) else 0.0
    return _reward.options(num_cpus=job.imitation.num_cpus, num_gpus=gpus).remote(job)


@ray.remote(max_retries=3)
def _reward(job: Job) -> dict[str, Any]:
    import torch

    from lion_ray.imitation.training import discriminator
    from lion_ray.imitation.training.model import default_device

    device = default_device()
    folder = job.student.fetch(job.store, job.base_dir)
    trained = (
        job.store.local_folder(job.before, cache=scratch_folder("lion-ray-discriminator-")) if job.before else None
    )
    found = discriminator.load(folder, trained, device)
    samples = pa.concat_tables(map(job.store.read_table, job.samples))
    groups, places = _groups(job, folder, job.store.read_table(job.prompts), samples)
    settings = discriminator.Settings(
        learning_rate=job.reward.learning_rate,
        epochs=job.reward.epochs if job.before else job.reward.warmup_epochs,
        batch=job.reward.batch,
        seed=job.seed,
    )
    metrics = discriminator.train(found, groups, settings, device) if groups else {"steps": 0}
    scratch = scratch_folder("lion-ray-discriminator-")
    discriminator.save(found, scratch / "d", asdict(settings) | metrics)
    job.store.adopt_folder(scratch / "d", job.target)
    shutil.rmtree(scratch, ignore_errors=True)
    scores = discriminator.score(found, groups, device)
    rows: list[dict[str, Any]] = [
        {"id": name, "sample": sample, "status": QUARANTINED, "reason": reason or NO_ANSWER}
        for name, sample, reason in zip(*(samples[key].to_pylist() for key in ("id", "sample", "reason")), strict=True)
    ]
    for found_places, group in zip(places, scores, strict=True):
        for place, value, gained in zip(found_places, group, advantages(group), strict=True):
            rows[place] |= {"status": OK, "reason": None, "score": value, "advantage": gained}
    Stage(job.store, job.rewards).write_part(0, table(rows, REWARD))
    del found
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return metrics


def _groups(job: Job, folder: Path, prompts: pa.Table, samples: pa.Table) -> tuple[list[Any], list[list[int]]]:
    """For each instruction with usable answers: the teacher's and the student's, and the latter's row numbers."""
    from lion_ray.imitation.training.data import encode
    from lion_ray.models.prompter import Prompter

    prompter = Prompter.load(folder, job.prompt, job.base_dir)
    by_id: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for place, row in enumerate(samples.to_pylist()):
        if row["status"] == OK:
            by_id.setdefault(row["id"], []).append((place, row))
    groups, places = [], []
    for prompt in prompts.to_pylist():
        asked = {"instruction": prompt["text"], "messages": prompt.get("messages") or ()}
        answered = by_id.get(prompt["id"], [])
        own = [
            asked | {"answer": row["text"], "finish_reason": row["finish_reason"], "tokens": row["tokens"]}
            for _, row in answered
        ]
        rows = [asked | {"answer": prompt[REFERENCE]}, *own]
        encoded, dropped = encode(rows, prompter, job.imitation.max_length, "keep")
        if not dropped and len(encoded) > 2:
            groups.append((encoded[0], encoded[1:]))
            places.append([place for place, _ in answered])
    return groups, places
