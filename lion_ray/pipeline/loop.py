"""Lion's loop: imitation, discrimination, generation (paper, section 3).

Invariants:
- Every function here is resumable: what an earlier attempt committed is read, not done again. Iteration k needs only
  what iteration k-1 committed.
- What waits for nothing but the same endpoint or engine goes on beside it: the referee judges while the student
  answers, the held-out set is judged while the generator writes, and the teacher answers what was accepted while more
  is asked for. The results do not depend on it (`overlap: false` gives the same).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from lion_ray.actors.referee import JUDGED
from lion_ray.actors.run_store import CANARIES, HELDOUT, QUESTIONS, checks_stage
from lion_ray.actors.student import ModelRef
from lion_ray.actors.trainer import finetune
from lion_ray.config import RunConfig, answers_heldout, judges_heldout, splits
from lion_ray.core.store import Manifest
from lion_ray.data.pools import train_pool
from lion_ray.inference import wants_gpu
from lion_ray.pipeline.early_stop import stop_reason
from lion_ray.pipeline.results import IterationResult, summarise, write_result
from lion_ray.pipeline.shard_stage import Feed, Run, Shard, in_turn, shard_stage, together


async def distil(run: Run) -> list[IterationResult]:
    """Run every iteration, and a last imitation on what the last of them generated; returns a result for each."""
    await prepare(run)
    results = [conclude(run, 0)]
    last = False
    while not last:
        iteration = len(results)
        await imitation(run, iteration)
        last = await is_last(run, iteration)
        await judge_and_grow(run, iteration, last)
        results.append(conclude(run, iteration))
    return results


async def prepare(run: Run) -> None:
    """Pool 0 and the held-out set, the teacher's answers to both, and how good the student is as it came."""
    await side_by_side(run, import_data(run), warm_up(run))

    answered = asyncio.Event()

    async def measure_base() -> None:
        await teacher_answers(run, HELDOUT, "teacher answers held-out")
        await check_answers(run, None)
        await measure_heldout(run, 0, answered)

    # The first imitation begins when both are done: an API likes full batches, and engines may have to go first.
    await side_by_side(run, measure_base(), engines_rest(run, answered), teacher_answers(run, 0, answering(1)))


async def import_data(run: Run) -> None:
    """Pool 0 and the held-out set, from the user's files."""
    await run.actors.ready()
    first, heldout = run.store.stage("pool-0"), run.store.stage(f"pool-{HELDOUT}")
    if first.manifest() is None:
        imported = run.actors.run_store.import_pools.options(num_returns=2).remote(run.config, run.base_dir)
        manifests = [await reference for reference in imported]
        heldout.commit(manifests[1])
        first.commit(manifests[0])


async def warm_up(run: Run) -> None:
    """Boot engines that stay up anyway while servers start and the teacher answers."""
    iteration = run.newest_checkpoint()
    stay = run.config.student.min_engines > 0 and not handoff(run.config)
    if stay and (iteration or answers_heldout(run.config, 0)):
        await run.actors.students.load(checkpoint(run, iteration), run.progress)


async def imitation(run: Run, iteration: int) -> ModelRef:
    """The teacher answers the Train Pool; the student learns from it, starting from the last checkpoint."""
    await teacher_answers(run, train_pool(iteration), answering(iteration))
    stage = run.store.stage(f"iteration-{iteration}/checkpoint")
    if stage.manifest() is None:
        if handoff(run.config):
            await run.actors.students.stop()
        stage.commit(await finetune(run, iteration, start=checkpoint(run, iteration - 1)))
    return checkpoint(run, iteration)


async def is_last(run: Run, iteration: int) -> bool:
    """Whether nothing follows this imitation: all are done, or the student has stopped gaining.

    Where that is looked for, the held-out set is measured first, before anything is bought that might not be needed.
    """
    if iteration > run.config.iterations or run.config.stop.plateau is None:
        return iteration > run.config.iterations
    await measure_heldout(run, iteration, asyncio.Event())
    reason = stop_reason(run.store, run.config, iteration)
    if reason is not None:
        run.progress.say(f"iteration {iteration} is the last: {reason}")
    return reason is not None


async def judge_and_grow(run: Run, iteration: int, last: bool) -> None:
    """Discrimination and generation; the held-out set is measured once the student has answered the Cache Pool.

    The last imitation only measures. Engines that are not needed any more give their resources back while the
    generator writes.
    """
    answered, measured = asyncio.Event(), asyncio.Event()

    async def measure() -> None:
        await answered.wait()
        await measure_heldout(run, iteration, measured, last=last)

    if last:
        answered.set()
        await side_by_side(run, measure(), engines_rest(run, measured))
        return

    async def grow() -> None:
        await discrimination(run, iteration, answered)
        await generation(run, iteration)

    await side_by_side(run, grow(), measure(), engines_rest(run, measured))


async def engines_rest(run: Run, answered: asyncio.Event) -> None:
    """Once the student has nothing more to answer for now, its engines' resources are the cluster's again."""
    await answered.wait()
    await run.actors.students.rest(0 if handoff(run.config) else None)


async def discrimination(run: Run, iteration: int, answered: asyncio.Event) -> Manifest:
    """Student against teacher on the whole Cache Pool; rows are hard where the student lags by τ or more.

    Sets `answered` when the student has nothing left to answer here.
    """
    stage = f"iteration-{iteration}"
    title = f"iteration {iteration}: judging the Cache Pool"
    judging = judge(run, iteration, run.cache(iteration), stage, title, answered)
    return (await side_by_side(run, judging, watch_the_judge(run, iteration)))[0]


async def watch_the_judge(run: Run, iteration: int) -> None:
    """The same few pairs, which anyone can decide, asked anew: whether the judge is still the first iteration's."""
    stage = run.store.stage(f"iteration-{iteration}/{CANARIES}")
    if run.config.referee.canary_pairs and stage.manifest() is None:
        verdicts = run.actors.referee.judge_canaries.remote(iteration, stage.name)
        stage.commit(await run.actors.run_store.commit_canaries.remote(iteration, verdicts))


async def generation(run: Run, iteration: int) -> None:
    """New instructions from hard and easy ones; they are the next Train Pool and join the Cache Pool.

    The teacher answers each part as soon as it is full: the next imitation waits for the last answer only.
    """
    pool = run.store.stage(f"pool-{iteration}")
    if pool.manifest() is not None:
        return
    accepted = Feed()
    if run.config.overlap:
        answers = answer_feed(run, iteration, answering(iteration + 1), accepted)
        await together(generate(run, iteration, accepted), answers)
    else:
        await generate(run, iteration, accepted)


async def generate(run: Run, iteration: int, accepted: Feed) -> Manifest:
    """Write pool `iteration`, part by part, and put each into `accepted`."""
    wanted = run.config.generation.hard + run.config.generation.easy
    folder = f"iteration-{iteration}/verdicts"
    began = time.time()
    manifest: Manifest = {"rows": 0, "parts": 0}
    with run.progress.stage(f"iteration {iteration}: generating", wanted, "instructions") as shown:
        pieces = run.actors.generator.create.remote(
            run.actors.run_store.load.remote(f"{folder}/hard.parquet"),
            run.actors.run_store.load.remote(f"{folder}/easy.parquet"),
            run.actors.run_store.load.remote(*(shard.instructions for shard in run.cache(iteration))),
            run.actors.run_store.load.remote(*(shard.instructions for shard in run.pool(HELDOUT))),
            run.actors.run_store.load.remote(*([QUESTIONS] if run.store.exists(QUESTIONS) else [])),
            iteration,
            run.config.rows_per_shard(wanted),
        )

        async def take() -> None:
            async for piece in pieces:
                part = await run.actors.run_store.commit_generated.remote(iteration, piece)
                if "part" in part:
                    manifest["rows"] += part["rows"]
                    manifest["parts"] += 1
                    accepted.put(Shard(str(iteration), part["part"]))
                else:
                    manifest.update(part)

        await run.progress.follow(take(), shown, run.actors.generator.accepted.remote)
        shown.update(manifest["rows"])
    manifest |= {"began": round(began, 2), "seconds": round(time.time() - began, 2)}
    # Before the feed ends: the answers' manifest must not be there without the pool's.
    run.store.stage(f"pool-{iteration}").commit(manifest)
    accepted.end()
    return manifest


async def teacher_answers(run: Run, pool: str | int, title: str) -> Manifest:
    """The teacher's answers to a pool, committed shard by shard."""
    return await answer_feed(run, pool, title, Feed.of(run.pool(pool)))


async def answer_feed(run: Run, pool: str | int, title: str, shards: Feed) -> Manifest:
    """The teacher's answers to a pool that may still be being written."""
    stage = f"answers-{pool}"

    async def work(_: int, shard: Shard) -> Any:
        return run.actors.teacher(shard.index).answer.remote(
            run.actors.run_store.load.remote(shard.instructions), stage
        )

    return await shard_stage(run, stage, title, shards, work, batched=run.config.teacher.mode == "batch")


async def judge(
    run: Run, iteration: int, shards: list[Shard], folder: str, title: str, answered: asyncio.Event
) -> Manifest:
    """Student answers, then verdicts, shard by shard: the referee judges one while the student answers the next.

    Sets `answered` when the student has nothing left to answer here.
    """
    stage = run.store.stage(f"{folder}/verdicts")
    if (manifest := stage.manifest()) is not None and "hard" in manifest:
        answered.set()
        return manifest
    student = run.store.stage(f"{folder}/student")
    ready = [asyncio.Event() for _ in shards]

    async def answer_all() -> None:
        await student_answers(run, iteration, shards, folder, ready)
        answered.set()

    async def verdicts(index: int, shard: Shard) -> Any:
        await ready[index].wait()
        names = (shard.instructions, shard.answers, student.part_name(index))
        tables = run.actors.run_store.load_each.options(num_returns=len(names)).remote(*zip(names, JUDGED, strict=True))
        return run.actors.referee.judge.remote(*tables, stage.name, both_orders=folder.endswith(HELDOUT))

    batched = run.config.referee.mode == "batch"
    judging = shard_stage(run, stage.name, title, Feed.of(shards), verdicts, batched=batched)
    _, judged = await side_by_side(run, answer_all(), judging)
    names = [shard.instructions for shard in shards]
    config = run.config
    split = run.actors.run_store.split_verdicts.remote(stage.name, names, config.discrimination.tau, config.seed)
    manifest = judged | await split
    return stage.commit(manifest)


async def student_answers(
    run: Run, iteration: int, shards: list[Shard], folder: str, ready: Sequence[asyncio.Event] = ()
) -> Manifest:
    """The student's answers to some shards, committed part by part; sets `ready[i]` once part i is there."""
    stage = run.store.stage(f"{folder}/student")
    if len(stage.part_indexes()) < len(shards):
        await run.actors.students.load(checkpoint(run, iteration), run.progress)

    async def work(_: int, shard: Shard) -> Any:
        return await run.actors.students.answer(run.actors.run_store.load.remote(shard.instructions), iteration)

    def committed(index: int) -> None:
        for one in ready[index : index + 1]:
            one.set()

    what = "held-out" if folder.endswith(HELDOUT) else "the Cache Pool"
    title = f"iteration {iteration}: student answers {what}"
    # Not held back by the referee: what the student has written is on the disk, not in memory.
    width = max(run.config.max_shards_in_flight, run.actors.students.window)
    manifest = await shard_stage(run, stage.name, title, Feed.of(shards), work, width=width, committed=committed)
    for one in ready:
        one.set()
    return manifest


async def measure_heldout(run: Run, iteration: int, answered: asyncio.Event, *, last: bool = False) -> None:
    """The student on instructions nobody trained on: the checks' scores, and the judge's where it is to judge now.

    Sets `answered` when the student has nothing left to answer here.
    """
    shards = run.pool(HELDOUT)
    if shards and judges_heldout(run.config, iteration, last=last):
        folder = f"iteration-{iteration}/{HELDOUT}"
        judging = judge(run, iteration, shards, folder, f"iteration {iteration}: judging held-out", answered)
        # Where there is discrimination the judge is watched there.
        watching = () if splits(run.config, iteration) and not last else (watch_the_judge(run, iteration),)
        await side_by_side(run, judging, *watching)
    elif shards and answers_heldout(run.config, iteration):
        await student_answers(run, iteration, shards, f"iteration-{iteration}/{HELDOUT}")
    answered.set()
    await check_answers(run, iteration)


async def check_answers(run: Run, iteration: int | None) -> None:
    """The checks' scores of an iteration's student, or of the teacher (None), on the held-out set."""
    stage = run.store.stage(checks_stage(iteration))
    if run.config.evaluation.checks and run.pool(HELDOUT) and stage.manifest() is None:
        began = time.time()
        found = await run.actors.run_store.check_answers.remote(run.config, run.base_dir, iteration)
        stage.commit(found | {"began": round(began, 2), "seconds": round(time.time() - began, 2)})


def conclude(run: Run, iteration: int) -> IterationResult:
    """Write down what an iteration came to, and say it; the report is written beside what follows."""
    result = summarise(run.store, iteration)
    write_result(run.store, result)
    run.progress.say(result.sentence())
    for warning in result.warnings:
        run.progress.say(f"warning: iteration {iteration}: {warning}")
    run.actors.reporter.begin()
    return result


def checkpoint(run: Run, iteration: int) -> ModelRef:
    """The student after an iteration's imitation; as it came, for 0."""
    if iteration == 0:
        return ModelRef("base", source=run.config.student.model)
    return ModelRef(f"iteration-{iteration}", folder=f"iteration-{iteration}/checkpoint/model")


def answering(iteration: int) -> str:
    return f"iteration {iteration}: teacher answers the Train Pool"


async def side_by_side(run: Run, *work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do all of `work` at once, or where the configuration says so, one after the other."""
    return await (together if run.config.overlap else in_turn)(*work)


def handoff(config: RunConfig) -> bool:
    """Whether engines must give their GPUs to training."""
    return config.placement == "handoff" and wants_gpu(config.imitation.use_gpu)
