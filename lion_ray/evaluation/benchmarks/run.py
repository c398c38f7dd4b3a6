"""`lion-ray eval --suite bbh | agieval`: multiple-choice questions to a model, zero-shot, by the paper's protocol.

Invariants:
- The prompt is the paper's, as one user message in the model's own prompt format, at temperature 0.
- `lion-ray eval score` computes the same result from the written outputs, without a model.
- A question whose call failed has no output: it counts as unanswered, neither right nor wrong.

Letters are read from the text (`published`, `standing`: see `protocol`), or from the log-probabilities of the first
token (`logprobs`): the likeliest of the question's letters, pooling spellings such as ``A``, `` A`` and ``(A``.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from lion_ray.core.errors import DataError, EndpointError
from lion_ray.core.progress import Progress
from lion_ray.evaluation.benchmarks.protocol import Question
from lion_ray.evaluation.benchmarks.recorded import SuiteScore, score
from lion_ray.evaluation.endpoint import LazyEndpoint
from lion_ray.evaluation.pairwise.questions import each
from lion_ray.evaluation.pairwise.run import target_name
from lion_ray.evaluation.participants import Participant
from lion_ray.evaluation.session import Place, session, utc_now
from lion_ray.gateway.calls import Call, Completion, Failure, Outcome

LOGPROBS = "logprobs"
TOP_LOGPROBS = 20
"""The maximum number of alternatives in OpenAI's API."""
MAX_TOKENS = 64
"""Enough for a letter and the words that a chat model adds."""

_LETTER = re.compile(r"\W*([A-Z])\W*")


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """What to ask, and how."""

    suite: str
    questions: Sequence[Question]
    target: Participant
    letters: str
    """published, standing or logprobs."""
    limit: int | None = None
    """Maximum questions per task."""
    max_tokens: int = MAX_TOKENS
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The result of a suite."""

    json: dict[str, Any]
    score: SuiteScore
    path: str
    """The result file; its outputs are beside it."""


async def choose(plan: ChoicePlan, place: Place, progress: Progress) -> Chosen:
    """Ask, score, and write the result.

    Raises:
        DataError: no question was answered.
        EndpointError: log-probabilities are needed, but the endpoint returns none.
        LionError: as `session` and `LazyEndpoint.ask`.
    """
    questions = each(plan.questions, plan.limit, lambda one: one.id, lambda one: one.task)
    limited = f"-limit{plan.limit}" if len(questions) < len(plan.questions) else ""
    stem = f"{plan.suite}-{plan.target.label}-{plan.letters}{limited}"
    async with session(place, stem, progress, [plan.target], plan.budget) as opened:
        endpoint = await opened.endpoint(plan.target)
        outcomes = await ask_choices(endpoint, questions, plan.letters, plan.max_tokens, stem)
        reasons = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Failure))
        outputs = written(questions, outcomes, plan.letters)
        scored = score(plan.suite, plan.questions, outputs, plan.letters)
        extractions = [LOGPROBS] if plan.letters == LOGPROBS else ["published", "standing"]
        means = {name: score(plan.suite, plan.questions, outputs, name).mean for name in extractions}
        result = {
            **scored.to_json(),
            "suite": plan.suite,
            "target": target_name(plan.target),
            "made_at": utc_now(),
            "iteration": plan.target.iteration,
            "asked": len(questions),
            "means": means,
            "unanswered": len(questions) - len(outputs),
            "reasons": dict(reasons.most_common()),
            "cost": opened.costs(),
        }
        by_id = {question.id: outcome for question, outcome in zip(questions, outcomes, strict=True)}
        lines = (_line(one, outputs[one.id], by_id[one.id]) for one in questions if one.id in outputs)
        place.store.write_bytes(place.name(stem, "jsonl"), b"".join(lines))
        place.store.write_json(path := place.name(stem, "json"), result)
    if not outputs:
        counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        raise DataError(f"not one of {len(questions)} questions was answered: {counted}")
    return Chosen(result, scored, place.store.path(path))


async def ask_choices(
    endpoint: LazyEndpoint, questions: Sequence[Question], letters: str, max_tokens: int, stage: str
) -> list[Outcome]:
    """Each question's outcome. Raises EndpointError if log-probabilities are needed and missing."""
    calls = [
        Call(
            messages=({"role": "user", "content": question.prompt()},),
            max_tokens=1 if letters == LOGPROBS else max_tokens,
            temperature=0.0,
            seed=0,
            top_logprobs=TOP_LOGPROBS if letters == LOGPROBS else None,
            role="target",
            stage=stage,
        )
        for question in questions
    ]
    outcomes = await endpoint.ask(calls, f"{len(questions)} questions")
    if letters == LOGPROBS:
        answered = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        if answered and all(not outcome.logprobs for outcome in answered):
            raise EndpointError(
                f"endpoint {endpoint.name} returns no log-probabilities; use --letters published or standing"
            )
    return outcomes


def written(questions: Sequence[Question], outcomes: Sequence[Outcome], letters: str) -> dict[str, str]:
    """Each answered question's output to record, by id: its text, or the likeliest letter in parentheses."""
    outputs = {}
    for question, outcome in zip(questions, outcomes, strict=True):
        if isinstance(outcome, Completion):
            outputs[question.id] = outcome.text
            if letters == LOGPROBS:
                letter = likeliest_letter(outcome, question.letters)
                outputs[question.id] = "" if letter is None else f"({letter})"
    return outputs


def likeliest_letter(completion: Completion, letters: str) -> str | None:
    """The most probable of `letters` as the first token, all spellings of a letter together.

    None if none of them is among the first token's alternatives, or there are no log-probabilities.
    """
    first = next((choice for choice in completion.logprobs or () if choice.offset == 0), None)
    if first is None:
        return None
    spellings: dict[str, list[float]] = defaultdict(list)
    for token, logprob in first.alternatives:
        found = _LETTER.fullmatch(token)
        if found and found[1] in letters and not math.isnan(logprob):
            spellings[found[1]].append(logprob)
    pooled = {letter: _log_sum_exp(values) for letter, values in spellings.items()}
    # The first letter wins a tie, so that the result is deterministic.
    return min(pooled, key=lambda letter: (-pooled[letter], letter)) if pooled else None


def _log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    return highest if math.isinf(highest) else highest + math.log(sum(math.exp(value - highest) for value in values))


def _line(question: Question, output: str, outcome: Outcome) -> bytes:
    row: dict[str, Any] = {"id": question.id, "output": output, "answer": question.answer}
    if isinstance(outcome, Completion):
        row |= {"said": outcome.text, "finish_reason": outcome.finish_reason, "call": outcome.key}
    return orjson.dumps(row) + b"\n"
