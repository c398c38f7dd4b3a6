"""What a run will take, before anything is spent: calls, tokens, money, time, training steps, memory.

Invariants:
- Reads the user's pool and, where they are on this machine, the models' files; sends nothing and starts nothing.
- Counts of calls and steps are exact for the numbers planned. Tokens and money are given twice: about, and at most
  (every answer as long as it may be); see `estimate`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lion_ray import estimate
from lion_ray.algorithm.canaries import Canary, load_canaries
from lion_ray.checks import heldout_problems
from lion_ray.config import RunConfig, check_name, judges_heldout, splits
from lion_ray.intake import Intake, take_in
from lion_ray.store import RunStore

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GIB = 1024**3
SUMMED = ("calls", "prompt_tokens", "completion_tokens", "student_tokens", "steps")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. Tokens: `prompt_tokens` about, `completion_tokens` at most."""

    iteration: int
    stage: str
    folder: str
    """Its folder in the run."""
    rows: int
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    """About; None where its endpoint has no prices."""
    usd_worst: float | None = None
    """At most."""
    seconds: float | None = None
    """At the endpoint's configured limits; None where none is configured, or in a batch."""
    student_tokens: int = 0
    """What the student writes, at most."""
    steps: int = 0
    """Optimizer steps."""


@dataclass(frozen=True, slots=True)
class Plan:
    stages: list[StagePlan]
    training_gib: float | None
    """For each training worker: weights, gradients, optimizer and gathered layers; without activations."""
    engine_gib: float | None
    """For the weights on each of an engine's GPUs; the key-value cache takes what is left of its share."""
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        totals: dict[str, Any] = {name: sum(getattr(stage, name) for stage in self.stages) for name in SUMMED}
        totals |= {name: total(self.stages, name) for name in ("usd", "usd_worst", "seconds")}
        return asdict(self) | {"totals": totals}


def total(stages: list[StagePlan], name: str) -> float | None:
    """The sum of a number that some stages do not have; None where no stage has it."""
    found = [value for stage in stages if (value := getattr(stage, name)) is not None]
    return sum(found) if found else None


def make_plan(config: RunConfig, base_dir: Path) -> Plan:
    """Plan a run.

    Raises:
        DataError: the pool cannot be read.
    """
    taken = take_in(config.data, base_dir, config.seed)
    pool, heldout = _measure(config, base_dir, taken)
    rows = pool.rows
    notes = [
        f"{rows:,} instructions in the pool: {pool.median:.0f} tokens in the median, {pool.longest:,} at most; "
        f"{heldout.rows:,} held out",
        "completion tokens and 'at most' are upper bounds (every answer as long as it may be); calls in the journal "
        "cost nothing",
    ]
    new = config.generation.hard + config.generation.easy
    canaries = load_canaries(config.referee.canaries, config.referee.canary_pairs, base_dir)

    def watched(iteration: int) -> list[StagePlan]:
        return [_watching(config, iteration, canaries)] if canaries else []

    stages = [_teacher(config, 0, "teacher answers held-out", "answers-heldout", heldout.rows, heldout.mean)]
    stages += _answering(config, 0, heldout.rows)
    if heldout.rows and judges_heldout(config, 0):
        where = "iteration-0/heldout/verdicts"
        stages += [*watched(0), _judging(config, 0, "judging held-out", where, heldout.rows, heldout.mean)]
    for iteration in range(1, config.iterations + 2):
        folder = f"iteration-{iteration}"
        train = rows if iteration == 1 else new
        cache = rows + new * (iteration - 1)
        stages.append(_teacher(config, iteration, "teacher answers", f"answers-{iteration - 1}", train, pool.mean))
        steps = math.ceil(train / config.imitation.batch_size) * config.imitation.epochs
        stages.append(StagePlan(iteration, "fine-tuning", f"{folder}/checkpoint", train, steps=steps))
        stages += _answering(config, iteration, heldout.rows)
        measures = bool(heldout.rows) and judges_heldout(config, iteration)
        if splits(config, iteration) or measures:
            stages += watched(iteration)
        if splits(config, iteration):
            stages.append(_judging(config, iteration, "judging the Cache Pool", f"{folder}/verdicts", cache, pool.mean))
            stages.append(_generating(config, iteration, new, pool.mean))
        if measures:
            where = f"{folder}/heldout/verdicts"
            stages.append(_judging(config, iteration, "judging held-out", where, heldout.rows, heldout.mean))
    notes.append(
        f"generating is counted at one request a row; where candidates are rejected it may take up to "
        f"{config.generation.max_attempts:g} times that, which is in 'at most $'. Verdicts that cannot be read are "
        f"asked again, up to {config.referee.parse_retries} times: not counted"
    )
    if config.referee.second_order == "near_threshold":
        notes.append(
            "second_order: near_threshold spares up to half of the calls that judge the Cache Pool; how many is not "
            "known before, so all are planned"
        )
    if config.evaluation.checks:
        names = ", ".join(map(check_name, config.evaluation.checks))
        notes.append(f"the checks ({names}) score every held-out answer, the teacher's too, and cost nothing")
        notes += heldout_problems(config, base_dir, taken.heldout)
    if (plateau := config.stop.plateau) is not None:
        notes.append(
            f"the run ends early where the student has not gained {plateau.min_gain:g} on held-out in "
            f"{plateau.rounds} iterations (stop.plateau): this is for all of them"
        )
    if total(stages, "usd") is None:
        notes.append("no endpoint has prices, so nothing is priced: see endpoints.NAME.prices")
    if total(stages, "seconds") is None:
        notes.append("no endpoint has limits configured, so its time is not planned: see endpoints.NAME.limits")
    parameters = _parameters(config.student.model, base_dir)
    if parameters is None:
        notes.append(f"{config.student.model} is not on this machine and its name tells no size: memory is not planned")
        return Plan(stages, None, None, notes)
    notes.append(f"the student has about {parameters / 1e9:.2g} billion parameters")
    return Plan(stages, _training_gib(config, parameters), _engine_gib(config, parameters), notes)


def what_is_left(plan: Plan, store: RunStore, config: RunConfig) -> tuple[float | None, float | None]:
    """What a run's uncommitted stages will cost, in US dollars: about, and at most. Parts that are there count."""
    usual = worst = None
    for stage in plan.stages:
        folder = store.stage(stage.folder)
        if stage.usd is None or stage.usd_worst is None or folder.manifest() is not None:
            continue
        parts = max(1, -(-stage.rows // config.rows_per_shard(stage.rows)))
        share = 1 - min(1.0, len(folder.part_indexes()) / parts)
        usual, worst = (usual or 0.0) + share * stage.usd, (worst or 0.0) + share * stage.usd_worst
    return usual, worst


def _measure(config: RunConfig, base_dir: Path, taken: Intake) -> tuple[estimate.Lengths, estimate.Lengths]:
    """The lengths of what is trained on, and of what is held out."""
    first, second = (
        estimate.measure(table["text"].to_pylist(), config.student.model, base_dir)
        for table in (taken.pool, taken.heldout)
    )
    return first, second


def _teacher(config: RunConfig, iteration: int, stage: str, folder: str, rows: int, mean: float) -> StagePlan:
    return _priced(StagePlan(iteration, stage, folder, rows), estimate.calls(config, "teacher", rows, mean))


def _answering(config: RunConfig, iteration: int, rows: int) -> list[StagePlan]:
    """The student's held-out answers for the checks; what is judged as well is judged on the same answers."""
    if not rows or not config.evaluation.checks:
        return []
    where, tokens = f"iteration-{iteration}/heldout/student", rows * config.student.max_tokens
    return [StagePlan(iteration, "student answers held-out", where, rows, student_tokens=tokens)]


def _judging(config: RunConfig, iteration: int, stage: str, folder: str, rows: int, mean: float) -> StagePlan:
    answered = "heldout" in folder and bool(config.evaluation.checks)
    tokens = 0 if answered else rows * config.student.max_tokens
    plan = StagePlan(iteration, stage, folder, rows, student_tokens=tokens)
    return _priced(plan, estimate.calls(config, "referee", 2 * rows, mean))


def _watching(config: RunConfig, iteration: int, canaries: Sequence[Canary]) -> StagePlan:
    tokens = [sum(map(len, part)) / estimate.CHARACTERS_PER_TOKEN / len(canaries) for part in _parts(canaries)]
    plan = StagePlan(iteration, "watching the judge", f"iteration-{iteration}/canaries", len(canaries))
    return _priced(plan, estimate.calls(config, "referee", 2 * len(canaries), tokens[0], tokens[1]))


def _parts(canaries: Sequence[Canary]) -> tuple[list[str], list[str]]:
    """The instructions, and the answers that the judge is shown."""
    return [one.instruction for one in canaries], [one.good + one.poor for one in canaries]


def _generating(config: RunConfig, iteration: int, rows: int, mean: float) -> StagePlan:
    plan = _priced(
        StagePlan(iteration, "generating", f"pool-{iteration}", rows), estimate.calls(config, "generator", rows, mean)
    )
    attempts = config.generation.max_attempts
    return replace(plan, usd_worst=None if plan.usd_worst is None else attempts * plan.usd_worst)


def _priced(plan: StagePlan, found: estimate.Calls) -> StagePlan:
    return replace(
        plan,
        calls=found.calls,
        prompt_tokens=found.prompt,
        completion_tokens=found.completion_worst,
        usd=found.usd,
        usd_worst=found.usd_worst,
        seconds=found.seconds,
    )


def _parameters(model: str, base_dir: Path) -> float | None:
    """A model's parameters: from its weights on this machine, else as its name says (``-7b``)."""
    from lion_ray.models import local_model

    folder = local_model(model, base_dir=base_dir)
    if folder is not None:
        return _from_weights(folder)
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", model.lower())
    return float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]] if named else None


def _from_weights(folder: Path) -> float | None:
    """Elements in a folder's safetensors, read from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return float(total) or None


def _training_gib(config: RunConfig, parameters: float) -> float:
    imitation = config.imitation
    share = imitation.workers if imitation.sharding == "full" else 1
    # float32 weights, gradients and AdamW's two moments; with adapters only the weights, which stay frozen.
    state = parameters * (4 if imitation.lora else 16) / share
    gathered = 0.05 * parameters * (2 if imitation.precision == "bf16" else 4)
    return round((state + gathered) / GIB, 1)


def _engine_gib(config: RunConfig, parameters: float) -> float:
    return round(parameters * BYTES[config.student.dtype] / config.student.tensor_parallel_size / GIB, 1)


def plan_table(plan: Plan) -> Table:
    """The plan as a table for the terminal."""
    memory = (
        "memory not planned"
        if plan.training_gib is None
        else f"memory: {plan.training_gib} GiB for each training worker without activations, "
        f"{plan.engine_gib} GiB for the weights on each GPU of an engine"
    )
    table = Table(title="What this run will take", caption=memory)
    table.add_column("iteration", justify="right")
    table.add_column("stage")
    headings = ("rows", "calls", "prompt tokens (about)", "completion tokens (at most)")
    priced = any(stage.usd is not None for stage in plan.stages)
    timed = any(stage.seconds is not None for stage in plan.stages)
    more = (["about $", "at most $"] if priced else []) + (["minutes at its limits"] if timed else [])
    for heading in (*headings, "student tokens (at most)", "steps", *more):
        table.add_column(heading, justify="right")

    def money(usd: float | None, worst: float | None, seconds: float | None) -> list[str]:
        cells = [_amount(usd), _amount(worst)] if priced else []
        return cells + ([_amount(None if seconds is None else seconds / 60, 1)] if timed else [])

    for s in plan.stages:
        numbers = (s.rows, s.calls, s.prompt_tokens, s.completion_tokens, s.student_tokens, s.steps)
        cells = [f"{n:,}" if n else "–" for n in numbers]
        table.add_row(str(s.iteration), s.stage, *cells, *money(s.usd, s.usd_worst, s.seconds))
    totals = plan.to_json()["totals"]
    table.add_section()
    sums = money(totals["usd"], totals["usd_worst"], totals["seconds"])
    table.add_row("", "together", "", *(f"{totals[name]:,}" for name in SUMMED), *sums)
    return table


def _amount(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
