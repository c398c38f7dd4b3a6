"""How a judge is plugged in: what it is asked about two answers, and what it makes of the replies.

Invariants:
- A judge's object holds no state of a row: rows of one judge are open side by side, and asked again after a crash.
- A question has the same bytes, hence the same journal key, whenever it is asked.
- No verdict is made up: a judge that can make nothing of the replies says why, and the row is asked again, then
  quarantined.

The pairwise judge (`pairwise`) and a user's own (`OwnJudge`) open rows for whoever carries the calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from lion_ray.config import RefereeConfig
from lion_ray.config.plugins import Own
from lion_ray.core.errors import ConfigError
from lion_ray.core.plugins import asked, make
from lion_ray.core.records import OK, QUARANTINED, Prompt, derive_seed
from lion_ray.discrimination.pairwise import RESAMPLED, Comparison, PairwiseJudge, account
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome

KEY = "referee.judge.import_path"


@dataclass(frozen=True, slots=True)
class Question:
    """One call that a judge wants made."""

    messages: Sequence[Mapping[str, str]]
    """role and content, as chat completions take them; texts of models belong in fences (`prompts.messages.fence`)."""
    json_schema: Mapping[str, Any] | None = None
    """What the reply must fit, where the endpoint can be held to it (`endpoints.NAME.json_schema`)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge makes of one comparison."""

    gap: float
    """By how much the teacher's answer is better, in the judge's own points; negative where the student's is."""
    hard: bool | None = None
    """Whether the student lags here; None: where the gap is at least `discrimination.tau`."""
    teacher_score: float | None = None
    """Above 0, where the judge scores; relative quality rests on these."""
    student_score: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping, as JSON."""


class Judge(Protocol):
    """A judge of the user's own. `contract.JudgeContract` tests what is said here."""

    def questions(self, comparison: Comparison) -> Sequence[Question]:
        """The calls to make about two answers to one instruction; one at least."""

    def read(self, comparison: Comparison, replies: Sequence[str]) -> Judgement | str:
        """The verdict from the replies, in the order of the questions; or why there is none, in countable words."""


class JudgedRow(Protocol):
    """One row on its way to a verdict."""

    def wanted(self) -> Sequence[str]:
        """Names of the calls to make now; none where the row is done."""

    def call(self, name: str, stage: str, *, sample: int = 0) -> Call:
        """The call to make for a name; `sample` tells wanted repetitions from one another."""

    def take(self, name: str, outcome: Outcome) -> None:
        """What became of it."""

    def verdict(self) -> dict[str, Any]:
        """The row as VERDICT has it, or OWN_VERDICT."""


class OwnJudge:
    """A user's judge, asked by this project's rules."""

    def __init__(self, config: RefereeConfig, judge: Judge, *, structured: bool, seed: int) -> None:
        self.config = config
        self.judge = judge
        self.structured = structured
        self.seed = seed

    def open(
        self, instruction: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any], *, tau: float | None = None
    ) -> JudgedRow:
        return _OwnRow(self, instruction, teacher, student)


class _OwnRow:
    def __init__(
        self, judge: OwnJudge, instruction: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any]
    ) -> None:
        self._judge = judge
        self._version = student["version"]
        self._attempt = 0
        self._replies: dict[str, str] = {}
        self._answered: list[Completion] = []
        self._found: Judgement | None = None
        self._questions: list[Question] = []
        answers = (("teacher", teacher), ("student", student))
        self._failure = next((f"{who}: {one['reason']}" for who, one in answers if one["status"] != OK), "")
        self._over = bool(self._failure)
        self._comparison = Comparison(
            instruction["id"], Prompt.of(instruction).as_text(), teacher["text"], student["text"]
        )
        if not self._over:
            self._questions = list(asked(judge.judge.questions, self._comparison, key=KEY))
            if not self._questions:
                raise ConfigError(f"{KEY}: questions() returned none; wanted one at least")

    def wanted(self) -> list[str]:
        if self._over:
            return []
        return [str(number) for number in range(len(self._questions)) if str(number) not in self._replies]

    def call(self, name: str, stage: str, *, sample: int = 0) -> Call:
        config, question = self._judge.config, self._questions[int(name)]
        ordinal = sample * RESAMPLED + self._attempt
        return Call(
            messages=tuple({"role": str(one["role"]), "content": str(one["content"])} for one in question.messages),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=derive_seed(self._judge.seed, "referee", self._comparison.id, name, ordinal),
            json_schema=dict(question.json_schema) if question.json_schema and self._judge.structured else None,
            ordinal=ordinal,
            role="referee",
            stage=stage,
            batch=config.mode == "batch",
        )

    def take(self, name: str, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._failure, self._over = f"referee: {outcome.reason}", True
            return
        self._answered.append(outcome)
        self._replies[name] = outcome.text
        if self.wanted():
            return
        replies = [self._replies[str(number)] for number in range(len(self._questions))]
        found = asked(self._judge.judge.read, self._comparison, replies, key=KEY)
        if isinstance(found, Judgement):
            self._found, self._over = found, True
        elif isinstance(found, str) and found.strip():
            self._failure = found
            self._over = self._attempt >= self._judge.config.parse_retries
            self._attempt += 1
            self._replies = self._replies if self._over else {}
        else:
            raise ConfigError(f"{KEY}: read() returned {type(found).__name__}; wanted a Judgement, or why not as text")

    def verdict(self) -> dict[str, Any]:
        found = self._found
        row: dict[str, Any] = {
            "id": self._comparison.id,
            "status": QUARANTINED if found is None else OK,
            "reason": self._failure if found is None else None,
            "version": self._version,
            "calls": [completion.key for completion in self._answered],
        }
        if found is not None:
            row |= {
                "gap": float(found.gap),
                "hard": found.hard,
                "teacher_score": found.teacher_score,
                "student_score": found.student_score,
                "detail": json.dumps(dict(found.detail), ensure_ascii=False, sort_keys=True) if found.detail else None,
            }
        return row | account(self._answered)


def load_judge(config: RefereeConfig, *, structured: bool, base_dir: Path, seed: int) -> PairwiseJudge | OwnJudge:
    """The judge that a configuration names; `structured`: its endpoint can be held to a JSON schema.

    Raises ConfigError where the template cannot be used, or the user's own judge cannot be imported or made.
    """
    if isinstance(config.judge, Own):
        own = make(config.judge.import_path, config.judge.options, base_dir, KEY, "questions", "read")
        return OwnJudge(config, cast(Judge, own), structured=structured, seed=seed)
    return PairwiseJudge(config, structured=structured, base_dir=base_dir, seed=seed)
