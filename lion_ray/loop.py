"""Lion's loop: imitation, discrimination, generation (paper, section 3).

Every function here is resumable: what an earlier attempt committed is read, not done again. Iteration k needs only
what iteration k-1 committed.
"""

from __future__ import annotations

from typing import Any

from lion_ray.actors.student import ModelRef
from lion_ray.actors.trainer import finetune
from lion_ray.algorithm.pools import train_pool
from lion_ray.config import RunConfig, judges_heldout
from lion_ray.inference import wants_gpu
from lion_ray.results import IterationResult, summarise, write_result
from lion_ray.stages import (
    HELDOUT,
    Manifest,
    Run,
    Shard,
    commit_generation,
    commit_part,
    import_pools,
    load,
    shard_stage,
    split_verdicts,
    together,
)


async def distil(run: Run) -> list[IterationResult]:
    """Run every iteration, and a last imitation on what the last of them generated; returns a result for each."""
    await together(prepare(run), warm_up(run))
    results = [await measure_base(run)]
    for iteration in range(1, run.config.iterations + 2):
        await imitation(run, iteration)
        if iteration <= run.config.iterations:
            await discrimination(run, iteration)
            await generation(run, iteration)
        await judge_heldout(run, iteration)
        results.append(conclude(run, iteration))
    return results


async def prepare(run: Run) -> None:
    """Pool 0 and the held-out set, and the teacher's answers to both, side by side: an API likes full batches."""
    await run.crew.ready()
    first, heldout = run.store.stage("pool-0"), run.store.stage(f"pool-{HELDOUT}")
    if first.manifest() is None:
        config = run.config
        imported = import_pools.options(num_returns=2).remote(
            run.store, config.data, run.base_dir, config.seed, config.shard_rows
        )
        manifests = [await reference for reference in imported]
        heldout.commit(manifests[1])
        first.commit(manifests[0])
    await together(
        teacher_answers(run, HELDOUT, "teacher answers held-out"),
        teacher_answers(run, 0, "iteration 1: teacher answers the Train Pool"),
    )


async def warm_up(run: Run) -> None:
    """Boot engines that stay up anyway while servers start and the teacher answers."""
    iteration = run.newest_checkpoint()
    if not handoff(run.config) and (iteration or judges_heldout(run.config, 0)):
        await run.crew.students.load(checkpoint(run, iteration), run.progress)


async def imitation(run: Run, iteration: int) -> ModelRef:
    """The teacher answers the Train Pool; the student learns from it, starting from the last checkpoint."""
    await teacher_answers(run, train_pool(iteration), f"iteration {iteration}: teacher answers the Train Pool")
    stage = run.store.stage(f"iteration-{iteration}/checkpoint")
    if stage.manifest() is None:
        if handoff(run.config):
            await run.crew.students.stop()
        stage.commit(await finetune(run, iteration, start=checkpoint(run, iteration - 1)))
    return checkpoint(run, iteration)


async def discrimination(run: Run, iteration: int) -> Manifest:
    """Student against teacher on the whole Cache Pool; rows are hard where the student lags by τ or more."""
    stage = f"iteration-{iteration}"
    return await judge(run, iteration, run.cache(iteration), stage, f"iteration {iteration}: judging the Cache Pool")


async def generation(run: Run, iteration: int) -> Manifest:
    """New instructions from hard and easy ones; they are the next Train Pool and join the Cache Pool."""
    stage = run.store.stage(f"pool-{iteration}")
    if (manifest := stage.manifest()) is not None:
        return manifest
    wanted = run.config.generation.hard + run.config.generation.easy
    folder = f"iteration-{iteration}/verdicts"
    with run.progress.stage(f"iteration {iteration}: generating", wanted, "instructions") as shown:
        accepted, candidates = run.crew.generator.create.remote(
            load.remote(run.store, f"{folder}/hard.parquet"),
            load.remote(run.store, f"{folder}/easy.parquet"),
            load.remote(run.store, *(shard.instructions for shard in run.cache(iteration))),
            load.remote(run.store, *(shard.instructions for shard in run.pool(HELDOUT))),
            iteration,
        )
        await run.progress.follow(accepted, shown, run.crew.generator.accepted.remote)
        manifest = await commit_generation.remote(run.store, iteration, run.config.shard_rows, accepted, candidates)
        shown.update(manifest["rows"])
    return stage.commit(manifest | {"seconds": round(shown.seconds(), 2)})


async def teacher_answers(run: Run, pool: str | int, title: str) -> Manifest:
    """The teacher's answers to a pool, committed shard by shard."""

    async def work(shard: Shard) -> Any:
        return run.crew.teacher(shard.index).answer.remote(load.remote(run.store, shard.instructions), stage)

    stage = f"answers-{pool}"
    return await shard_stage(run, stage, title, run.pool(pool), work, batched=run.config.teacher.mode == "batch")


async def judge(run: Run, iteration: int, shards: list[Shard], folder: str, title: str) -> Manifest:
    """Student answers, then verdicts, shard by shard: the referee judges one while the student answers the next."""
    stage = run.store.stage(f"{folder}/verdicts")
    if (manifest := stage.manifest()) is not None and "hard" in manifest:
        return manifest
    answered = run.store.stage(f"{folder}/student").part_indexes()
    await run.crew.students.load(checkpoint(run, iteration), run.progress)

    places = {shard: index for index, shard in enumerate(shards)}

    async def work(shard: Shard) -> Any:
        index = places[shard]
        instructions = load.remote(run.store, shard.instructions)
        if index in answered:
            answers = load.remote(run.store, run.store.stage(f"{folder}/student").part_name(index))
        else:
            answers = await run.crew.students.answer(instructions, iteration)
            await commit_part.remote(run.store, f"{folder}/student", index, answers)
        return run.crew.referee.judge.remote(instructions, load.remote(run.store, shard.answers), answers, stage.name)

    batched = run.config.referee.mode == "batch"
    verdicts = await shard_stage(run, stage.name, title, shards, work, batched=batched)
    names = [shard.instructions for shard in shards]
    config = run.config
    split = split_verdicts.remote(run.store, stage.name, names, config.discrimination.tau, config.seed)
    manifest = verdicts | await split
    run.store.stage(f"{folder}/student").commit({"rows": manifest["rows"], "parts": len(shards)})
    return stage.commit(manifest)


async def judge_heldout(run: Run, iteration: int) -> None:
    """Student against teacher on instructions nobody trained on: the proof that it got better."""
    shards = run.pool(HELDOUT)
    if shards and judges_heldout(run.config, iteration):
        folder = f"iteration-{iteration}/{HELDOUT}"
        await judge(run, iteration, shards, folder, f"iteration {iteration}: judging held-out")


async def measure_base(run: Run) -> IterationResult:
    """The student as it came, on the held-out instructions: what every iteration is compared with."""
    await judge_heldout(run, 0)
    return conclude(run, 0)


def conclude(run: Run, iteration: int) -> IterationResult:
    """Write down what an iteration came to, and say it."""
    result = summarise(run.store, iteration)
    write_result(run.store, result)
    run.progress.say(result.sentence())
    return result


def checkpoint(run: Run, iteration: int) -> ModelRef:
    """The student after an iteration's imitation; as it came, for 0."""
    if iteration == 0:
        return ModelRef("base", source=run.config.student.model)
    return ModelRef(f"iteration-{iteration}", folder=f"iteration-{iteration}/checkpoint/model")


def handoff(config: RunConfig) -> bool:
    """Whether engines must give their GPUs to training."""
    return config.placement == "handoff" and wants_gpu(config.imitation.use_gpu)
