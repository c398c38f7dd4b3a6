"""Small run folders for tests, written through RunStore as a run writes them, without a run.

Invariant: what the roles say depends on the arguments alone, so two folders made the same way are the same but for the
time at which their calls were journaled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lion_ray.config import RunConfig, check_name
from lion_ray.core import layout
from lion_ray.core.records import (
    ANSWER,
    CANDIDATE,
    INSTRUCTION,
    OK,
    QUARANTINED,
    VERDICT,
    derive_seed,
    instruction_id,
    ok_rows,
    table,
)
from lion_ray.core.store import FORMAT, RunStore
from lion_ray.discrimination.checks import load_checks
from lion_ray.discrimination.quality import relative_quality
from lion_ray.discrimination.scores import is_hard
from lion_ray.discrimination.win_rate import heldout_figures
from lion_ray.evaluation.check_scores import checked_rows, counts, describe
from lion_ray.gateway.calls import Account, Completion
from lion_ray.gateway.journal import Journal
from lion_ray.pipeline.results import summarise, write_result

BEGAN = 1_800_000_000.0
WORDS = ("river", "engine", "violin", "harbour", "glacier", "orchard", "senate", "bakery", "comet", "loom")


def plain(what: str, number: int) -> str:
    """A short text that names what it is."""
    return f"{what} {number} on the {WORDS[number % len(WORDS)]} and the {WORDS[(number * 7 + 3) % len(WORDS)]}"


@dataclass
class RunFolder:
    """A run's folder, grown stage by stage. Every stage takes ten minutes, one after the other."""

    root: Path
    rows: int = 12
    heldout: int = 6
    new: int = 4
    """Rows that each iteration writes: half from hard ones, half from easy ones."""
    iterations: int = 2
    shard_rows: int = 5
    config: dict[str, Any] = field(default_factory=dict)
    """Over the defaults below."""
    say: Callable[[str, int], str] = plain
    """(instruction, answer, student, review or generated; a number) to a text."""
    store: RunStore = field(init=False)
    _clock: float = field(init=False, default=BEGAN)
    _bought: list[tuple[Account, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.store = RunStore(str(self.root))
        self.store.claim()
        endpoint = {"model": "teacher-model", "prices": {"input": 1.0, "output": 2.0}}
        written = {
            "run_name": "small",
            "iterations": self.iterations,
            "data": {"pool": "pool.jsonl", "heldout": "heldout.jsonl"},
            "endpoints": {"default": endpoint},
            "student": {"model": "./student"},
        }
        config = RunConfig.model_validate(written | self.config)
        self.settings = config
        self.store.write_record(
            "run.json",
            {
                "format": FORMAT,
                "config": config.model_dump(mode="json"),
                "source": "small.yaml",
                "base_dir": ".",
                "versions": {"lion-ray": "0.1.0"},
            },
        )

    # -- whole runs ----------------------------------------------------------------------------------------------

    def begin(self) -> RunFolder:
        """Pools and the teacher's answers to them, and the base model judged on held-out."""
        seeds = [self.instruction(self.say("instruction", n), "seed", None, 0) for n in range(self.rows)]
        held = [self.instruction(self.say("instruction", 1000 + n), "seed", None, 0) for n in range(self.heldout)]
        self.pool("heldout", held)
        self.pool("0", seeds)
        self.answers("heldout")
        self.answers("0")
        self.check(None)
        self.judge(0, "heldout", ["heldout"])
        self.check(0)
        self.conclude(0)
        return self

    def iterate(self, iteration: int) -> RunFolder:
        """A whole iteration; the one after the last is imitation alone."""
        self.fit(iteration)
        if iteration <= self.iterations:
            self.judge(iteration, "", [str(pool) for pool in range(iteration)])
            self.grow(iteration)
        self.judge(iteration, "heldout", ["heldout"])
        self.check(iteration)
        self.conclude(iteration)
        return self

    def finish(self) -> RunFolder:
        """All of it, from the beginning."""
        self.begin()
        for iteration in range(1, self.iterations + 2):
            self.iterate(iteration)
        self.journal()
        self.store.heartbeat(ended=True)
        return self

    # -- stages --------------------------------------------------------------------------------------------------

    def instruction(self, text: str, source: str, parent: str | None, iteration: int) -> dict[str, Any]:
        return {
            "id": instruction_id(text),
            "text": text,
            "source": source,
            "parent": parent,
            "iteration": iteration,
            "reference": None if parent else self.say("reference", iteration),
        }

    def pool(self, name: str, rows: Sequence[dict[str, Any]], **manifest: Any) -> None:
        parts = self._parts(f"pool-{name}", rows, INSTRUCTION)
        self._commit(f"pool-{name}", {"rows": len(rows), "parts": parts} | manifest)

    def answers(self, name: str) -> None:
        rows = [
            self._answer("teacher", f"answers-{name}", one, n, self.say("answer", n))
            for n, one in enumerate(self.read_pool(name))
        ]
        parts = self._parts(f"answers-{name}", rows, ANSWER)
        self._commit(f"answers-{name}", {"rows": len(rows), "quarantined": {}, "parts": parts} | _spent(rows))

    def fit(self, iteration: int) -> None:
        """A fine-tuning's manifest: the loss falls less each time."""
        before = 2.0 if iteration == 1 else 1.0 + 1.0 / iteration
        metrics = {
            "steps": 10,
            "samples": self.rows,
            "dropped": {},
            "tokens": 1000,
            "heldout_loss_before": before,
            "heldout_loss_after": 1.0 + 1.0 / (iteration + 1),
        }
        self._commit(f"iteration-{iteration}/checkpoint", metrics)

    def judge(self, iteration: int, folder: str, pools: Sequence[str]) -> None:
        """The student's answers and the verdicts; the student gains as it learns, and one row has no verdict."""
        name = f"iteration-{iteration}" + (f"/{folder}" if folder else "")
        asked = [one for pool in pools for one in self.read_pool(pool)]
        # Where there are checks, the student learns to say what they want: one row more in each iteration.
        checked = folder == "heldout" and self.settings.evaluation.checks
        student = [
            self._answer(
                "student",
                "",
                one,
                n,
                self.say("answer" if checked and n <= iteration else "student", n),
                version=f"iteration-{iteration}",
            )
            for n, one in enumerate(asked)
        ]
        verdicts = [self._verdict(f"{name}/verdicts", one, n, iteration) for n, one in enumerate(asked)]
        # Parts are those of the pools, as the run has them.
        sizes = [size for pool in pools for size in self._sizes(pool)]
        self._parts(f"{name}/student", student, ANSWER, sizes)
        self.store.stage(f"{name}/student").commit({"rows": len(student), "parts": len(sizes)})
        self._parts(f"{name}/verdicts", verdicts, VERDICT, sizes)
        scored = ok_rows(table(verdicts, VERDICT))
        teacher_scores, student_scores = (scored[who].to_numpy() for who in ("teacher_score", "student_score"))
        hard = int(is_hard(teacher_scores, student_scores, self.settings.discrimination.tau).sum())
        quality = relative_quality(teacher_scores, student_scores, seed=derive_seed(0, name))
        reasons = [one["reason"] for one in verdicts if one["status"] != OK]
        manifest = {
            "rows": len(verdicts),
            "quarantined": {reason: reasons.count(reason) for reason in reasons},
            "parts": len(sizes),
            "hard": hard,
            "easy": scored.num_rows - hard,
            "relative_quality": quality and {"ratio": quality.ratio, "low": quality.low, "high": quality.high},
            "order_flips": 1,
        }
        if folder == "heldout":
            before = self.store.stage(f"iteration-{iteration - 1}/heldout/verdicts")
            earlier = before.read(len(sizes)) if iteration else None
            answers = self.store.stage("answers-heldout").read(len(sizes))
            manifest |= heldout_figures(
                table(verdicts, VERDICT), answers, table(student, ANSWER), earlier, seed=derive_seed(0, name)
            )
        self._commit(f"{name}/verdicts", manifest | _spent(verdicts))

    def rounds(self, iteration: int, rewards: Sequence[float]) -> None:
        """An iteration's on-policy rounds, by the mean rewards of each."""
        told = {"criteria": 40, "criteria_untelling": 12, "answers": 64, "answers_learned": 50, "engine_gap_mean": 2e-6}
        each = [{"reward": reward} | told for reward in rewards]
        self._commit(layout.rounds(iteration), {"rows": 8, "rewards": each, "seconds": 30.0})

    def check(self, iteration: int | None) -> None:
        """The checks' scores of a checkpoint, or of the teacher (None), as the run store actor writes them."""
        checks = load_checks(self.settings.evaluation.checks, Path())
        if not checks:
            return

        def stage(k: int | None) -> str:
            return "answers-heldout/checks" if k is None else f"iteration-{k}/heldout/checks"

        def part(k: int | None) -> pa.Table:
            return self.store.stage(stage(k)).read_part(0)

        parts = len(self._sizes("heldout"))
        answers = "answers-heldout" if iteration is None else f"iteration-{iteration}/heldout/student"
        rows = checked_rows(checks, self.store.stage("pool-heldout").read(parts), self.store.stage(answers).read(parts))
        self.store.stage(stage(iteration)).write_part(0, rows)
        found = describe(
            rows,
            map(check_name, self.settings.evaluation.checks),
            seed=0,
            teacher=None if iteration is None else part(None),
            before=part(iteration - 1) if iteration else None,
            base=part(0) if iteration else None,
        )
        self._commit(stage(iteration), counts(rows) | {"parts": 1} | found)

    def grow(self, iteration: int) -> None:
        """New rows, each from a row of the newest pool, and a rejected candidate of each kind."""
        parents = self.read_pool(str(iteration - 1))
        kinds = ["hard"] * (self.new // 2) + ["easy"] * (self.new - self.new // 2)
        rows = [
            self.instruction(
                self.say("generated", 100 * iteration + n), kind, parents[n % len(parents)]["id"], iteration
            )
            for n, kind in enumerate(kinds)
        ]
        candidates = [
            {"text": one["text"], "source": one["source"], "parent": one["parent"], "request": n, "status": OK}
            for n, one in enumerate(rows)
        ]
        reason = self.say("reason", 0) if self.say is not plain else "too similar"
        candidates += [
            {"text": "x", "source": kind, "parent": "p", "request": 90, "status": QUARANTINED, "reason": reason}
            for kind in ("hard", "easy")
        ]
        self.store.write_table(f"iteration-{iteration}/candidates.parquet", table(candidates, CANDIDATE))
        counts = {
            kind: {"requests": kinds.count(kind) + 1, "accepted": kinds.count(kind), "rejected": {reason: 1}}
            for kind in ("hard", "easy")
        }
        self.pool(str(iteration), rows, kinds=counts)
        self.answers(str(iteration))

    def conclude(self, iteration: int) -> None:
        write_result(self.store, summarise(self.store, iteration))

    def journal(self) -> None:
        """Every call that the stages made, as the gateway writes them down."""

        async def write() -> None:
            journal = Journal.open(self.store.path("journal"))
            await asyncio.gather(*(journal.put(replace(_COMPLETION, key=key), who) for who, key in self._bought))
            await journal.close()

        asyncio.run(write())

    def read_pool(self, name: str) -> list[dict[str, Any]]:
        stage = self.store.stage(f"pool-{name}")
        return stage.read((stage.manifest() or {})["parts"]).to_pylist()

    # -- rows ----------------------------------------------------------------------------------------------------

    def _answer(self, role: str, stage: str, one: dict[str, Any], n: int, text: str, **more: Any) -> dict[str, Any]:
        key = self._buy(role, stage, one["id"]) if stage else None
        return {
            "id": one["id"],
            "text": text,
            "status": OK,
            "finish_reason": "stop",
            "model": f"{role}-model",
            "prompt_tokens": 10,
            "completion_tokens": 20 + n,
            "cost_usd": 0.001 if stage else None,
            "call": key,
        } | more

    def _verdict(self, stage: str, one: dict[str, Any], n: int, iteration: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": one["id"],
            "version": f"iteration-{iteration}",
            "model": "judge-model",
            "review_teacher_first": self.say("review", n),
            "review_student_first": self.say("review", n + 1),
            "calls": [self._buy("referee", stage, f"{one['id']}{order}") for order in (1, 2)],
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "cost_usd": 0.002,
        }
        if n == 3 and len(stage) < 24 and iteration:
            reason = self.say("reason", 1) if self.say is not plain else "verdict without readable scores"
            return row | {"status": QUARANTINED, "reason": reason}
        # Each row has a gap of its own, that shrinks with the iterations; every fifth grows instead.
        gap = (n % 5) + (0.5 * iteration if n % 5 == 0 else -0.5 * iteration)
        teacher, student = 8.0, min(9.5, max(1.0, 8.0 - gap))
        return row | {
            "status": OK,
            "teacher_score": teacher,
            "student_score": student,
            "teacher_first": [teacher + 0.5, student - 0.5 if student > 1.5 else student],
            "student_first": [teacher - 0.5, student + 0.5 if student > 1.5 else student],
        }

    def _buy(self, role: str, stage: str, what: str) -> str:
        key = f"{derive_seed(role, stage, what):064x}"
        self._bought.append((Account("small", role, stage), key))
        return key

    # -- files ---------------------------------------------------------------------------------------------------

    def _sizes(self, pool: str) -> list[int]:
        stage = self.store.stage(f"pool-{pool}")
        return [stage.read_part(part).num_rows for part in range((stage.manifest() or {})["parts"])]

    def _parts(
        self, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema, sizes: Sequence[int] | None = None
    ) -> int:
        stage = self.store.stage(name)
        sizes = sizes or [len(rows[n : n + self.shard_rows]) for n in range(0, len(rows), self.shard_rows)]
        ends = np.cumsum(sizes).tolist()
        for part, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            stage.write_part(part, table(rows[end - size : end], schema))
        return len(sizes)

    def _commit(self, name: str, manifest: dict[str, Any]) -> None:
        self.store.stage(name).commit(manifest | {"began": self._clock, "seconds": 600.0})
        self._clock += 600


_COMPLETION = Completion(
    key="",
    text="",
    finish_reason="stop",
    model="teacher-model",
    endpoint="default",
    prompt_tokens=10,
    completion_tokens=20,
    cached_tokens=0,
    seconds=0.1,
    cost_usd=0.001,
)


def _spent(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompt_tokens": sum(one["prompt_tokens"] for one in rows),
        "completion_tokens": sum(one["completion_tokens"] for one in rows),
        "calls": len(rows),
    }
