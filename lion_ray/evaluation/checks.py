"""`lion-ray eval --suite FILE` with checks: answers to a user's own rows, scored without a judge.

Invariants:
- A row without an answer, or that a check cannot score, is counted by its reason and has no score.
- The result file and its rows are written after the last answer; until then everything is in the journal.

A suite is a YAML file (`config.SuiteConfig`); for a run it may also be the rows themselves, with the run's own checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.table import Table

from lion_ray.config import SuiteConfig, check_name
from lion_ray.config.file import load_section
from lion_ray.core.errors import ConfigError, DataError
from lion_ray.core.progress import Progress
from lion_ray.core.records import ANSWER, OK, QUARANTINED, references, table
from lion_ray.data.pools import read_pool, where_is
from lion_ray.data.sources import rows_of
from lion_ray.discrimination.checks import Check, load_checks, unusable
from lion_ray.evaluation.check_scores import checked_rows, counts, describe, nothing_scored
from lion_ray.evaluation.pairwise.answers import Answer, ask_answers
from lion_ray.evaluation.pairwise.questions import OpenQuestion, spread
from lion_ray.evaluation.pairwise.run import target_name
from lion_ray.evaluation.pairwise.table import costs_table
from lion_ray.evaluation.participants import Participant
from lion_ray.evaluation.session import Place, session, utc_now
from lion_ray.models.checkpoints import described_run

SEED = 0
"""Seed of the bootstraps: the same scores give the same intervals."""
ROWS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """The rows to answer, and the checks."""

    suite: str
    """The suite's name in results."""
    rows: pa.Table
    """INSTRUCTION rows."""
    source: str
    """The rows' file or data set, as configured."""
    base_dir: Path
    names: Sequence[str]
    checks: Sequence[Check]
    target: Participant
    limit: int | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class CheckedSuite:
    """The result of a suite."""

    json: dict[str, Any]
    path: str
    """The result file; its rows are beside it."""


def own_suite(
    path: Path,
    target: Participant,
    limit: int | None,
    budget: float | None,
    *,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> CheckPlan:
    """The plan from a suite's YAML file; `temperature` and `max_tokens`, if given, override the file's.

    Raises:
        ConfigError, DataError: the file, its rows or its checks cannot be used, with the place.
    """
    suite = load_section(path, SuiteConfig)
    base_dir = path.resolve().parent
    checks = load_checks(suite.checks, base_dir, f"{path}: checks")
    target = replace(
        target,
        temperature=target.temperature if temperature is not None or suite.temperature is None else suite.temperature,
        top_p=target.top_p if suite.top_p is None else suite.top_p,
        max_tokens=target.max_tokens if max_tokens is not None else suite.max_tokens or target.max_tokens,
    )
    rows = read_pool(suite.rows, base_dir=base_dir, limit=None, on_bad_row="stop").pool
    names = [check_name(one) for one in suite.checks]
    return CheckPlan(_plain(path), rows, suite.rows, base_dir, names, checks, target, limit, budget)


def run_suite(suite: str, target: Participant, limit: int | None, budget: float | None) -> CheckPlan | None:
    """The plan for a file of rows with the target run's checks. Returns None if this does not apply.

    Rows with an id and without a reference are questions for a judge (`questions.read_questions`).

    Raises:
        ConfigError, DataError: as `own_suite`.
    """
    if target.run is None or target.run_config is None or not target.run_config.evaluation.checks:
        return None
    if not suite.lower().endswith(ROWS):
        return None
    first = next(rows_of(suite, Path()), None)
    value = first.value if first is not None and isinstance(first.value, dict) else {}
    if ("id" in value or "question_id" in value) and "reference" not in value:
        return None
    configured = target.run_config.evaluation.checks
    checks = load_checks(configured, described_run(target.run)[1])
    rows = read_pool(suite, base_dir=Path(), limit=None, on_bad_row="stop").pool
    names = [check_name(one) for one in configured]
    return CheckPlan(_plain(Path(suite)), rows, suite, Path(), names, checks, target, limit, budget)


async def check_suite(plan: CheckPlan, place: Place, progress: Progress) -> CheckedSuite:
    """Ask, score, and write the result.

    Raises:
        ConfigError: the target has recorded answers, or the checks can score no row.
        DataError: no answer could be scored.
        LionError: as `session` and `Asked.ask`.
    """
    if plan.target.recorded is not None:
        raise ConfigError("recorded answers cannot be used here: name a run, a model or an endpoint")
    _refuse_unusable(plan, progress)
    ids = zip(plan.rows["id"].to_pylist(), plan.rows["text"].to_pylist(), strict=True)
    every = [OpenQuestion(row, text) for row, text in ids]
    questions = spread(every, plan.limit, lambda one: one.id, lambda _: "")
    chosen = {question.id for question in questions}
    rows = plan.rows.filter(pa.array([one.id in chosen for one in every]))
    part = len(questions) < len(every)
    stem = f"{plan.suite}-{plan.target.label}-checks{f'-limit{plan.limit}' if part else ''}"
    async with session(place, stem, progress, [plan.target], plan.budget) as opened:
        replies = await ask_answers(await opened.endpoint(plan.target), plan.target, questions, "target", stem)
        answers = table((_answer(*one) for one in zip(questions, replies, strict=True)), ANSWER)
        checked = checked_rows(plan.checks, rows, answers)
        figures = describe(checked, plan.names, seed=SEED)
        result: dict[str, Any] = {
            "suite": plan.suite,
            "target": target_name(plan.target),
            "made_at": utc_now(),
            "iteration": plan.target.iteration,
            "of": len(every),
            "cut_off": sum(one.cut_off for one in replies),
            "checks": counts(checked) | {name: figures[name] for name in ("mean", "by_check")},
            "cost": opened.costs(),
        }
        place.store.write_table(place.name(stem, "parquet"), _joined(rows, answers, checked))
        place.store.write_json(path := place.name(stem, "json"), result)
    if figures["mean"] is None:
        why = nothing_scored(checked) or "; ".join(
            f"{count} × {reason}" for reason, count in list(result["checks"]["unanswered"].items())[:3]
        )
        raise DataError(f"none of {len(questions)} answers could be scored: {why} ({place.store.path(path)})")
    return CheckedSuite(result, place.store.path(path))


def check_tables(found: dict[str, Any]) -> list[Table]:
    """A result as tables: the scores and the costs."""
    scores = Table(title=f"{found['suite']}: {found['target']}, scored by checks")
    scores.add_column("check")
    for heading in ("answers", "mean score", "95 % interval"):
        scores.add_column(heading, justify="right")
    for name, one in found["checks"]["by_check"].items():
        scores.add_row(name, *_cells(one))
    scores.add_section()
    scores.add_row("all checks", *_cells(found["checks"]["mean"]))
    return [scores, costs_table(found)]


def check_notes(found: dict[str, Any]) -> list[str]:
    """Notes below the tables, one line each."""
    checks = found["checks"]
    left_out = {**checks["unanswered"], **checks["quarantined"]}
    lines = []
    if left_out:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in left_out.items())
        lines.append(f"not scored: {sum(left_out.values())} of {checks['rows']} ({reasons})")
    if found["cut_off"]:
        lines.append(f"answers that were cut off at their length limit: {found['cut_off']}")
    if checks["rows"] < found["of"]:
        lines.append(f"only {checks['rows']} of the suite's {found['of']} rows were used")
    return lines


def _refuse_unusable(plan: CheckPlan, progress: Progress) -> None:
    """Warn of rows that the checks cannot score. Raises ConfigError if they can score none."""
    rows = zip(plan.rows["id"].to_pylist(), references(plan.rows), strict=True)
    found = [(row, why) for row, reference in rows if (why := unusable(plan.checks, reference)) is not None]
    if not found:
        return
    where = where_is(plan.source, plan.base_dir, found[0][0])
    line = f"{len(found)} of {plan.rows.num_rows} rows cannot be scored, the first at {where} ({found[0][1]})"
    if len(found) == plan.rows.num_rows:
        raise ConfigError(f"{line}; give these rows a suitable `reference`, or remove the check")
    progress.say(f"warning: {line}")


def _answer(question: OpenQuestion, answer: Answer) -> dict[str, Any]:
    return {
        "id": question.id,
        "text": answer.text or "",
        "status": QUARANTINED if answer.text is None else OK,
        "reason": answer.reason,
        "call": answer.call or None,
    }


def _joined(rows: pa.Table, answers: pa.Table, checked: pa.Table) -> pa.Table:
    """Each row with its answer and its scores."""
    columns = {"id": rows["id"], "text": rows["text"], "reference": rows["reference"]}
    columns |= {"answer": answers["text"], "call": answers["call"]}
    return pa.table(columns | {name: checked[name] for name in ("status", "reason", "score", "scores")})


def _cells(one: dict[str, Any] | None) -> tuple[str, str, str]:
    if one is None:
        return "0", "–", "–"
    # Resampling a single row gives no interval.
    interval = f"[{one['low']:.3f}, {one['high']:.3f}]" if one["n"] > 1 else "–"
    return str(one["n"]), f"{one['value']:.3f}", interval


def _plain(path: Path) -> str:
    return path.name.split(".")[0]
