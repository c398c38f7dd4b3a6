"""The page: sections as HTML.

Invariants: see the package. The template escapes every value; only drawings are markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lion_ray.analysis.examples import HOW
from lion_ray.core import layout
from lion_ray.core.iteration_result import DASH
from lion_ray.core.store import RunStore
from lion_ray.core.terminal import harmless
from lion_ray.pipeline.stages.fine_tuning import FineTuning
from lion_ray.report import conduct, outcome
from lion_ray.report.benchmarks import benchmarks
from lion_ray.report.blocks import Section
from lion_ray.report.checked import checks, example_texts
from lion_ray.report.facts import Facts, HardRow, read_facts
from lion_ray.report.learning import learning
from lion_ray.report.words import brief, clip, count, decimal, dollars, duration, percent, without_secrets

NAME = layout.REPORT
"""File name in the run folder."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str


def write_report(store: RunStore) -> None:
    """Write the current report of a run into its folder, as ``report.html``.

    Raises:
        InfrastructureError: the storage failed, or a file of the run is damaged.
    """
    store.write_bytes(NAME, render(store).encode())


def render(store: RunStore) -> str:
    """The current report of a run as one HTML document. Raises InfrastructureError like `write_report`."""
    facts = read_facts(store)
    style = files(__package__).joinpath("templates/report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    sections: list[Section | None] = [
        outcome.better(facts),
        checks(facts),
        outcome.scatter(facts),
        outcome.flows(facts),
        learning(facts),
        benchmarks(facts),
        conduct.judge(facts),
        conduct.time_line(facts),
        conduct.spending(facts),
    ]
    return _template().render(
        facts=facts,
        style=Markup(style),  # a file of this package
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        subtitle=_subtitle(facts),
        tiles=tiles(facts),
        overview=outcome.by_iteration(facts),
        sections=[section for section in sections if section is not None],
        examples=[example_texts(one) for one in facts.examples],
        examples_how=HOW,
        hardest=[_hard_row(row) for row in facts.hardest],
        unused=conduct.unused(facts),
        config=yaml.safe_dump(without_secrets(facts.config), sort_keys=False, allow_unicode=True, width=100),
    )


def tiles(facts: Facts) -> Sequence[Tile]:
    """Results and cost in six numbers."""
    return [_quality(facts), _loss(facts), _cost(facts), *_usage(facts)]


def _quality(facts: Facts) -> Tile:
    heldout = [(one.iteration, one.quality_heldout) for one in facts.results if one.quality_heldout]
    cache = [(one.iteration, one.quality_cache) for one in facts.results if one.quality_cache]
    known = heldout or cache
    if not known:
        return Tile("relative quality", DASH, "not judged yet")
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    value = " → ".join(percent(quality["ratio"]) for _, quality in ends)
    ranges = "; ".join(f"iteration {k}: {percent(q['low'])} to {percent(q['high'])}" for k, q in ends)
    later = "" if len(ends) > 1 else "; later ones are not judged yet"
    return Tile(
        "relative quality", value, f"on {'held-out' if heldout else 'the Cache Pool'}, 95 % interval: {ranges}{later}"
    )


def _loss(facts: Facts) -> Tile:
    before = next((one.loss_before for one in facts.results if one.loss_before is not None), None)
    after = [(one.iteration, one.loss_after) for one in facts.results if one.loss_after is not None]
    if not after:
        return Tile("held-out loss", DASH, "no fine-tuning is finished yet, or there is no held-out set")
    return Tile(
        "held-out loss",
        f"{decimal(before)} → {decimal(after[-1][1])}",
        f"nats per token, after iteration {after[-1][0]}",
    )


def _cost(facts: Facts) -> Tile:
    spending = facts.status.spending
    unpriced = [role for role, known in conduct.priced_roles(facts).items() if not known]
    if not spending and not facts.status.uncertain and len(unpriced) < 3:
        return Tile("spent", DASH, "the journal has no calls of this run")
    usd = sum(one["usd"] for one in spending)
    if len(unpriced) == 3 and not usd:
        return Tile("spent", DASH, "no endpoint has prices configured")
    note = f"without {', '.join(unpriced)}: no prices" if unpriced else "US dollars, from the journal"
    if uncertain := sum(one["usd"] for one in facts.status.uncertain):
        note += f"; another {dollars(uncertain)} uncertain"
    return Tile("spent", dollars(usd), note)


def _usage(facts: Facts) -> list[Tile]:
    spending = facts.status.spending
    if spending:
        kind, note = "paid ", "by teacher, referee and generator"
    else:
        kind, note = "", "of finished stages; the journal does not say which were paid for"
    calls, prompt, completion = facts.status.used()
    # Without a recorded call, it is unknown whether none was made.
    known_calls, known_tokens = calls or None, (prompt + completion) or None
    split = (
        f"{brief(prompt)} in prompts, {brief(completion)} in completions"
        if known_tokens
        else "no stage is finished yet"
    )
    if facts.active_s is not None:
        time = Tile("active time", duration(facts.active_s), "with at least one stage running")
    elif facts.untimed:
        total = sum(seconds for _, seconds in facts.untimed) + sum(span.seconds for span in facts.spans)
        time = Tile("active time", duration(total), "sum over the stages; some ran in parallel")
    else:
        time = Tile("active time", DASH, "no stage is finished yet")
    fitted = [one.stages.get(FineTuning.name, {}).get("seconds") for one in facts.results]
    training = [seconds for seconds in fitted if seconds is not None]
    if training:
        time = Tile(time.label, time.value, f"{time.note}; {duration(sum(training))} of it fine-tuning")
    return [
        Tile(f"{kind}calls", count(known_calls), note if known_calls else "no stage is finished yet"),
        Tile(f"{kind}tokens", brief(known_tokens), split),
        time,
    ]


def _subtitle(facts: Facts) -> str:
    done = max((one.iteration for one in facts.results), default=0)
    of = facts.config["iterations"] + 1
    return f"{facts.state}; iteration {done} of {of} (the last is imitation only), attempt {facts.status.attempt}"


def _hard_row(row: HardRow) -> dict[str, Any]:
    """A hard row's texts for the page."""
    verdict = row.verdict
    scores = {
        "teacher shown first": verdict["teacher_first"],
        "student shown first": verdict["student_first"],
    }
    return {
        "row": row,
        "gap": decimal(verdict["teacher_score"] - verdict["student_score"], 1),
        "teacher_score": f"{verdict['teacher_score']:g}",
        "student_score": f"{verdict['student_score']:g}",
        "text": clip(row.text),
        "ancestors": [clip(text, 1000) for text in row.ancestors],
        "history": " → ".join(decimal(gap, 1) for _, gap in row.history) if len(row.history) > 1 else "",
        "answers": [
            ("teacher", clip(row.teacher["text"]), _provenance(row.teacher)),
            ("student", clip(row.student["text"]), _provenance(row.student)),
        ],
        "reviews": [
            (order, scores_in_order(pair, review), clip(review))
            for (order, pair), review in zip(
                scores.items(), (verdict["review_teacher_first"], verdict["review_student_first"]), strict=True
            )
        ],
        "judge": verdict["model"] or "unknown",
    }


def scores_in_order(pair: Sequence[float] | None, review: str | None) -> str:
    """[teacher, student] scores in one order of the answers, or why there are none; `review`: the judge's text."""
    if pair:
        return f"teacher {pair[0]:g}, student {pair[1]:g}"
    return "no readable scores" if review else "not asked in this order"


def _provenance(answer: dict[str, Any]) -> str:
    """The model of an answer, and its length."""
    source = [answer["model"], answer["version"], answer["endpoint"]]
    tokens = answer["completion_tokens"]
    parts = [
        *(str(one) for one in source if one),
        f"{tokens:,} tokens" if tokens is not None else "",
        answer["finish_reason"] or "",
    ]
    return ", ".join(part for part in parts if part)


def _finalize(value: Any) -> Any:
    """Convert every value for the page: None becomes a dash, and control characters become visible."""
    if value is None:
        return DASH
    return harmless(value) if type(value) is str else value


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lion_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
