"""Answers to open questions: recorded ones, or an endpoint's.

Invariants:
- An answer belongs to the question with its id; an unknown or duplicate recorded id is an error.
- A missing answer is never replaced, and its reason is kept.
- Two questions of equal text send equal requests, which are sent once; they stay two rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lion_ray.core.errors import DataError
from lion_ray.core.finish_reason import Ending, ending
from lion_ray.core.records import derive_seed, instruction_id
from lion_ray.core.thoughts import without_thoughts
from lion_ray.data.sources import rows_of
from lion_ray.evaluation.endpoint import LazyEndpoint
from lion_ray.evaluation.pairwise.questions import OpenQuestion, id_of
from lion_ray.evaluation.participants import Participant
from lion_ray.gateway.calls import Call, Failure, Outcome, answer_text, refusal

NOT_RECORDED = "not among the recorded answers"


@dataclass(frozen=True, slots=True)
class Answer:
    """A participant's answer to a question."""

    text: str | None
    """None if there is no answer."""
    reason: str | None = None
    """The reason for a None."""
    cut_off: bool = False
    call: str = ""
    """The journal's key."""


def read_answers(path: Path, known: Sequence[OpenQuestion]) -> dict[str, Answer]:
    """Recorded answers by question id, from rows with an ``id`` (or ``question_id``) and a ``text``.

    Args:
        known: all questions of the suite, including those not used now.

    Raises:
        DataError: a row is invalid, its id is a duplicate or unknown; with the file and the line.
    """
    ids = {question.id for question in known}
    answers: dict[str, Answer] = {}
    for row in rows_of(str(path), Path()):
        one, text = id_of(row), row.value.get("text")
        if not isinstance(text, str):
            raise DataError(f'{row.where}: not {{"id": …, "text": …}}: text must be a string')
        if one in answers:
            raise DataError(f"{row.where}: duplicate id {one}")
        if one not in ids:
            raise DataError(f"{row.where}: the suite has no question with id {one}")
        answer = without_thoughts(text)
        answers[one] = Answer(answer) if answer.strip() else Answer(None, "empty answer")
    return answers


async def ask_answers(
    endpoint: LazyEndpoint, participant: Participant, questions: Sequence[OpenQuestion], role: str, stage: str
) -> list[Answer]:
    """The participant's answers, in the questions' order. Raises as `LazyEndpoint.ask`."""
    calls = [
        Call(
            messages=participant.messages(question.text),
            max_tokens=participant.max_tokens,
            temperature=participant.temperature,
            top_p=participant.top_p,
            # From the text, not the id, so that equal requests stay equal.
            seed=derive_seed("evaluation", instruction_id(question.text)),
            role=role,
            stage=stage,
        )
        for question in questions
    ]
    return [_answer(outcome) for outcome in await endpoint.ask(calls, f"{role}: {participant.label} answers")]


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, Failure):
        return Answer(None, f"{outcome.reason} ({outcome.detail})" if outcome.detail else outcome.reason)
    refused = refusal(outcome)
    cut_off = ending(outcome.finish_reason) is Ending.CUT
    return Answer(None if refused else answer_text(outcome), refused, cut_off, outcome.key)
