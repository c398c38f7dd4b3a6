"""A judge's verdicts on pairs of answers, in the settings of an evaluation.

Invariants:
- A verdict without readable scores is retried, then kept without scores: no score is invented.
- Each sample of each order is a separate call with its own ordinal, so none is replayed from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lion_ray.core.records import derive_seed, instruction_id
from lion_ray.discrimination.pairwise import ask, read_scores
from lion_ray.discrimination.quality import REFERENCE_FIRST, Setting, Verdict
from lion_ray.evaluation.endpoint import LazyEndpoint
from lion_ray.evaluation.pairwise.questions import OpenQuestion
from lion_ray.evaluation.participants import Participant
from lion_ray.gateway.calls import Call, Failure, Outcome

ATTEMPT = 1000
"""An attempt's offset in a call's ordinal; larger than any number of samples."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A question and the two answers to compare."""

    question: OpenQuestion
    reference: str
    candidate: str


async def ask_verdicts(
    endpoint: LazyEndpoint, judge: Participant, pairs: Sequence[JudgedPair], settings: Sequence[Setting], stage: str
) -> list[Verdict]:
    """A verdict on every pair, for each setting, order and sample. Raises as `LazyEndpoint.ask`.

    Args:
        judge: a participant with a referee's template.
    """
    slots = [
        (pair, setting, order, sample)
        for setting in settings
        for pair in pairs
        for order in setting.orders
        for sample in range(setting.samples)
    ]
    verdicts: dict[int, Verdict] = {}
    left = list(range(len(slots)))
    for attempt in range(judge.retries + 1):
        if not left:
            break
        calls = [_call(endpoint, judge, *slots[place], attempt, stage) for place in left]
        retry = ", retrying unreadable verdicts" if attempt else ""
        for place, outcome in zip(left, await endpoint.ask(calls, f"judge: {judge.label}{retry}"), strict=True):
            pair, setting, order, sample = slots[place]
            verdicts[place] = _verdict(pair, setting.number, order, sample, outcome)
        # Failed calls were already retried by the gateway.
        left = [place for place in left if verdicts[place].scores is None and verdicts[place].call]
    return [verdicts[place] for place in range(len(slots))]


def _call(
    endpoint: LazyEndpoint,
    judge: Participant,
    pair: JudgedPair,
    setting: Setting,
    order: str,
    sample: int,
    attempt: int,
    stage: str,
) -> Call:
    assert judge.template is not None
    text = pair.question.text
    return ask(
        judge.template,
        text,
        (pair.reference, pair.candidate),
        swapped=order != REFERENCE_FIRST,
        structured=endpoint.config.json_schema,
        max_tokens=judge.max_tokens,
        temperature=setting.temperature,
        seed=derive_seed("evaluation", "judge", instruction_id(text), order, sample, attempt),
        ordinal=sample + ATTEMPT * attempt,
        role="judge",
        stage=stage,
    )


def _verdict(pair: JudgedPair, setting: int, order: str, sample: int, outcome: Outcome) -> Verdict:
    question = pair.question.id
    if isinstance(outcome, Failure):
        return Verdict(question, setting, order, sample, None, f"judge: {outcome.reason}")
    read = read_scores(outcome, (pair.reference, pair.candidate))
    if isinstance(read, str):
        return Verdict(question, setting, order, sample, None, read, outcome.text, outcome.key)
    scores = read if order == REFERENCE_FIRST else read[::-1]
    return Verdict(question, setting, order, sample, scores, None, outcome.text, outcome.key)
