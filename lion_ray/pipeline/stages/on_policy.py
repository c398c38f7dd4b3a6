"""On-policy rounds: the student answers, its answers are rewarded, and it learns from the rewards.

Invariants:
- Each step of a round is a stage of its own (`layout.round_…`): committed, then read and never repeated.
- The student after an iteration is that of its last committed round (`models.checkpoints.student_ref`), so a run that
  ends between rounds leaves a usable one.
- A round in which no answer was better than another leaves the student as it is: its manifest has 0 steps and no model.
- If no instruction is left to learn from, no further round of the iteration begins.

Sources: `discrimination.rubric`, `imitation.objectives.policy_gradient`.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lion_ray.config import OnPolicyConfig
from lion_ray.config.on_policy import DiscriminatorRewardConfig
from lion_ray.config.plugins import PolicyGradientConfig
from lion_ray.core import layout
from lion_ray.core.records import derive_seed
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import train_pool
from lion_ray.models.checkpoints import last_round
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import Feed, Shard
from lion_ray.pipeline.shard_stage import merge, shard_stage
from lion_ray.pipeline.stage import Phase, Stage, When, since
from lion_ray.pipeline.stages.fine_tuning import FineTuning, job_of, run_fit, student_after

if TYPE_CHECKING:
    from lion_ray.pipeline.plan import Planner, StagePlan

PROMPTS_PER_SHARD = 8
"""Instructions that an engine samples, and the rewarder rewards, at once."""
SUMMED = ("quarantined", "calls", "prompt_tokens", "completion_tokens", "cost_usd")


class OnPolicyRounds(Stage):
    name = "on-policy rounds"
    phase = Phase.IMITATION
    actor = "rewarder"
    after = (FineTuning.name,)

    def folder(self, iteration: int) -> str:
        return layout.rounds(iteration)

    def due(self, when: When) -> bool:
        return when.config.on_policy is not None

    async def run(self, run: Run, iteration: int) -> None:
        config = run.config.on_policy
        assert config is not None
        stage = run.store.stage(self.folder(iteration))
        if stage.manifest() is not None:
            return
        rounds: list[Manifest] = []
        for number in range(1, config.rounds + 1):
            if (one := await one_round(run, iteration, number, config)) is None:
                why = "all criteria are settled" if rounds else "the teacher has answered no row of the Train Pool"
                run.progress.say(f"iteration {iteration}: on-policy rounds end after {len(rounds)}: {why}")
                break
            rounds.append(one)
        stage.commit(summary(rounds))
        run.trackers.wake()

    def plan(self, planner: Planner, iteration: int) -> StagePlan:
        config = planner.config.on_policy
        assert config is not None
        rows = min(config.prompts, planner.train_rows(iteration))
        checked, sampled = config.rounds * rows, config.rounds * rows * config.samples
        parts = tuple(
            stage(iteration, number)
            for number in range(1, config.rounds + 1)
            for stage in (layout.round_samples, layout.round_rewards, layout.round_checkpoint)
        )
        plan = replace(planner.stage(self, iteration, checked), steps=config.rounds * config.steps, consists_of=parts)
        if not isinstance(config.reward, DiscriminatorRewardConfig):
            # The same rubric serves every round: at most one for each row of the pool.
            written = min(checked, planner.train_rows(iteration))
            rubrics = planner.called(plan, "rubricator", written, planner.pool.mean)
            plan = rubrics.plus(planner.called(plan, "verifier", checked, planner.pool.mean))
        plan = planner.written(plan, sampled, config.max_tokens)
        # Besides its steps a round only computes the probabilities of the answers that it begins with.
        return planner.fitted(plan, sampled, "student", config.rounds)

    def results(self, store: RunStore, iteration: int) -> dict[str, Any]:
        found = self.manifest(store, iteration)
        return {"rewards": found.get("rewards"), "loss_after_rounds": found.get("heldout_loss_after")}


async def one_round(run: Run, iteration: int, number: int, config: OnPolicyConfig) -> Manifest | None:
    """One round, as far as it is not committed. Returns the manifest of its fine-tuning; None if nothing is drawn."""
    stage = run.store.stage(layout.round_checkpoint(iteration, number))
    if (manifest := stage.manifest()) is None:
        drawn = await run.actors.rewarder.draw.remote(iteration, number, _parts(run, iteration), config.prompts)
        if not drawn:
            return None
        spent = await rewards(run, iteration, number, drawn, config)
        signal = await run.actors.run_store.signal.remote(layout.round_rewards(iteration, number))
        manifest = stage.commit(await learn(run, iteration, number, config, signal) | signal | spent)
        run.progress.say(f"iteration {iteration}, round {number} of {config.rounds}: {_sentence(signal)}")
    before = last_round(run.store, iteration)
    # The newest student is enough to go on; the imitation's stays, with the metrics of its fit.
    old = [layout.model_of(layout.round_checkpoint(iteration, one)) for one in range(1, min(number, before))]
    old += [layout.round_discriminator(iteration, one) for one in range(1, number)]
    if iteration > 1:
        old.append(layout.round_discriminator(iteration - 1, config.rounds))
    old.append(layout.fit(iteration, number))
    await asyncio.gather(*(asyncio.to_thread(run.store.delete_folder, folder) for folder in old))
    return manifest


async def rewards(run: Run, iteration: int, number: int, drawn: int, config: OnPolicyConfig) -> Manifest:
    """The student's answers to a round's instructions and their rewards, committed. Returns what was spent."""
    title = f"iteration {iteration}, round {number} of {config.rounds}"
    samples, rubrics, rewarded = (
        run.store.stage(folder(iteration, number))
        for folder in (layout.round_samples, layout.round_rubrics, layout.round_rewards)
    )
    shards = [Shard("", index) for index in range(math.ceil(drawn / PROMPTS_PER_SHARD))]

    def prompts(index: int) -> Any:
        start = index * PROMPTS_PER_SHARD
        return run.actors.rewarder.prompts.remote(iteration, number, start, PROMPTS_PER_SHARD)

    if samples.manifest() is None:
        from lion_ray.inference.engine import Sampling

        longest = config.max_tokens or run.config.student.max_tokens
        sampling = Sampling(layout.fit_name(iteration, number), config.samples, config.temperature, longest)
        await run.actors.students.load(student_after(run, iteration), run.progress)

        async def sample(index: int, _: Shard) -> Any:
            return await run.actors.students.rollout(prompts(index), sampling)

        await shard_stage(run, samples.name, f"{title}: student answers", Feed.of(shards), sample)

    if isinstance(config.reward, DiscriminatorRewardConfig):
        if rewarded.manifest() is None:
            await discriminate(run, iteration, number, config.reward, f"{title}: discriminator")
        return {}

    async def write(index: int, _: Shard) -> Any:
        return run.actors.rewarder.rubrics.remote(prompts(index), iteration, number)

    async def check(index: int, _: Shard) -> Any:
        tables = [run.actors.run_store.load.remote(stage.part_name(index)) for stage in (rubrics, samples)]
        return run.actors.rewarder.rewards.remote(prompts(index), *tables, iteration, number)

    spent = []
    for stage, what, work, role in (
        (rubrics, "rubrics", write, run.config.rubricator),
        (rewarded, "rewards", check, run.config.verifier),
    ):
        feed, batched = Feed.of(shards), role.mode == "batch"
        spent.append(await shard_stage(run, stage.name, f"{title}: {what}", feed, work, batched=batched))
    return merge({key: one[key] for key in SUMMED if key in one} for one in spent)


async def discriminate(run: Run, iteration: int, number: int, reward: DiscriminatorRewardConfig, title: str) -> None:
    """Train the discriminator on a round's answers and have it reward them; committed."""
    from lion_ray.actors.discriminator import Job, rewarded_by_discriminator

    if run.handoff:
        await run.actors.students.stop()
    samples, rewards = (
        run.store.stage(folder(iteration, number)) for folder in (layout.round_samples, layout.round_rewards)
    )
    began = time.time()
    job = Job(
        store=run.store,
        base_dir=run.base_dir,
        student=student_after(run, iteration),
        before=_last_discriminator(run, iteration, number),
        target=layout.round_discriminator(iteration, number),
        prompts=layout.round_prompts(iteration, number),
        samples=tuple(samples.part_name(index) for index in range((samples.manifest() or {})["parts"])),
        rewards=rewards.name,
        reward=reward,
        imitation=run.config.imitation,
        prompt=run.config.student.prompt,
        seed=derive_seed(run.config.seed, "discriminator", iteration, number),
        gpus=run.worker_gpus,
    )
    found = await run.progress.waiting(rewarded_by_discriminator(job), title)
    rewards.commit({"parts": 1} | found | since(began))
    if found.get("pairs"):
        run.progress.say(f"{title}: puts {found['pairs_right']:.0%} of {found['pairs']} pairs in the right order")
    else:
        run.progress.say(f"{title}: no answer differs from the teacher's")


def _last_discriminator(run: Run, iteration: int, number: int) -> str:
    """The folder of the newest discriminator before a round, in this iteration or an earlier one; empty for none."""
    config = run.config.on_policy
    assert config is not None
    rounds = [(iteration, one) for one in range(number - 1, 0, -1)]
    rounds += [(k, one) for k in range(iteration - 1, 0, -1) for one in range(config.rounds, 0, -1)]
    folders = (layout.round_discriminator(*one) for one in rounds)
    return next((folder for folder in folders if run.store.exists(f"{folder}/{layout.DISCRIMINATOR}")), "")


async def learn(run: Run, iteration: int, number: int, config: OnPolicyConfig, signal: Manifest) -> Manifest:
    """Fine-tune the student on a round's rewarded answers. Returns the fit's metrics."""
    before = (run.store.stage(layout.checkpoint(iteration)).manifest() or {}).get("heldout_loss_after")
    if not signal["answers_learned"]:
        return {"steps": 0, "samples": 0}
    if run.handoff:
        await run.actors.students.stop()
    imitation = run.config.imitation.model_copy(
        update={
            "epochs": 1,
            "learning_rate": config.learning_rate,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "truncated": "keep",
            "loss_on": "answer",
            "objective": PolicyGradientConfig(clip=config.clip, importance_cap=config.importance_cap),
        }
    )
    folder = layout.round_checkpoint(iteration, number)
    job = job_of(run, iteration) | {
        "fit": layout.fit_name(iteration, number),
        "stage": folder,
        "start": student_after(run, iteration),
        "target": layout.model_of(folder),
        "config": imitation,
        "steps": config.steps,
        "rewarded": (
            layout.round_prompts(iteration, number),
            *(
                [stage.part_name(index) for index in range((stage.manifest() or {})["parts"])]
                for stage in (
                    run.store.stage(layout.round_samples(iteration, number)),
                    run.store.stage(layout.round_rewards(iteration, number)),
                )
            ),
        ),
        "seed": run.config.seed + 1000 * iteration + number,
        # A round is short: measuring all held-out rows after each of them would take most of its time.
        **({} if number == config.rounds else {"heldout": []}),
        "heldout_before": before,
    }
    return await run_fit(run, job, f"iteration {iteration}, round {number} of {config.rounds}: fine-tuning")


def summary(rounds: list[Manifest]) -> Manifest:
    """The manifest of all rounds: sums, and the reward of each."""
    total = merge({key: one[key] for key in (*SUMMED, "seconds", "steps", "tokens") if key in one} for one in rounds)
    names = ("reward", "criteria", "criteria_untelling", "answers", "answers_learned", "engine_gap_mean")
    return total | {
        "rows": sum(one["instructions"] for one in rounds),
        "rewards": [{name: one.get(name) for name in names} for one in rounds],
        "heldout_loss_after": rounds[-1].get("heldout_loss_after") if rounds else None,
    }


def _parts(run: Run, iteration: int) -> list[tuple[str, str, str]]:
    pool, filters = train_pool(iteration), run.config.imitation.filters
    return [
        (
            shard.instructions,
            shard.answers,
            layout.part(layout.filtered(pool), shard.index) if filters else shard.answers,
        )
        for shard in run.pool(pool)
    ]


def _sentence(signal: Manifest) -> str:
    reward = signal["reward"]
    mean = "none" if reward is None else f"{reward:.3f}"
    criteria = f"; {signal['criteria_untelling']} of {signal['criteria']} criteria told no answers apart"
    return (
        f"mean reward {mean}; learned from {signal['answers_learned']} of {signal['answers']} answers to "
        f"{signal['instructions']} instructions{criteria if signal['criteria'] else ''}"
    )
