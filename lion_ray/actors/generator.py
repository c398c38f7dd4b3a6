"""Generator: writes new instructions from hard and easy ones, and keeps those that are new.

Invariants:
- Acceptance depends on the answers and on the order of requests, never on the order of arrival.
- Every candidate is either accepted or rejected with a reason that is counted.
- Requests are bounded: if the target cannot be met, the stage ends with fewer rows and reports it.
- The requests follow from earlier decisions, block by block in order, so a resumed stage sends the same requests and
  finds their answers in the journal.
- A part of the new pool is yielded as soon as it is full, so that the teacher can start on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_ray.actors.base import BaseActor, restartable
from lion_ray.actors.endpoint_handle import EndpointHandle
from lion_ray.actors.metrics import PoolMetrics
from lion_ray.actors.novelty_shard import NoveltyShards
from lion_ray.config import GenerationConfig, GeneratorConfig
from lion_ray.core import layout
from lion_ray.core.records import CANDIDATE, INSTRUCTION, OK, QUARANTINED, Piece, derive_seed, instruction_id, table
from lion_ray.data.contamination import EvaluationSet
from lion_ray.gateway.calls import Call, Failure, Outcome
from lion_ray.generation.sampling import clean_candidate, draw_seed, filter_candidate, wave_size
from lion_ray.prompts.messages import generator_messages, load_template
from lion_ray.similarity.novelty import NoveltyIndex

KINDS = ("hard", "easy")
BLOCK = 64
"""Maximum requests in one message; they are decided together. Not configurable, because acceptance depends on it."""
AHEAD = {"live": 256, "batch": 4096}
"""Maximum requests of a kind that are sent and not yet decided: a Batch API needs many at once."""
ORDINALS = 1_000_000
"""Ordinals reserved for one iteration, so that a seed drawn again is a new call and not answered from the journal."""


class Generator(BaseActor):
    """The generator as an async actor."""

    def __init__(
        self, config: GeneratorConfig, limits: GenerationConfig, proxies: Sequence[str], base_dir: Path, seed: int
    ) -> None:
        self._config = config
        self._limits = limits
        self._door = EndpointHandle(proxies)
        self._templates = {
            "hard": load_template(config.hard_prompt, "generator", base_dir),
            "easy": load_template(config.easy_prompt, "generator", base_dir),
        }
        self._seed = seed
        self._metrics = PoolMetrics()
        self._stage: _Stage | None = None

    async def accepted(self) -> int:
        """Instructions accepted so far in the current stage."""
        return len(self._stage.accepted) if self._stage else 0

    async def create(
        self,
        hard: pa.Table,
        easy: pa.Table,
        known: pa.Table,
        heldout: pa.Table,
        questions: pa.Table,
        iteration: int,
        shard_rows: int,
        shards: Sequence[str] = (),
    ) -> AsyncIterator[Piece]:
        """New instructions from `hard` and `easy` seeds (INSTRUCTION rows). None is similar to `known`, to `heldout` or
        to the `text` of `questions`, which come from evaluation sets.

        Args:
            shards: names of the actors that index further known texts (`novelty_shard`).

        Yields:
            The accepted rows in order of acceptance, `shard_rows` at a time; then every candidate in order of request.
        """
        seeds = {"hard": hard, "easy": easy}
        kinds = [kind for kind in KINDS if seeds[kind].num_rows]
        spread = NoveltyShards.named(shards)
        stage = _Stage(
            self._limits, known, heldout, questions, iteration, AHEAD[self._config.mode], await spread.size()
        )
        self._stage = stage
        sent: deque[tuple[list[_Request], asyncio.Task[list[tuple[Outcome, bool]]]]] = deque()
        try:
            while True:
                for block in stage.next_blocks(kinds, partial(self._draw, seeds, iteration)):
                    calls = [self._call(request, layout.pool(iteration)) for request in block]
                    sent.append((block, asyncio.create_task(self._answers(calls, spread))))
                if not sent:
                    break
                block, answers = sent.popleft()
                for request, (outcome, novel) in zip(block, await answers, strict=True):
                    rejected = stage.take(request, outcome, novel)
                    self._metrics.decided(request.kind, rejected or "accepted", stage.known)
                for part in stage.next_parts(shard_rows):
                    yield part
            for part in stage.next_parts(shard_rows, rest=True):
                yield part
            yield Piece(None, table(stage.candidates, CANDIDATE))
        finally:
            for _, answers in sent:
                answers.cancel()

    async def _answers(self, calls: Sequence[Call], shards: NoveltyShards) -> list[tuple[Outcome, bool]]:
        """Each call's outcome, and whether its text is novel to the shards, which does not depend on other answers."""
        outcomes = await self._door.complete(calls)
        return list(zip(outcomes, await shards.novel([_candidate(outcome) for outcome in outcomes]), strict=True))

    def _draw(self, seeds: dict[str, pa.Table], iteration: int, kind: str, number: int) -> dict[str, Any]:
        return draw_seed(seeds[kind], seed=self._seed, iteration=iteration, kind=kind, request=number)

    def _call(self, request: _Request, stage: str) -> Call:
        words = len(request.text.split())
        return Call(
            messages=generator_messages(self._templates[request.kind], request.text),
            max_tokens=max(self._config.min_tokens, round(self._config.tokens_per_word * words)),
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed=derive_seed(self._seed, "generator", request.kind, request.parent, request.ordinal),
            ordinal=request.ordinal,
            role="generator",
            stage=stage,
            batch=self._config.mode == "batch",
        )


GeneratorActor: Any = restartable(Generator, at_once=10)


@dataclass(frozen=True, slots=True)
class _Request:
    """One requested instruction: number `number` of its kind, from the seed `parent`."""

    kind: str
    number: int
    parent: str
    text: str
    """The seed's text."""
    ordinal: int


class _Stage:
    """The state of one iteration's generation: requests, accepted rows, and all candidates with reasons."""

    def __init__(
        self,
        limits: GenerationConfig,
        known: pa.Table,
        heldout: pa.Table,
        questions: pa.Table,
        iteration: int,
        ahead: int,
        in_shards: int = 0,
    ) -> None:
        """`in_shards`: the number of known texts that are not in `known`."""
        self._limits = limits
        self._iteration = iteration
        self._ahead = ahead
        self._in_shards = in_shards
        self._index = NoveltyIndex(known["text"].to_pylist(), threshold=limits.max_similarity)
        self._heldout = NoveltyIndex(heldout["text"].to_pylist(), threshold=limits.max_similarity)
        self._evaluation = EvaluationSet(questions["text"].to_pylist())
        self._wanted = {"hard": limits.hard, "easy": limits.easy}
        self._asked: Counter[str] = Counter()
        self._decided: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._drawn: Counter[tuple[str, str]] = Counter()
        self._handed = 0
        self.accepted: list[dict[str, Any]] = []
        self.candidates: list[dict[str, Any]] = []

    def next_blocks(self, kinds: Iterable[str], draw: Callable[[str, int], dict[str, Any]]) -> Iterator[list[_Request]]:
        """The requests to send now, given the decisions so far. Empty if the targets are met, the attempts are used up,
        or enough requests are in flight."""
        requests = []
        for kind in kinds:
            wanted = self._decided[kind] + wave_size(
                wanted=self._wanted[kind],
                accepted=self._kept[kind],
                attempted=self._decided[kind],
                max_attempts=round(self._wanted[kind] * self._limits.max_attempts),
                floor=1,
                ceiling=self._ahead,
            )
            for number in range(self._asked[kind], wanted):
                seed = draw(kind, number)
                requests.append(_Request(kind, number, seed["id"], seed["text"], self._ordinal(kind, seed["id"])))
            self._asked[kind] = max(self._asked[kind], wanted)
        for start in range(0, len(requests), BLOCK):
            yield requests[start : start + BLOCK]

    def next_parts(self, rows: int, *, rest: bool = False) -> Iterator[Piece]:
        """The accepted rows not yielded yet, `rows` at a time; with `rest`, also the remainder."""
        while len(self.accepted) - self._handed >= (1 if rest else rows):
            start = self._handed
            part = self.accepted[start : start + rows]
            self._handed += len(part)
            yield Piece(start // rows, table(part, INSTRUCTION))

    def _ordinal(self, kind: str, seed_id: str) -> int:
        count = self._drawn[kind, seed_id]
        self._drawn[kind, seed_id] += 1
        return self._iteration * ORDINALS + count

    @property
    def known(self) -> int:
        """Instructions in the Cache Pool, with those accepted so far."""
        return len(self._index) + self._in_shards

    def take(self, request: _Request, outcome: Outcome, novel: bool = True) -> str | None:
        """Decide on a candidate, in the order of requests. Returns None if accepted, else the reason.

        `novel`: to the shards.
        """
        kind = request.kind
        self._decided[kind] += 1
        row: dict[str, Any] = {
            "source": kind,
            "parent": request.parent,
            "request": request.number,
            "call": outcome.key,
        }
        text = _candidate(outcome)
        if isinstance(outcome, Failure):
            reason: str | None = f"no answer: {outcome.reason}"
        else:
            reason = self._reject(kind, text, outcome.finish_reason, novel)
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
                    "parent": request.parent,
                    "iteration": self._iteration,
                }
            )
        return reason

    def _reject(self, kind: str, text: str, finish_reason: str, novel: bool) -> str | None:
        if reason := filter_candidate(text, finish_reason, min_words=self._limits.min_words):
            return reason
        if self._kept[kind] >= self._wanted[kind]:
            return "not needed: the target was met"
        if contaminated := self._evaluation.rejects(text):
            return contaminated
        if not self._heldout.is_novel(text):
            return "too similar to a held-out instruction"
        if not novel or not self._index.is_novel(text):
            return "too similar to a known instruction"
        return None


def _candidate(outcome: Outcome) -> str:
    return "" if isinstance(outcome, Failure) else clean_candidate(outcome.text)
