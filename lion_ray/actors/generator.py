"""Generator: writes new instructions from hard and easy ones, and keeps those that are new.

Invariants:
- What is accepted depends on the answers and on the order of requests, never on the order of arrival.
- Every candidate is either accepted or rejected with a reason that is counted.
- Requests are bounded: a target that cannot be met ends the stage with what there is, and is reported.
- A wave's size follows from the acceptance seen before it, so a resumed stage sends the same waves and finds their
  answers in the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lion_ray.actors.door import Door
from lion_ray.algorithm.novelty import NoveltyIndex
from lion_ray.algorithm.prompts import generator_messages, load_template
from lion_ray.algorithm.sampling import clean_candidate, draw_seed, filter_candidate, wave_size
from lion_ray.config import GenerationConfig, GeneratorConfig
from lion_ray.gateway.calls import Call, Failure, Outcome
from lion_ray.records import CANDIDATE, INSTRUCTION, OK, QUARANTINED, derive_seed, instruction_id, table

KINDS = ("hard", "easy")
WAVE_REQUESTS = 256
"""Requests of a kind in one wave at most. No setting: what is accepted depends on it."""
ORDINALS = 1_000_000
"""Ordinals kept for one iteration, so that a seed drawn again is asked anew and not answered from the journal."""


class Generator:
    """The writer, as an async actor."""

    def __init__(
        self, config: GeneratorConfig, limits: GenerationConfig, proxies: Sequence[str], base_dir: Path, seed: int
    ) -> None:
        self._config = config
        self._limits = limits
        self._door = Door(proxies)
        self._templates = {
            "hard": load_template(config.hard_prompt, "generator", base_dir),
            "easy": load_template(config.easy_prompt, "generator", base_dir),
        }
        self._seed = seed
        self._stage: _Stage | None = None

    async def accepted(self) -> int:
        """Instructions accepted so far in the stage under way."""
        return len(self._stage.accepted) if self._stage else 0

    @ray.method(num_returns=2)
    async def create(
        self, hard: pa.Table, easy: pa.Table, known: pa.Table, heldout: pa.Table, iteration: int
    ) -> tuple[pa.Table, pa.Table]:
        """New instructions from `hard` and `easy` seeds (INSTRUCTION rows), none of them near `known` or `heldout`.

        Returns:
            The accepted INSTRUCTION rows in order of acceptance, and every CANDIDATE in order of request.
        """
        stage = self._stage = _Stage(self._limits, known, heldout, iteration)
        seeds = {"hard": hard, "easy": easy}
        while True:
            plan = [(kind, request) for kind in KINDS if seeds[kind].num_rows for request in stage.next(kind)]
            if not plan:
                return table(stage.accepted, INSTRUCTION), table(stage.candidates, CANDIDATE)
            drawn = [self._draw(seeds[kind], kind, iteration, request) for kind, request in plan]
            calls = [
                self._call(kind, seed, stage.ordinal(kind, seed["id"]), f"pool-{iteration}")
                for (kind, _), seed in zip(plan, drawn, strict=True)
            ]
            outcomes = await self._door.complete(calls)
            for (kind, request), seed, outcome in zip(plan, drawn, outcomes, strict=True):
                stage.take(kind, request, seed["id"], outcome)

    def _draw(self, pool: pa.Table, kind: str, iteration: int, request: int) -> dict[str, Any]:
        return draw_seed(pool, seed=self._seed, iteration=iteration, kind=kind, request=request)

    def _call(self, kind: str, seed: dict[str, Any], ordinal: int, stage: str) -> Call:
        words = len(seed["text"].split())
        return Call(
            messages=generator_messages(self._templates[kind], seed["text"]),
            max_tokens=max(self._config.min_tokens, round(self._config.tokens_per_word * words)),
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed=derive_seed(self._seed, "generator", kind, seed["id"], ordinal),
            ordinal=ordinal,
            role="generator",
            stage=stage,
            batch=self._config.mode == "batch",
        )


GeneratorActor: Any = ray.remote(num_cpus=0, max_restarts=5, max_task_retries=5, max_concurrency=10)(Generator)


class _Stage:
    """One iteration's generation: what was asked, what was kept, and why the rest was not."""

    def __init__(self, limits: GenerationConfig, known: pa.Table, heldout: pa.Table, iteration: int) -> None:
        self._limits = limits
        self._iteration = iteration
        self._index = NoveltyIndex(known["text"].to_pylist(), threshold=limits.max_similarity)
        self._heldout = NoveltyIndex(heldout["text"].to_pylist(), threshold=limits.max_similarity)
        self._wanted = {"hard": limits.hard, "easy": limits.easy}
        self._asked: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._drawn: Counter[tuple[str, str]] = Counter()
        self.accepted: list[dict[str, Any]] = []
        self.candidates: list[dict[str, Any]] = []

    def next(self, kind: str) -> range:
        """The numbers of the next wave's requests; empty when the target is met or the attempts are used up."""
        size = wave_size(
            wanted=self._wanted[kind],
            accepted=self._kept[kind],
            attempted=self._asked[kind],
            max_attempts=round(self._wanted[kind] * self._limits.max_attempts),
            floor=1,
            ceiling=WAVE_REQUESTS,
        )
        start = self._asked[kind]
        self._asked[kind] += size
        return range(start, start + size)

    def ordinal(self, kind: str, seed_id: str) -> int:
        count = self._drawn[kind, seed_id]
        self._drawn[kind, seed_id] += 1
        return self._iteration * ORDINALS + count

    def take(self, kind: str, request: int, parent: str, outcome: Outcome) -> None:
        row: dict[str, Any] = {"source": kind, "parent": parent, "request": request, "call": outcome.key}
        if isinstance(outcome, Failure):
            text = ""
            reason: str | None = f"no answer: {outcome.reason}"
        else:
            text = clean_candidate(outcome.text)
            reason = self._reject(kind, text, outcome.finish_reason)
            row |= {
                "prompt_tokens": outcome.prompt_tokens,
                "completion_tokens": outcome.completion_tokens,
                "cost_usd": outcome.cost_usd,
            }
        self.candidates.append(row | {"text": text, "status": QUARANTINED if reason else OK, "reason": reason})
        if not reason:
            self._kept[kind] += 1
            self._index.add(text)
            self.accepted.append(
                {
                    "id": instruction_id(text),
                    "text": text,
                    "source": kind,
                    "parent": parent,
                    "iteration": self._iteration,
                }
            )

    def _reject(self, kind: str, text: str, finish_reason: str) -> str | None:
        if reason := filter_candidate(text, finish_reason, min_words=self._limits.min_words):
            return reason
        if self._kept[kind] >= self._wanted[kind]:
            return "not needed: the target was met"
        if not self._heldout.is_novel(text):
            return "too similar to a held-out instruction"
        if not self._index.is_novel(text):
            return "too similar to a known instruction"
        return None
