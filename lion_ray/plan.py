"""What a run will take, before anything is spent: calls, tokens, training steps, memory.

Invariants:
- Reads the user's pool and, where they are on this machine, the models' configs; sends nothing and starts nothing.
- Counts of calls and steps are exact for the numbers planned; tokens are estimates (four characters a token) and
  upper bounds (every answer as long as it may be), and are named so.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.table import Table

from lion_ray.algorithm.pools import read_pool, split_heldout
from lion_ray.config import RunConfig, judges_heldout
from lion_ray.errors import LionError

CHARACTERS_PER_TOKEN = 4
PROMPT_FRAME_TOKENS = {"teacher": 60, "referee": 200, "generator": 180}
"""About what the templates add to a call, in tokens."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. Tokens: `prompt_tokens` about, `completion_tokens` at most."""

    iteration: int
    stage: str
    rows: int
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
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
        totals = {
            name: sum(getattr(stage, name) for stage in self.stages)
            for name in ("calls", "prompt_tokens", "completion_tokens", "student_tokens", "steps")
        }
        return asdict(self) | {"totals": totals}


def make_plan(config: RunConfig, base_dir: Path) -> Plan:
    """Plan a run.

    Raises:
        DataError: the pool cannot be read.
    """
    rows, heldout, mean_tokens = _measure(config, base_dir)
    notes = [
        f"{rows} instructions in the pool, about {mean_tokens} tokens each; {heldout} held out",
        "completion tokens are upper bounds (every answer as long as it may be); calls in the journal cost nothing",
    ]
    new = config.generation.hard + config.generation.easy
    stages = [_teacher(config, 0, "teacher answers held-out", heldout, mean_tokens)]
    if heldout and judges_heldout(config, 0):
        stages.append(_judging(config, 0, "judging held-out", heldout, mean_tokens))
    for iteration in range(1, config.iterations + 2):
        train = rows if iteration == 1 else new
        cache = rows + new * (iteration - 1)
        stages.append(_teacher(config, iteration, "teacher answers", train, mean_tokens))
        steps = math.ceil(train / config.imitation.batch_size) * config.imitation.epochs
        stages.append(StagePlan(iteration, "fine-tuning", train, steps=steps))
        if iteration <= config.iterations:
            stages.append(_judging(config, iteration, "judging the Cache Pool", cache, mean_tokens))
            stages.append(_generating(config, iteration, new, mean_tokens))
        if heldout and judges_heldout(config, iteration):
            stages.append(_judging(config, iteration, "judging held-out", heldout, mean_tokens))
    notes.append(
        f"generating is counted at one request a row; it may take up to {config.generation.max_attempts:g} times that "
        "where candidates are rejected"
    )
    parameters = _parameters(config.student.model, base_dir)
    if parameters is None:
        notes.append(f"{config.student.model} is not on this machine and its name tells no size: memory is not planned")
        return Plan(stages, None, None, notes)
    notes.append(f"the student has about {parameters / 1e9:.2g} billion parameters")
    return Plan(stages, _training_gib(config, parameters), _engine_gib(config, parameters), notes)


def _measure(config: RunConfig, base_dir: Path) -> tuple[int, int, int]:
    """Rows to train on, rows held out, and the mean length of an instruction in tokens."""
    data = config.data
    pool = read_pool(data.pool, base_dir=base_dir, limit=data.limit, on_bad_row=data.on_bad_row).pool
    if isinstance(data.heldout, int):
        pool, apart = split_heldout(pool, data.heldout, config.seed)
    else:
        apart = read_pool(data.heldout, base_dir=base_dir, limit=None, on_bad_row=data.on_bad_row).pool
    characters = pc.mean(pc.utf8_length(pool["text"])).as_py()
    return pool.num_rows, apart.num_rows, max(1, round(characters / CHARACTERS_PER_TOKEN))


def _teacher(config: RunConfig, iteration: int, stage: str, rows: int, mean: int) -> StagePlan:
    prompt = rows * (mean + PROMPT_FRAME_TOKENS["teacher"])
    return StagePlan(iteration, stage, rows, rows, prompt, rows * config.teacher.max_tokens)


def _judging(config: RunConfig, iteration: int, stage: str, rows: int, mean: int) -> StagePlan:
    calls = 2 * rows
    answers = config.teacher.max_tokens + config.student.max_tokens
    return StagePlan(
        iteration,
        stage,
        rows,
        calls,
        calls * (mean + answers + PROMPT_FRAME_TOKENS["referee"]),
        calls * config.referee.max_tokens,
        student_tokens=rows * config.student.max_tokens,
    )


def _generating(config: RunConfig, iteration: int, rows: int, mean: int) -> StagePlan:
    # Four tokens for each of the seed's words, and a word is about 1.3 tokens.
    longest = max(config.generator.min_tokens, round(config.generator.tokens_per_word * mean / 1.3))
    prompt = rows * (mean + PROMPT_FRAME_TOKENS["generator"])
    return StagePlan(iteration, "generating", rows, rows, prompt, rows * longest)


def _parameters(model: str, base_dir: Path) -> float | None:
    """A model's parameters: from its weights on this machine, else as its name says (``-7b``)."""
    try:
        from lion_ray.models import local_model

        folder = local_model(model, base_dir=base_dir)
    except LionError:
        folder = None
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
    for heading in (*headings, "student tokens (at most)", "steps"):
        table.add_column(heading, justify="right")
    for s in plan.stages:
        numbers = (s.rows, s.calls, s.prompt_tokens, s.completion_tokens, s.student_tokens, s.steps)
        table.add_row(str(s.iteration), s.stage, *(f"{n:,}" if n else "–" for n in numbers))
    totals = plan.to_json()["totals"]
    table.add_section()
    names = ("calls", "prompt_tokens", "completion_tokens", "student_tokens", "steps")
    table.add_row("", "together", "", *(f"{totals[name]:,}" for name in names))
    return table
