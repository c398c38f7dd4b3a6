"""Plan a run before anything is spent: calls, tokens, cost, time, training steps, memory.

Invariants:
- It reads the user's pool and, if they are on this machine, the models' files. It sends and starts nothing.
- Counts of calls and steps are exact for the planned numbers. Tokens and cost have an expected and a maximum value
  (every answer at its maximum length); see `estimate`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lion_ray.config import RunConfig, check_name, endpoints_in_use
from lion_ray.core.store import RunStore
from lion_ray.data.importing import ImportedData, import_data
from lion_ray.data.mapped import BATCH_ROWS
from lion_ray.discrimination.drift import Canary, load_canaries
from lion_ray.gateway.wave import FIRST_WAVE
from lion_ray.models.resolve import parameters_of
from lion_ray.pipeline import estimate
from lion_ray.pipeline.disk import DiskPlan, disk_line, disk_plan
from lion_ray.pipeline.hardware import GpuTimes, Memory, gpu_line, memory
from lion_ray.pipeline.local_times import LocalTimes, in_words, planned_s
from lion_ray.pipeline.preflight import heldout_problems, idle_workers
from lion_ray.pipeline.stage import Stage, When
from lion_ray.pipeline.stages import due

SUMMED = ("calls", "prompt_tokens", "completion_tokens", "student_tokens", "steps")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. `prompt_tokens` is an estimate, `completion_tokens` a maximum."""

    iteration: int
    stage: str
    folder: str
    """Its folder in the run."""
    rows: int
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    """Estimated cost; None if the endpoint has no prices."""
    usd_worst: float | None = None
    """Maximum cost."""
    seconds: float | None = None
    """At the endpoint's configured limits; None if none is configured, or in a batch."""
    local_s: float | None = None
    """Seconds on this machine; None if it does not compute the stage itself."""
    gpu_s: float | None = None
    """GPU-seconds; None if the stage uses no GPU, or the student's size is not known."""
    student_tokens: int = 0
    """Maximum tokens that the student generates."""
    steps: int = 0
    """Optimizer steps."""
    consists_of: tuple[str, ...] = ()
    """The folders of the stages that it consists of, in the order of their commits, if it writes no parts itself."""

    def plus(self, other: StagePlan) -> StagePlan:
        """The same stage with the calls of another role as well."""
        summed = ("calls", "prompt_tokens", "completion_tokens", "usd", "usd_worst", "seconds", "local_s")
        found: dict[str, Any] = {name: total([self, other], name) for name in summed}
        return replace(self, **found)


@dataclass(frozen=True, slots=True)
class Plan:
    stages: list[StagePlan]
    memory: Memory | None
    """None if the student's size is not known."""
    notes: list[str]
    local_s: float | None = None
    """Seconds for the whole run on this machine; None if it computes nothing itself."""
    disk: DiskPlan | None = None
    """None if the student's size is not known."""

    def to_json(self) -> dict[str, Any]:
        totals: dict[str, Any] = {name: sum(getattr(stage, name) for stage in self.stages) for name in SUMMED}
        totals |= {name: total(self.stages, name) for name in ("usd", "usd_worst", "seconds", "gpu_s")}
        totals["local_s"] = self.local_s
        return asdict(self) | {"totals": totals}


def total(stages: list[StagePlan], name: str) -> float | None:
    """The sum of a number over the stages that have it. Returns None if none has."""
    found = [value for stage in stages if (value := getattr(stage, name)) is not None]
    return sum(found) if found else None


def make_plan(config: RunConfig, base_dir: Path) -> Plan:
    """Plan a run.

    Raises:
        DataError: the pool cannot be read.
    """
    taken = import_data(config.data, base_dir, config.seed)
    pool, heldout = _measure(config, base_dir, taken)
    notes = [
        f"{pool.rows:,} instructions in the pool: {pool.median:.0f} tokens in the median, {pool.longest:,} at most; "
        f"{heldout.rows:,} held out",
        "completion tokens and 'at most' are upper bounds (every answer at its maximum length); calls in the journal "
        "cost nothing",
    ]
    parameters = parameters_of(config.student.model, base_dir)
    planner = Planner(
        config,
        base_dir,
        LocalTimes.here(config, base_dir),
        GpuTimes(config, parameters),
        pool,
        heldout,
        load_canaries(config.referee.canaries, config.referee.canary_pairs, base_dir),
    )
    stages = [
        plan
        for iteration in range(config.iterations + 2)
        for stage in due(When(config, iteration, bool(heldout.rows)))
        if (plan := stage.plan(planner, iteration)) is not None
    ]
    notes.append(
        f"generating is planned with one request per row; rejected candidates may raise that up to "
        f"{config.generation.max_attempts:g} times, which 'at most $' includes. Retries of unreadable verdicts, up to "
        f"{config.referee.parse_retries} each, are not included"
    )
    if config.referee.second_order == "near_threshold":
        notes.append(
            "second_order: near_threshold saves up to half of the calls that judge the Cache Pool; the number is "
            "unknown in advance, so all are planned"
        )
    if config.evaluation.checks:
        names = ", ".join(map(check_name, config.evaluation.checks))
        notes.append(f"the checks ({names}) score every held-out answer, including the teacher's, and cost nothing")
        notes += heldout_problems(config, base_dir, taken.heldout)
    if (plateau := config.stop.plateau) is not None:
        notes.append(
            f"the run ends early if the student has not gained {plateau.min_gain:g} on held-out in "
            f"{plateau.rounds} iterations (stop.plateau); this plan is for all iterations"
        )
    if total(stages, "usd_worst") is not None:
        notes.append(
            "'at most $' assumes the configured prices, that no answer takes more tokens than max_tokens allows "
            "(reasoning included), and that no call is billed twice: possible charges for timeouts and lost "
            "connections are not included"
        )
    if config.budget is not None:
        notes.append(
            f"the cap of ${config.budget.usd:,.2f} applies to the usage that endpoints report, at its highest "
            f"reading; if an answer exceeds its max_tokens, the calls in flight at that moment may exceed the cap "
            f"({FIRST_WAVE} calls of an endpoint at first, more with each answer within its limit, or a whole batch), "
            "and later calls are reserved accordingly"
        )
    if total(stages, "usd") is None:
        notes.append("no endpoint has prices, so costs are not planned: see endpoints.NAME.prices")
    if total(stages, "seconds") is None and any(
        config.endpoints[one].serve is None for one in endpoints_in_use(config)
    ):
        notes.append("no endpoint has limits configured, so its time is not planned: see endpoints.NAME.limits")
    notes += idle_workers(config)
    local_s = planned_s(stages)
    if local_s is not None:
        notes.append(
            f"{in_words(local_s)} of computation on this machine, start-up included, by its measured speed and usual "
            "lengths of answers; updated during the run"
        )
    if (gpu_s := total(stages, "gpu_s")) is not None:
        notes.append(gpu_line(gpu_s / 3600))
    if parameters is None:
        notes.append(
            f"{config.student.model} is not on this machine and its name does not contain a size: memory is not planned"
        )
        return Plan(stages, None, notes, local_s)
    notes.append(f"the student has about {parameters / 1e9:.2g} billion parameters")
    disk, wanted = disk_plan(config, parameters), memory(config, parameters)
    notes += [disk_line(config, disk), *wanted.lines(config)]
    return Plan(stages, wanted, notes, local_s, disk)


def share_done(stage: StagePlan, store: RunStore, config: RunConfig) -> float:
    """The committed share of a stage, from 0 to 1; committed parts count."""
    folder = store.stage(stage.folder)
    if folder.manifest() is not None:
        return 1.0
    if stage.consists_of:
        # They are committed one after the other: of hundreds, a few are read.
        done = bisect_left(stage.consists_of, True, key=lambda one: store.stage(one).manifest() is None)
        return done / len(stage.consists_of)
    parts = max(1, -(-stage.rows // config.rows_per_shard(stage.rows)))
    return min(1.0, len(folder.part_indexes()) / parts)


def what_is_left(plan: Plan, store: RunStore, config: RunConfig) -> tuple[float | None, float | None]:
    """The cost of a run's uncommitted stages in US dollars, expected and maximum; committed parts count as done."""
    usual = worst = None
    for stage in plan.stages:
        if stage.usd is None or stage.usd_worst is None:
            continue
        share = 1 - share_done(stage, store, config)
        usual, worst = (usual or 0.0) + share * stage.usd, (worst or 0.0) + share * stage.usd_worst
    return usual, worst


def _measure(config: RunConfig, base_dir: Path, taken: ImportedData) -> tuple[estimate.Lengths, estimate.Lengths]:
    """The lengths of the pool and of the held-out set."""
    first, second = (
        estimate.measure(
            (batch["text"].to_pylist() for batch in table.select(["text"]).to_batches(max_chunksize=BATCH_ROWS)),
            config.student.model,
            base_dir,
        )
        for table in (taken.pool, taken.heldout)
    )
    return first, second


@dataclass(frozen=True, slots=True)
class Planner:
    """Helps stages to plan: pool sizes, and estimates for calls and the student's tokens."""

    config: RunConfig
    base_dir: Path
    local: LocalTimes | None
    """None if the run does not use this machine."""
    gpu: GpuTimes
    pool: estimate.Lengths
    heldout: estimate.Lengths
    canaries: Sequence[Canary]

    @property
    def new_rows(self) -> int:
        """The target number of rows of each generation."""
        return self.config.generation.hard + self.config.generation.easy

    def train_rows(self, iteration: int) -> int:
        """The size of an iteration's Train Pool."""
        return self.pool.rows if iteration == 1 else self.new_rows

    def cache_rows(self, iteration: int) -> int:
        """The size of an iteration's Cache Pool."""
        return self.pool.rows + self.new_rows * (iteration - 1)

    def stage(self, stage: Stage, iteration: int, rows: int) -> StagePlan:
        """A stage of `rows` rows without costs so far."""
        return StagePlan(iteration, stage.name, stage.folder(iteration), rows)

    def written(self, plan: StagePlan, rows: int, longest: int | None = None) -> StagePlan:
        """The stage with `rows` answers of the student: tokens and time are added. `longest`: in tokens."""
        tokens = rows * (longest or self.config.student.max_tokens)
        local = self.local.student(rows) if self.local else None
        return _taking(replace(plan, student_tokens=plan.student_tokens + tokens), local, self.gpu.student(rows))

    def fitted(self, plan: StagePlan, samples: int, writer: str, fits: int = 1) -> StagePlan:
        """The stage with `fits` fits on `samples` answers of `writer` (teacher or student) in all: time is added."""
        length = self.pool.mean + estimate.usual_answer(self.config, writer)
        tokens = samples * min(self.config.imitation.max_length, length)
        return _taking(plan, self.local.fit(tokens, fits) if self.local else None, self.gpu.fit(tokens))

    def called(self, plan: StagePlan, role: str, count: int, mean: float, answers: float | None = None) -> StagePlan:
        """The stage with `count` calls of a role: tokens, cost and time are added.

        `mean`: tokens of an instruction; `answers`: tokens of the answers in the prompt, if known.
        """
        found = estimate.calls(self.config, self.base_dir, role, count, mean, answers)
        return replace(
            _taking(plan, self.local.calls(role, found) if self.local else None, None),
            calls=found.calls,
            prompt_tokens=found.prompt,
            completion_tokens=found.completion_worst,
            usd=found.usd,
            usd_worst=found.usd_worst,
            seconds=found.seconds,
        )


def _taking(plan: StagePlan, local_s: float | None, gpu_s: float | None) -> StagePlan:
    """The stage with more time; None adds none."""
    more = replace(plan, local_s=local_s, gpu_s=gpu_s)
    return replace(plan, local_s=total([plan, more], "local_s"), gpu_s=total([plan, more], "gpu_s"))


def plan_table(plan: Plan) -> Table:
    """The plan as a table for the terminal."""
    caption = (
        "memory not planned"
        if plan.memory is None
        else f"memory: {plan.memory.training} GiB for each training worker without activations, "
        f"{plan.memory.engine} GiB for the weights on each GPU of an engine"
    )
    table = Table(title="The plan of this run", caption=caption)
    table.add_column("iteration", justify="right")
    table.add_column("stage")
    headings = ("rows", "calls", "prompt tokens (about)", "completion tokens (at most)")
    priced = any(stage.usd is not None for stage in plan.stages)
    timed = any(stage.seconds is not None for stage in plan.stages)
    here = any(stage.local_s is not None for stage in plan.stages)
    on_gpus = any(stage.gpu_s is not None for stage in plan.stages)
    more = (["about $", "at most $"] if priced else []) + (["minutes at its limits"] if timed else [])
    more += (["minutes here (about)"] if here else []) + (["GPU-minutes (about)"] if on_gpus else [])
    for heading in (*headings, "student tokens (at most)", "steps", *more):
        table.add_column(heading, justify="right")

    def money(usd: float | None, worst: float | None, *seconds: float | None) -> list[str]:
        cells = [_amount(usd), _amount(worst)] if priced else []
        times = [one for one, shown in zip(seconds, (timed, here, on_gpus), strict=True) if shown]
        return cells + [_amount(None if one is None else one / 60, 1) for one in times]

    for s in plan.stages:
        numbers = (s.rows, s.calls, s.prompt_tokens, s.completion_tokens, s.student_tokens, s.steps)
        cells = [f"{n:,}" if n else "–" for n in numbers]
        table.add_row(str(s.iteration), s.stage, *cells, *money(s.usd, s.usd_worst, s.seconds, s.local_s, s.gpu_s))
    totals = plan.to_json()["totals"]
    table.add_section()
    sums = money(*(totals[name] for name in ("usd", "usd_worst", "seconds", "local_s", "gpu_s")))
    table.add_row("", "total", "", *(f"{totals[name]:,}" for name in SUMMED), *sums)
    return table


def _amount(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
