"""`lion-ray eval --suite vicuna80 | user252 | FILE`: answers, verdicts, and the result.

Invariants:
- A question without both answers is not judged, and one without readable scores is not scored; both are counted.
- The result file and its rows are written after the last verdict; until then everything is in the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lion_ray.core.errors import DataError
from lion_ray.core.progress import Progress
from lion_ray.discrimination.quality import PAPER, Relative, Setting, Verdict, summarise
from lion_ray.evaluation.pairwise.answers import NOT_RECORDED, Answer, ask_answers, read_answers
from lion_ray.evaluation.pairwise.questions import OpenQuestion, read_questions, spread, suite_name
from lion_ray.evaluation.pairwise.verdicts import JudgedPair, ask_verdicts
from lion_ray.evaluation.participants import Participant
from lion_ray.evaluation.session import Place, Session, session, utc_now

SEED = 0
"""Seed of the bootstraps: the same verdicts give the same intervals."""

_VERDICT = pa.struct(
    [
        pa.field("setting", pa.int32()),
        pa.field("order", pa.string()),  # which answer comes first
        pa.field("sample", pa.int32()),
        pa.field("reference", pa.float64()),
        pa.field("candidate", pa.float64()),
        pa.field("review", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("call", pa.string()),
    ]
)
ROW = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("candidate", pa.string()),  # its answer
        pa.field("candidate_reason", pa.string()),  # why there is none
        pa.field("candidate_call", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("reference_reason", pa.string()),
        pa.field("reference_call", pa.string()),
        pa.field("outcome", pa.string()),  # win, tie or loss of the candidate; null where it was not scored
        pa.field("verdicts", pa.list_(_VERDICT)),
    ]
)
"""A question with its answers and verdicts, as in the file beside the result."""


@dataclass(frozen=True, slots=True)
class PairwisePlan:
    """What to compare, and how."""

    suite: str
    questions: Path | None
    target: Participant
    reference: Participant
    judge: Participant
    settings: Sequence[Setting]
    limit: int | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a comparison."""

    json: dict[str, Any]
    relative: Relative
    path: str
    """The result file."""


async def compare(plan: PairwisePlan, place: Place, progress: Progress) -> Compared:
    """Ask, judge, and write the result.

    Raises:
        DataError: the questions or recorded answers cannot be used, or no question could be scored.
        LionError: as `session` and `Asked.ask`.
    """
    every = read_questions(plan.suite, plan.questions)
    questions = spread(every, plan.limit, lambda one: one.id, lambda one: one.category)
    name = suite_name(plan.suite)
    participants = (plan.target, plan.reference, plan.judge)
    async with session(
        place, _stem(plan, name, len(questions) < len(every)), progress, participants, plan.budget
    ) as opened:
        candidate = await _answers(opened, plan.target, "target", questions, every)
        reference = await _answers(opened, plan.reference, "reference", questions, every)
        pairs = [
            JudgedPair(question, theirs.text, ours.text)
            for question, theirs, ours in zip(questions, reference, candidate, strict=True)
            if theirs.text is not None and ours.text is not None
        ]
        verdicts: list[Verdict] = []
        if pairs:
            verdicts = await ask_verdicts(
                await opened.endpoint(plan.judge), plan.judge, pairs, plan.settings, opened.stem
            )
        categories = {pair.question.id: pair.question.category for pair in pairs}
        relative = summarise(verdicts, plan.settings, categories, SEED)
        reasons = Counter(
            f"{role}: {answer.reason.split(' (')[0]}"
            for role, answers in (("target", candidate), ("reference", reference))
            for answer in answers
            if answer.reason
        ) + Counter(verdict.reason for verdict in verdicts if verdict.reason)
        result = {
            "suite": name,
            "target": target_name(plan.target),
            "made_at": utc_now(),
            "iteration": plan.target.iteration,
            "reference": plan.reference.label,
            "judge": f"{plan.judge.label}, {plan.judge.template.name if plan.judge.template else ''}",
            "questions": len(questions),
            "of": len(every),
            "judged": len(pairs),
            "unanswered": {
                "target": sum(answer.text is None for answer in candidate),
                "reference": sum(answer.text is None for answer in reference),
            },
            "cut_off": {
                "target": sum(answer.cut_off for answer in candidate),
                "reference": sum(answer.cut_off for answer in reference),
            },
            "reasons": dict(reasons.most_common()),
            **relative.to_json(),
            "cost": opened.costs(),
            "paper": PAPER if name == "vicuna80" else {},
        }
        rows = _rows(questions, candidate, reference, verdicts, relative)
        place.store.write_table(place.name(opened.stem, "parquet"), rows)
        place.store.write_json(path := place.name(opened.stem, "json"), result)
    if relative.quality is None:
        counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        raise DataError(f"none of {len(questions)} questions could be scored: {counted} ({place.store.path(path)})")
    return Compared(result, relative, place.store.path(path))


def target_name(target: Participant) -> str:
    """The target's name; for a run's student, with the run."""
    return f"{target.run_config.run_name}/{target.label}" if target.run_config is not None else target.label


def _stem(plan: PairwisePlan, name: str, part: bool) -> str:
    limited = f"-limit{plan.limit}" if part else ""
    return f"{name}-{plan.target.label}-vs-{plan.reference.label}-by-{plan.judge.label}{limited}"


async def _answers(
    opened: Session,
    participant: Participant,
    role: str,
    questions: Sequence[OpenQuestion],
    every: Sequence[OpenQuestion],
) -> list[Answer]:
    if participant.recorded is None:
        return await ask_answers(await opened.endpoint(participant), participant, questions, role, opened.stem)
    recorded = read_answers(participant.recorded, every)
    return [recorded.get(question.id, Answer(None, NOT_RECORDED)) for question in questions]


def _rows(
    questions: Sequence[OpenQuestion],
    candidate: Sequence[Answer],
    reference: Sequence[Answer],
    verdicts: Sequence[Verdict],
    relative: Relative,
) -> pa.Table:
    by_question: dict[str, list[dict[str, Any]]] = {}
    for verdict in verdicts:
        scores = dict(zip(("reference", "candidate"), verdict.scores or (None, None), strict=True))
        kept = {name: getattr(verdict, name) for name in ("setting", "order", "sample", "review", "reason", "call")}
        by_question.setdefault(verdict.question, []).append(kept | scores)
    rows = [
        {
            "id": question.id,
            "category": question.category or None,
            "text": question.text,
            "candidate": ours.text,
            "candidate_reason": ours.reason,
            "candidate_call": ours.call or None,
            "reference": theirs.text,
            "reference_reason": theirs.reason,
            "reference_call": theirs.call or None,
            "outcome": relative.outcomes.get(question.id),
            "verdicts": by_question.get(question.id, []),
        }
        for question, ours, theirs in zip(questions, candidate, reference, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=ROW)
