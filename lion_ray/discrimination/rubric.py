"""Rubrics: weighted yes/no criteria for an instruction, and which of them each of the student's answers meets.

Invariants:
- A rubric depends on the instruction and the teacher's answer alone, so its call has the same journal key in every
  round, run and student: it is bought once.
- Only the structure of a reply counts, never the text of its strings: an answer that is quoted cannot decide anything.
- No decision is invented: a reply that does not decide every criterion of every answer is retried, then given up.
- A criterion that all or none of a group's answers meet tells them apart by nothing; it is counted, and later rounds
  may take it as decided without asking (`settled`). It stays in the score, so that an answer gets the same in each.

Source: ROPD (arXiv 2605.07396): points from 1 to 5, score = points met / points, advantage = score - the group's mean.
This module knows neither Ray nor how calls are sent (`actors.rewarder`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lion_ray.core.records import OK, derive_seed
from lion_ray.core.thoughts import defused, without_thoughts
from lion_ray.discrimination.quotes import without_quotes
from lion_ray.gateway.calls import Call
from lion_ray.prompts.messages import Template, rubricator_messages, verifier_messages

FEWEST, MOST = 1, 12
"""Criteria in a rubric; the prompt asks for at least 4."""
LONGEST = 400
"""Characters of a criterion."""
MOST_STARTS = 50
"""Possible starts of JSON in a reply that are tried: each may take time linear in the text."""

NO_RUBRIC = "reply without a readable rubric"
NO_DECISION = "reply that does not decide every criterion"


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question about an answer, and its weight."""

    text: str
    points: int
    """1 to 5."""


def rubric_call(template: Template, instruction: str, reference: str, *, structured: bool, **rest: Any) -> Call:
    """The call that writes a rubric. `structured`: the endpoint enforces the template's schema. `rest`: as Call."""
    schema = template.schema if structured else None
    messages = rubricator_messages(template, instruction, reference, as_json=schema is not None)
    return Call(messages=messages, json_schema=schema, role="rubricator", **rest)


def check_call(
    template: Template,
    instruction: str,
    criteria: Sequence[Criterion],
    answers: Sequence[str],
    *,
    structured: bool,
    **rest: Any,
) -> Call:
    """The call that checks all answers against all criteria."""
    schema = template.schema if structured else None
    texts = [one.text for one in criteria]
    messages = verifier_messages(template, instruction, texts, answers, as_json=schema is not None)
    return Call(messages=messages, json_schema=schema, role="verifier", **rest)


def call_seed(seed: int, role: str, row: str, attempt: int) -> int:
    """The seed of a call: it depends on the instruction and the attempt, not on the round."""
    return derive_seed(seed, role, row, attempt)


def read_rubric(reply: str) -> list[Criterion] | str:
    """The criteria in a reply, or a short reason that can be counted."""
    return _only(map(_criteria, _objects(reply))) or NO_RUBRIC


def read_checks(reply: str, answers: Sequence[str], criteria: int) -> list[list[bool]] | str:
    """For each answer, whether it meets each criterion; or a short reason that can be counted.

    `answers`: those that the verifier was shown; what it quotes of them is not read.
    """
    plain = without_quotes(reply, [defused(answer) for answer in answers])
    return _only(_checks(value, len(answers), criteria) for value in _objects(plain)) or NO_DECISION


Decided = Sequence[tuple[Criterion, bool]]
"""Criteria that are not asked about any more, and whether all answers met them when they were."""


def score(met: Sequence[bool], criteria: Sequence[Criterion], settled: Decided = ()) -> float:
    """The share of the points that an answer gets, 0 to 1."""
    decided = [*zip(criteria, met, strict=True), *settled]
    return sum(one.points for one, yes in decided if yes) / sum(one.points for one, _ in decided)


def advantages(scores: Sequence[float]) -> list[float]:
    """Each score minus the group's mean; not divided by the deviation, which would favour groups that hardly differ."""
    mean = sum(scores) / len(scores)
    return [one - mean for one in scores]


def telling(met: Sequence[Sequence[bool]]) -> list[bool]:
    """For each criterion, whether some of the answers meet it and some do not."""
    return [len(set(column)) > 1 for column in zip(*met, strict=True)]


def settled(criteria: Sequence[Criterion], met: Sequence[Sequence[bool]], *, unmet: bool) -> Decided:
    """The criteria that all of a group's answers meet; with `unmet` also those that none of them meets."""
    columns = zip(criteria, map(set, zip(*met, strict=True)), strict=True)
    return [(one, True in said) for one, said in columns if len(said) == 1 and (unmet or True in said)]


def signal(rewards: pa.Table) -> dict[str, Any]:
    """What REWARD rows tell: the mean score, and how much of them there is to learn from."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rewards.to_pylist():
        if row["status"] == OK:
            groups.setdefault(row["id"], []).append(row)
    rows = [row for group in groups.values() for row in group]
    told = [yes for group in groups.values() for yes in telling([row["met"] or () for row in group])]
    return {
        "instructions": len(groups),
        "answers": len(rows),
        "answers_learned": sum(row["advantage"] != 0 for row in rows),
        "reward": sum(row["score"] for row in rows) / len(rows) if rows else None,
        "criteria": len(told),
        "criteria_untelling": told.count(False),
    }


def _only(found: Iterable[list[Any] | None]) -> list[Any] | None:
    """What the objects of a reply say, if they do not contradict each other."""
    said = [one for one in found if one is not None]
    return said[0] if said and all(one == said[0] for one in said) else None


def _criteria(value: dict[str, Any]) -> list[Criterion] | None:
    listed = value.get("criteria")
    if not isinstance(listed, list) or not FEWEST <= len(listed) <= MOST:
        return None
    found = [one for one in map(_criterion, listed) if one is not None]
    return found if len({one.text for one in found}) == len(listed) else None


def _checks(value: dict[str, Any], answers: int, criteria: int) -> list[list[bool]] | None:
    listed = value.get("answers")
    if not isinstance(listed, list) or len(listed) != answers:
        return None
    rows = []
    for number, one in enumerate(listed, 1):
        met = one.get("met") if isinstance(one, dict) and one.get("answer", number) == number else one
        decided = [_decision(each) for each in met] if isinstance(met, list) else []
        if len(decided) != criteria or None in decided:
            return None
        rows.append([bool(each) for each in decided])
    return rows


def _criterion(value: Any) -> Criterion | None:
    if not isinstance(value, dict):
        return None
    text, points = value.get("criterion"), value.get("points")
    if not isinstance(text, str) or not isinstance(points, int | float) or isinstance(points, bool):
        return None
    text = " ".join(text.split())
    return Criterion(text, int(points)) if 0 < len(text) <= LONGEST and points in (1, 2, 3, 4, 5) else None


def _decision(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return bool(value) if value in (0, 1) else None
    said = value.strip().lower() if isinstance(value, str) else ""
    return True if said in ("yes", "true", "met") else False if said in ("no", "false", "not met") else None


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply that are in no other, except in the model's thoughts."""
    text, end = without_thoughts(reply), 0
    for start in [match.start() for match in re.finditer(r"\{(?=\s*\")", text)][:MOST_STARTS]:
        if start < end:
            continue
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        yield value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_unique)
