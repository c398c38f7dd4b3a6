"""Lion's loop: imitation, discrimination, generation (paper, section 3).

Invariants:
- Every function here is resumable: an earlier attempt's committed work is read, not repeated. Iteration k needs only
  what iteration k-1 committed.
- Stages without a mutual dependency overlap (`scheduling`): the referee judges while the student answers, the held-out
  set is judged while the generator writes, and the teacher answers accepted instructions while more are generated.

The stages themselves are in `stages`.
"""

from __future__ import annotations

from itertools import count

from lion_ray.config import answers_heldout
from lion_ray.core import layout
from lion_ray.core.iteration_result import IterationResult
from lion_ray.pipeline.early_stop import stop_reason
from lion_ray.pipeline.results import summarise, write_result
from lion_ray.pipeline.run import Run
from lion_ray.pipeline.scheduling import in_turn, run_stages, together
from lion_ray.pipeline.stage import Phase, When
from lion_ray.pipeline.stages import due
from lion_ray.pipeline.stages.fine_tuning import student_after


async def distil(run: Run) -> list[IterationResult]:
    """Run every iteration, and a last imitation on the last generated pool. Returns a result for each."""
    await prepare(run)
    results = [conclude(run, 0)]
    for iteration in count(1):
        await imitation(run, iteration)
        if last := await is_last(run, iteration):
            await measurement(run, iteration)
        else:
            await discrimination_and_generation(run, iteration)
        results.append(conclude(run, iteration))
        if last:
            break
    return results


async def prepare(run: Run) -> None:
    """Import pool 0 and the held-out set, get the teacher's answers, and measure the base model."""

    async def data() -> None:
        await run.actors.ready()
        await iterate(run, 0, Phase.DATA)

    await (together if run.config.overlap else in_turn)(data(), warm_up(run))
    await measurement(run, 0)


async def warm_up(run: Run) -> None:
    """Start the engines that are kept anyway while servers start and the teacher answers."""
    iteration = run.newest_checkpoint()
    kept = run.config.student.min_engines > 0 and not run.handoff
    if kept and (iteration or answers_heldout(run.config, 0)):
        await run.actors.students.load(student_after(run, iteration), run.progress)


async def imitation(run: Run, iteration: int) -> None:
    """The teacher answers the Train Pool; the student learns from it, starting from the last checkpoint."""
    await iterate(run, iteration, Phase.IMITATION)


async def is_last(run: Run, iteration: int) -> bool:
    """Whether this imitation is the last: all iterations are done, or the student has stopped gaining.

    With early stop, the held-out set is measured first, before paying for anything that might not be needed.
    """
    if iteration > run.config.iterations or run.config.stop.plateau is None:
        return iteration > run.config.iterations
    await iterate(run, iteration, Phase.MEASUREMENT)
    reason = stop_reason(run.store, run.config, iteration)
    if reason is not None:
        run.progress.say(f"iteration {iteration} is the last: {reason}")
    return reason is not None


async def discrimination_and_generation(run: Run, iteration: int) -> None:
    """The judge finds what the student cannot do yet, the generator writes more of it, and the student is measured.

    The generated instructions are the next Train Pool; the teacher answers them part by part.
    """
    await iterate(run, iteration, Phase.DISCRIMINATION, Phase.GENERATION, Phase.MEASUREMENT)


async def measurement(run: Run, iteration: int) -> None:
    """Measure the student on held-out instructions, without generating."""
    await iterate(run, iteration, Phase.DISCRIMINATION, Phase.MEASUREMENT, last=iteration > 0)


async def iterate(run: Run, iteration: int, *phases: Phase, last: bool = False) -> None:
    """Run the due stages of some phases and, at the same time, stages of the next iteration that may run ahead.

    The first imitation starts once the base model is measured, because engines may have to release their GPUs first.
    Until then, the teacher's answers to the user's own pool run ahead.
    """
    heldout = Phase.DATA not in phases and bool(run.pool(layout.HELDOUT))
    stages = [(one, iteration) for one in due(When(run.config, iteration, heldout, last), *phases)]
    next_pool = Phase.GENERATION in phases or (iteration == 0 and Phase.MEASUREMENT in phases)
    if run.config.overlap and next_pool:
        following = due(When(run.config, iteration + 1, heldout), Phase.IMITATION)
        stages += [(one, iteration + 1) for one in following if one.ahead]
    await run_stages(run, stages)


def conclude(run: Run, iteration: int) -> IterationResult:
    """Write and log an iteration's result, and start writing the report in the background."""
    result = summarise(run.store, iteration)
    write_result(run.store, result)
    run.progress.say(result.sentence())
    for warning in result.warnings:
        run.progress.say(f"warning: iteration {iteration}: {warning}")
    run.actors.reporter.begin()
    run.trackers.wake()
    return result
