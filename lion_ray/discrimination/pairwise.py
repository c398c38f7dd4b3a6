"""Pairwise judging of a teacher's and a student's answer: the calls, and the scores from the replies.

Invariants:
- A verdict without readable scores is retried, then its row is quarantined: it is neither hard nor easy, and no score
  is invented for it (contract: failures are rows).
- A row whose teacher or student answer failed is never judged.
- A question has the same bytes, hence the same journal key, in a run, a resumed run and a calibration.
- With `second_order: near_threshold`, a row far from tau is judged in one order, and its verdict shows which.

This module does not know Ray or how calls are sent: `actors.referee` and `evaluation.calibration.run` do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lion_ray.config import RefereeConfig
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.records import OK, ORDERS, QUARANTINED, Prompt, derive_seed
from lion_ray.core.thoughts import defused
from lion_ray.discrimination.logprob_scores import ALTERNATIVES, weighted_pair
from lion_ray.discrimination.orders import first_order, needs_second
from lion_ray.discrimination.quotes import without_quotes
from lion_ray.discrimination.scores import Pair, combine, in_range, parse_scores
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome
from lion_ray.prompts.messages import Template, load_template, referee_messages

RESAMPLED = 1000
"""Ordinals reserved for each sample of a question; those in between number retries of unreadable verdicts."""

_OF_AN_ANSWER = ("id", "text", "status", "reason")
JUDGED = (("id", "text"), _OF_AN_ANSWER, (*_OF_AN_ANSWER, "version"))
"""The columns that judging needs: of instructions, teacher answers and student answers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one instruction. In calibrations and canaries, `teacher` and `student` are just the two sides."""

    id: str
    instruction: str
    """The user's text; a longer conversation is given turn by turn."""
    teacher: str
    student: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The scores in one reply of the judge."""

    pair: Pair | None
    """(teacher, student) in either order of presentation; None if the reply cannot be used."""
    failure: str = ""
    """The reason for a None."""
    weighted: bool = False


def ask(
    template: Template, instruction: str, answers: tuple[str, str], *, swapped: bool, structured: bool, **rest: Any
) -> Call:
    """The call that asks for two scores; `swapped`: the second of the answers is shown first.

    `structured`: the reply must follow the template's JSON schema, if it has one. `rest`: as Call.
    """
    schema = template.schema if structured else None
    first, second = answers[::-1] if swapped else answers
    messages = referee_messages(template, instruction, first, second, as_json=schema is not None)
    return Call(messages=messages, json_schema=schema, **rest)


def read_scores(completion: Completion, answers: Sequence[str]) -> Pair | str:
    """The scores of the first and second answer, each from 1 to 10, or a short reason that can be counted.

    `answers`: those that the judge was shown; what it quotes of them is not read.
    """
    if ending(completion.finish_reason) is not Ending.COMPLETE and completion.text[-1:].isdigit():
        return "verdict cut off"  # the cut may be inside the last number: a 10 that reads as 1
    pair = parse_scores(without_quotes(completion.text, map(defused, answers)))
    if pair is None:
        return "verdict without readable scores"
    return pair if in_range(pair) else "score outside 1 to 10"


class PairwiseJudge:
    """Builds one referee's calls and reads its replies."""

    def __init__(self, config: RefereeConfig, *, structured: bool, base_dir: Path, seed: int) -> None:
        """`structured`: its endpoint supports a JSON schema.

        Raises:
            ConfigError: the template is unknown, unreadable or cannot be rendered.
        """
        self.config = config
        self._template = load_template(config.prompt, "referee", base_dir)
        self._structured = structured
        self._seed = seed

    def open(
        self, instruction: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any], *, tau: float | None = None
    ) -> Row:
        """A row to be judged: see `Row`."""
        return Row(self, instruction, teacher, student, tau=tau)

    def call(self, comparison: Comparison, order: str, stage: str, *, attempt: int = 0, sample: int = 0) -> Call:
        """The question about `comparison` in one of ORDERS; `sample` numbers intended repetitions."""
        ordinal = sample * RESAMPLED + attempt
        return ask(
            self._template,
            comparison.instruction,
            (comparison.teacher, comparison.student),
            swapped=order != "teacher_first",
            structured=self._structured,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seed=derive_seed(self._seed, "referee", comparison.id, order, ordinal),
            top_logprobs=ALTERNATIVES if self.config.weighted else None,
            ordinal=ordinal,
            role="referee",
            stage=stage,
            batch=self.config.mode == "batch",
        )

    def read(self, comparison: Comparison, order: str, outcome: Outcome) -> Reading:
        """The judge's scores for a comparison in this order."""
        if isinstance(outcome, Failure):
            return Reading(None, f"referee: {outcome.reason}")
        pair = read_scores(outcome, (comparison.teacher, comparison.student))
        if isinstance(pair, str):
            return Reading(None, pair)
        weighted = weighted_pair(outcome.text, outcome.logprobs, pair) if self.config.weighted else None
        found = weighted or pair
        return Reading(found if order == "teacher_first" else found[::-1], weighted=weighted is not None)


class Row:
    """One row on its way to a verdict."""

    def __init__(
        self,
        judge: PairwiseJudge,
        instruction: dict[str, Any],
        teacher: dict[str, Any],
        student: dict[str, Any],
        *,
        tau: float | None = None,
    ) -> None:
        """A row of INSTRUCTION and two of ANSWER. With `tau`, the second order is judged only near it.

        Raises:
            ValueError: an answer belongs to another instruction.
        """
        self.comparison = Comparison(
            instruction["id"], Prompt.of(instruction).as_text(), teacher["text"], student["text"]
        )
        self._judge = judge
        self._tau = tau
        self._version = student["version"]
        self._asked = dict.fromkeys(ORDERS, 0)
        self._readings: dict[str, Reading] = {}
        self._reviews: dict[str, str] = {}
        self._answered: list[Completion] = []
        self._failure = ""
        self._judgeable = True
        for who, answer in (("teacher", teacher), ("student", student)):
            if answer["id"] != self.comparison.id:
                raise ValueError(f"{who}'s answer {answer['id']} is not to instruction {self.comparison.id}")
            if answer["status"] != OK:
                self._judgeable = False
                self._failure = f"{who}: {answer['reason']}"

    def wanted(self) -> list[str]:
        """The orders to judge now: those that are due, have no scores yet and have retries left."""
        if not self._judgeable:
            return []
        often = self._judge.config.parse_retries + 1
        return [order for order in self._due() if self._pair(order) is None and self._asked[order] < often]

    def call(self, order: str, stage: str, *, sample: int = 0) -> Call:
        """The next call for an order."""
        return self._judge.call(self.comparison, order, stage, attempt=self._asked[order], sample=sample)

    def take(self, order: str, outcome: Outcome) -> None:
        """Record the outcome of a call."""
        self._asked[order] += 1
        if isinstance(outcome, Completion):
            self._answered.append(outcome)
            self._reviews[order] = outcome.text
        self._readings[order] = self._judge.read(self.comparison, order, outcome)
        self._failure = self._readings[order].failure or self._failure

    def verdict(self) -> dict[str, Any]:
        """The row in the schema VERDICT."""
        one_order = len(self._due()) == 1 and self._pair(self._due()[0]) is not None
        means = combine(self._pair(ORDERS[0]), self._pair(ORDERS[1]), one_order=one_order)
        weighs = self._judge.config.weighted and self._answered
        row: dict[str, Any] = {
            "id": self.comparison.id,
            "status": OK if means else QUARANTINED,
            "reason": None if means else self._failure,
            "version": self._version,
            "weighted": sum(reading.weighted for reading in self._readings.values()) if weighs else None,
            "calls": [completion.key for completion in self._answered],
        }
        for order in ORDERS:
            pair = self._pair(order)
            row |= {order: pair and list(pair), f"review_{order}": self._reviews.get(order)}
        if means:
            row |= {"teacher_score": means[0], "student_score": means[1]}
        return row | account(self._answered)

    def _pair(self, order: str) -> Pair | None:
        return self._readings[order].pair if order in self._readings else None

    def _due(self) -> Sequence[str]:
        """The orders that the verdict needs, as far as is known."""
        if self._tau is None:
            return ORDERS
        first = first_order(self.comparison.id)
        pair = self._pair(first)
        # If the first verdict could not be read, its distance from tau is unknown, and the row fails.
        near = pair is not None and needs_second(pair, self._tau, self._judge.config.second_order_margin)
        return ORDERS if near else (first,)


def account(answered: Sequence[Completion]) -> dict[str, Any]:
    """Model, endpoint, tokens and cost of the calls, by VERDICT's names; empty if no call was answered."""
    if not answered:
        return {}
    costs = [completion.cost_usd for completion in answered]
    return {
        "model": answered[-1].model,
        "endpoint": answered[-1].endpoint,
        "prompt_tokens": sum(completion.prompt_tokens for completion in answered),
        "completion_tokens": sum(completion.completion_tokens for completion in answered),
        "cost_usd": None if None in costs else sum(cost for cost in costs if cost is not None),
    }
