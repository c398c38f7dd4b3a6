"""The judge interface: the questions about two answers, and the verdict from the replies.

Invariants:
- A judge object keeps no state of a row: many rows are open at once, and are asked again after a crash.
- A question always has the same bytes, hence the same journal key.
- No verdict is invented: if a judge cannot use the replies it returns a reason; the row is retried, then quarantined.

The pairwise judge (`pairwise`) and a user's own (`OwnJudge`) open rows; the caller sends the calls.
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
from lion_ray.core.plugins import call_user_code, make
from lion_ray.core.records import OK, QUARANTINED, Prompt, derive_seed
from lion_ray.discrimination.pairwise import RESAMPLED, Comparison, PairwiseJudge, account
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome

KEY = "referee.judge.import_path"


@dataclass(frozen=True, slots=True)
class Question:
    """One call that a judge requests."""

    messages: Sequence[Mapping[str, str]]
    """role and content, as in chat completions. Put models' texts in fences (`prompts.messages.fence`)."""
    json_schema: Mapping[str, Any] | None = None
    """Schema of the reply, if the endpoint supports structured output (`endpoints.NAME.json_schema`)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's verdict on one comparison."""

    gap: float
    """How much better the teacher's answer is, in the judge's own points; negative if the student's is better."""
    hard: bool | None = None
    """Whether the row is hard; None: hard if the gap is at least `discrimination.tau`."""
    teacher_score: float | None = None
    """Greater than 0, if the judge gives scores; relative quality is computed from these."""
    student_score: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Other data to keep, as JSON."""


class Judge(Protocol):
    """A user's judge. `contract.JudgeContract` tests these rules."""

    def questions(self, comparison: Comparison) -> Sequence[Question]:
        """The calls to make about two answers to one instruction; at least one."""

    def read(self, comparison: Comparison, replies: Sequence[str]) -> Judgement | str:
        """The verdict from the replies (in the order of the questions), or a short reason that can be counted."""


class JudgedRow(Protocol):
    """One row on its way to a verdict."""

    def wanted(self) -> Sequence[str]:
        """Names of the calls to make now; empty if the row is done."""

    def call(self, name: str, stage: str, *, sample: int = 0) -> Call:
        """The call for a name; `sample` numbers intended repetitions."""

    def take(self, name: str, outcome: Outcome) -> None:
        """Record the outcome of a call."""

    def verdict(self) -> dict[str, Any]:
        """The row in the schema VERDICT or OWN_VERDICT."""


class OwnJudge:
    """Runs a user's judge with this project's retry and quarantine rules."""

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
            self._questions = list(call_user_code(judge.judge.questions, self._comparison, key=KEY))
            if not self._questions:
                raise ConfigError(f"{KEY}: questions() returned none; return at least one")

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
        found = call_user_code(self._judge.judge.read, self._comparison, replies, key=KEY)
        if isinstance(found, Judgement):
            self._found, self._over = found, True
        elif isinstance(found, str) and found.strip():
            self._failure = found
            self._over = self._attempt >= self._judge.config.parse_retries
            self._attempt += 1
            self._replies = self._replies if self._over else {}
        else:
            raise ConfigError(
                f"{KEY}: read() returned {type(found).__name__}; expected a Judgement or a reason as text"
            )

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
    """The judge that a configuration names. `structured`: its endpoint supports a JSON schema.

    Raises ConfigError if the template cannot be used, or a user's judge cannot be imported or constructed.
    """
    if isinstance(config.judge, Own):
        own = make(config.judge.import_path, config.judge.options, base_dir, KEY, "questions", "read")
        return OwnJudge(config, cast(Judge, own), structured=structured, seed=seed)
    return PairwiseJudge(config, structured=structured, base_dir=base_dir, seed=seed)
