"""Rewarder: chooses the instructions of an on-policy round, and rewards the student's answers to them by rubrics.

Invariants:
- Rubrics and decisions are made by `discrimination.rubric`; this actor sends the calls, each through a TeacherProxy.
- An instruction without a readable rubric, or without decisions, is quarantined in this round with its reason, and so
  are the student's answers to it.
- What it returns depends on committed parts and on the journal alone, so a resumed round gives the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_ray.actors.base import BaseActor, restartable
from lion_ray.actors.endpoint_handle import EndpointHandle
from lion_ray.config import RunConfig
from lion_ray.config.on_policy import RubricRewardConfig
from lion_ray.core import layout
from lion_ray.core.errors import DataError
from lion_ray.core.records import OK, QUARANTINED, REWARD, RUBRIC, Prompt, as_instructions, derive_seed, table
from lion_ray.core.store import RunStore
from lion_ray.discrimination import rubric
from lion_ray.discrimination.pairwise import account
from lion_ray.discrimination.rubric import Criterion
from lion_ray.gateway.calls import Call, Completion, Failure
from lion_ray.prompts.messages import load_template

REFERENCE = "teacher_answer"
"""The column of a round's prompts with the teacher's answer."""


class Rewarder(BaseActor):
    """The rewards of on-policy rounds as an async actor."""

    def __init__(self, config: RunConfig, store: RunStore, proxies: dict[str, Sequence[str]], base_dir: Path) -> None:
        """`proxies`: by role, the names of its endpoint's actors. Raises ConfigError if a template cannot be used."""
        self._config = config
        self._store = store
        self._endpoints = {role: EndpointHandle(names) for role, names in proxies.items()}
        self._known: dict[tuple[int, int], _Earlier] = {}
        self._rubricator = load_template(config.rubricator.prompt, "rubricator", base_dir)
        self._verifier = load_template(config.verifier.prompt, "verifier", base_dir)

    def draw(self, iteration: int, number: int, parts: Sequence[tuple[str, str, str]], count: int) -> int:
        """Choose a round's instructions, write them into `layout.round_prompts`, and return their number.

        They are the next `count` of the Train Pool's answered rows in a random order that is the iteration's, without
        those of which no criterion is left to ask about.

        Args:
            parts: of each part of the Train Pool the instructions, the teacher's answers, and which of them are left
                out of the training (the answers again if there are no filters).
        """
        name = layout.round_prompts(iteration, number)
        if self._store.exists(name):
            return self._store.read_table(name).num_rows
        rows = as_instructions(self._answered(*part) for part in parts)
        order = list(range(rows.num_rows))
        random.Random(derive_seed(self._config.seed, "on-policy", iteration)).shuffle(order)
        begin = (number - 1) * count % max(1, len(order))
        earlier, ids = self._earlier(iteration, number), rows["id"].to_pylist()
        chosen = [place for place in order[begin:] + order[:begin] if ids[place] not in earlier.spent][:count]
        self._store.write_table(name, rows.take(pa.array(chosen, pa.int64())))
        return len(chosen)

    def prompts(self, iteration: int, number: int, start: int, count: int) -> pa.Table:
        """Some of a round's instructions, as INSTRUCTION rows with the column `REFERENCE`."""
        return self._store.read_table(layout.round_prompts(iteration, number)).slice(start, count).combine_chunks()

    async def rubrics(self, prompts: pa.Table, iteration: int, number: int) -> pa.Table:
        """The RUBRIC rows of some instructions, without criteria that a round before has settled.

        The calls are the same in every round; after the first one the journal answers them.
        """
        stage, settled = layout.round_rubrics(iteration, number), self._earlier(iteration, number).settled
        work = [_Work(row["id"]) for row in prompts.to_pylist()]
        asked = {row["id"]: (Prompt.of(row).as_text(), row[REFERENCE]) for row in prompts.to_pylist()}

        def call(one: _Work) -> Call:
            return rubric.rubric_call(self._rubricator, *asked[one.id], **self._rest("rubricator", one, stage))

        await self._settle("rubricator", work, call, lambda _, reply: rubric.read_rubric(reply))
        rows = []
        for one in work:
            known = {each.text for each, _ in settled.get(one.id, ())}
            kept = [each for each in one.found or [] if each.text not in known]
            rows.append(one.row() | {"criteria": [{"text": each.text, "points": each.points} for each in kept]})
        return table(rows, RUBRIC)

    async def rewards(
        self, prompts: pa.Table, rubrics: pa.Table, samples: pa.Table, iteration: int, number: int
    ) -> pa.Table:
        """The REWARD rows of SAMPLE rows, in their order; those of an instruction are together."""
        stage = layout.round_rewards(iteration, number)
        groups: dict[str, list[dict[str, Any]]] = {}
        for sample in samples.to_pylist():
            groups.setdefault(sample["id"], []).append(sample)
        criteria = {row["id"]: [Criterion(**one) for one in row["criteria"]] for row in rubrics.to_pylist()}
        reasons = {row["id"]: row["reason"] for row in rubrics.to_pylist()}
        texts = {row["id"]: Prompt.of(row).as_text() for row in prompts.to_pylist()}
        # Equal answers are checked once.
        answers = {name: list(dict.fromkeys(one["text"] for one in group)) for name, group in groups.items()}
        work = {name: _Work(name) for name in groups}
        for name, group in groups.items():
            failed = next((one["reason"] for one in group if one["status"] != OK), None)
            work[name].failure = reasons[name] or (f"student: {failed}" if failed else "")
        open_ = [one for one in work.values() if not one.failure]

        def call(one: _Work) -> Call:
            rest = self._rest("verifier", one, stage)
            return rubric.check_call(self._verifier, texts[one.id], criteria[one.id], answers[one.id], **rest)

        def read(one: _Work, reply: str) -> list[list[bool]] | str:
            return rubric.read_checks(reply, answers[one.id], len(criteria[one.id]))

        await self._settle("verifier", open_, call, read)
        settled = self._earlier(iteration, number).settled
        rows: list[dict[str, Any]] = []
        for name, group in groups.items():
            rows += _rewards(work[name], group, answers[name], criteria[name], settled.get(name, []))
        return table(rows, REWARD)

    def _answered(self, instructions: str, answers: str, kept: str) -> pa.Table:
        rows, given = self._store.read_table(instructions), self._store.read_table(answers)
        statuses = self._store.read_table(kept)["status"].to_pylist()
        if rows["id"].to_pylist() != given["id"].to_pylist():
            raise DataError(f"{answers} does not answer {instructions}")
        whole = rows.append_column(REFERENCE, given["text"])
        return whole.filter(pa.array([status == OK for status in statuses]))

    def _earlier(self, iteration: int, number: int) -> _Earlier:
        """What the rounds before `number` have settled. They are committed, so it is read once in a round."""
        if (iteration, number) not in self._known:
            self._known = {(iteration, number): self._settled_before(iteration, number)}
        return self._known[iteration, number]

    def _settled_before(self, iteration: int, number: int) -> _Earlier:
        reward = self._config.on_policy.reward if self._config.on_policy is not None else RubricRewardConfig()
        found = _Earlier()
        if not isinstance(reward, RubricRewardConfig):
            return found
        for before in range(1, number):
            rubrics, rewards = (
                self._read(folder(iteration, before)) for folder in (layout.round_rubrics, layout.round_rewards)
            )
            met: dict[str, list[list[bool]]] = {}
            for row in rewards.to_pylist():
                if row["status"] == OK:
                    met.setdefault(row["id"], []).append(row["met"])
            for row in rubrics.to_pylist():
                if row["id"] in met:
                    criteria = [Criterion(**one) for one in row["criteria"]]
                    now = rubric.settled(criteria, met[row["id"]], unmet=reward.leave_out == "untelling")
                    found.settled.setdefault(row["id"], []).extend(now)
                    if len(now) == len(criteria):
                        found.spent.add(row["id"])
        return found

    def _read(self, stage: str) -> pa.Table:
        folder = self._store.stage(stage)
        manifest = folder.manifest()
        assert manifest is not None
        return folder.read(manifest["parts"])

    def _rest(self, role: str, one: _Work, stage: str) -> dict[str, Any]:
        config = getattr(self._config, role)
        return {
            "structured": self._config.endpoints[config.endpoint].json_schema,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "seed": rubric.call_seed(self._config.seed, role, one.id, one.attempts),
            "ordinal": one.attempts,
            "stage": stage,
            "batch": config.mode == "batch",
        }

    async def _settle(
        self,
        role: str,
        work: Sequence[_Work],
        call: Callable[[_Work], Call],
        read: Callable[[_Work, str], Any],
    ) -> None:
        """Ask for each of `work` until its reply can be read, or its retries are used up."""
        for _ in range(getattr(self._config, role).parse_retries + 1):
            open_ = [one for one in work if one.found is None and not one.lost]
            if not open_:
                return
            outcomes = await self._endpoints[role].complete([call(one) for one in open_])
            for one, outcome in zip(open_, outcomes, strict=True):
                one.attempts += 1
                if isinstance(outcome, Failure):
                    one.failure, one.lost = f"{role}: {outcome.reason}", True
                    continue
                one.answered.append(outcome)
                found = read(one, outcome.text)
                if isinstance(found, str):
                    one.failure = f"{role}: {found}"
                else:
                    one.found, one.failure = found, ""


@dataclass
class _Work:
    """One instruction on its way to a rubric, or to decisions."""

    id: str
    attempts: int = 0
    found: Any = None
    failure: str = ""
    lost: bool = False
    """The endpoint failed, so asking again is of no use."""
    answered: list[Completion] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Its columns id, status and reason, and what its calls cost."""
        calls = [one.key for one in self.answered]
        status = {"status": QUARANTINED, "reason": self.failure} if self.failure else {"status": OK}
        return {"id": self.id, **status, "calls": calls, **account(self.answered)}


@dataclass
class _Earlier:
    """What the earlier rounds of an iteration tell of its instructions."""

    settled: dict[str, list[tuple[Criterion, bool]]] = field(default_factory=dict)
    """By instruction: the criteria that are not asked about again (`rubric.settled`)."""
    spent: set[str] = field(default_factory=set)
    """The instructions of which all criteria are settled."""


def _rewards(
    one: _Work,
    samples: Sequence[dict[str, Any]],
    answers: Sequence[str],
    criteria: Sequence[Criterion],
    settled: rubric.Decided,
) -> list[dict[str, Any]]:
    rows = [(one.row() if place == 0 else _Work(one.id, failure=one.failure).row()) for place in range(len(samples))]
    rows = [row | {"sample": sample["sample"]} for row, sample in zip(rows, samples, strict=True)]
    if one.failure:
        return rows
    met = [one.found[answers.index(sample["text"])] for sample in samples]
    scores = [rubric.score(each, criteria, settled) for each in met]
    found = zip(rows, met, scores, rubric.advantages(scores), strict=True)
    return [row | {"met": yes, "score": score, "advantage": gained} for row, yes, score, gained in found]


RewarderActor: Any = restartable(Rewarder, at_once=100)
