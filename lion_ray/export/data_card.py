"""The data set's card: its content, the source of each part, and what was left out.

Invariants: as `facts`. Counts are taken from the files just written and from the run's manifests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pyarrow as pa

from lion_ray.core import layout
from lion_ray.export import facts
from lion_ray.export.dataset import ANSWERS, CACHE, JUDGED, LEFT_OUT, TRAIN, Written
from lion_ray.export.markdown import escape, table
from lion_ray.export.source import Source, public_name

ABOUT = {
    ("answers", TRAIN): "what the student was trained on: an instruction and the teacher's answer",
    ("answers", LEFT_OUT): "answered, but not trained on; `left_out` gives the reason",
    ("answers", layout.HELDOUT): "the evaluation set: never trained on",
    ("judged", CACHE): "the Cache Pool: both answers and the judge's scores, for each iteration's student",
    ("judged", layout.HELDOUT): "the same for the held-out instructions",
}
COLUMNS = {
    "id": "the instruction's: the first 16 hex digits of its text's SHA-256",
    "instruction": "the user's last message",
    "messages": "the whole conversation, without the answer",
    "gap": "how much better the judge rates the teacher's answer",
    "answer": "the teacher's answer",
    "source": "`seed`: from the user; `hard`, `easy`: generated from a hard or an easy instruction",
    "parent_id": "the `id` of the instruction that it was generated from; null for seeds",
    "left_out": "why it was not trained on",
    "teacher": "the model that answered",
    "endpoint": "the name of the API that answered, in the run's configuration",
    "finish_reason": "`stop`, `length` (cut off), or `unknown` (a value of the endpoint that is not recognised)",
    "prompt_tokens, completion_tokens": "as with_counts by the API",
    "cost_usd": "US dollars; null where no price was configured",
    "call": "the key of the call in the run's journal",
    "teacher_answer, student_answer": "the two answers that were compared",
    "teacher_score, student_score": "1 to 10: means of both orders",
    "hard": "the student's score is lower by τ or more",
    "teacher_first, student_first": "[teacher's score, student's score] with that model's answer shown first",
    "review_teacher_first, review_student_first": "the judge's text",
    "judge, judge_endpoint": "the model that judged, and the API's name in the run's configuration",
    "calls": "the keys of the calls in the run's journal",
}
ITERATION = {
    "answers": "the iteration whose Train Pool contains it, from 1; 0: held out",
    "judged": "the iteration whose student was judged; 0: the base model",
}


def data_card(source: Source, written: Written, model_repo: str | None = None) -> str:
    """README.md of the data set. `model_repo`: the hub repository of the student, if it is pushed."""
    from huggingface_hub import DatasetCardData

    configs = [
        {
            "config_name": config,
            **({"default": True} if config == "answers" else {}),
            "data_files": [{"split": s, "path": splits[s]} for c, s in ABOUT if c == config and s in splits],
        }
        for config, splits in written.files.items()
    ]
    head = DatasetCardData(
        pretty_name=source.name,
        task_categories=["text-generation"],
        tags=["distillation", "synthetic", "lion", "lion-ray"],
        configs=configs,
        **facts.licence_fields(source.licence, "-and-teacher-terms"),
    )
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(_sections(source, written, model_repo)) + "\n"


def _sections(source: Source, written: Written, model_repo: str | None) -> Iterator[str]:
    seeds = sum(count for (_, kind), count in written.by_source.items() if kind == "seed")
    made = written.rows["answers", TRAIN] - seeds
    yield f"# {escape(source.name)}"
    yield (
        f"Instructions and a teacher's answers that a smaller model was trained on: {seeds:,} of the user's "
        f"instructions and {made:,} generated from those on which the student was weak or strong, by the method of "
        f"{facts.PAPER}. Every verdict on teacher and student is included."
        + (f" The student is [{model_repo}](https://huggingface.co/{model_repo})." if model_repo else "")
    )
    yield table(
        ("config", "split", "rows", "content"),
        [(f"`{c}`", f"`{s}`", written.rows[c, s], text) for (c, s), text in ABOUT.items() if written.rows[c, s]],
        raw=(0, 1, 3),
    )
    yield (
        "```python\nfrom datasets import load_dataset\n\n"
        'answers = load_dataset("PATH_OR_REPO")                 # train and the other splits\n'
        'judged = load_dataset("PATH_OR_REPO", "judged")\n```'
    )
    yield "## Models and dates"
    yield _models(source, written)
    yield "## How it was made"
    yield _method(source)
    yield facts.sampling(source)
    yield "## What was left out"
    yield _filters(source)
    yield "## Rows by iteration"
    yield _counts(source, written)
    yield "## Columns"
    yield from _columns(written)
    yield "## Licences"
    yield f"**The instructions.** {facts.instructions(source)}"
    yield f"**The answers, the generated instructions and the verdicts.** {facts.teacher_terms(source)}"
    yield "## Limits"
    yield (
        "The answers are a model's: some are wrong, and none was checked by a person. The scores, and so the split "
        "into hard and easy, are a model's too. Generated instructions are biased towards what the generator writes "
        "easily. The texts were not searched for personal data."
    )
    yield "## Prompts"
    yield "The templates when this card was written; the run records only their names."
    yield facts.prompts(source)
    yield "## Software"
    yield f"{facts.versions(source)}. Random seed: {source.get('seed')}."
    yield f"## Citation\n\n{facts.fenced(facts.CITATION, 'bibtex')}"


def _models(source: Source, written: Written) -> str:
    def with_counts(found: Mapping[tuple[str, str], int]) -> str:
        return "; ".join(
            f"{escape(model)} ({escape(source.host(name))}): {count:,} rows"
            for (model, name), count in sorted(found.items())
        )

    student = public_name(source.get("student.model") or "unknown")
    return table(
        ("role", "model"),
        [
            ("teacher", with_counts(written.teachers) or "none"),
            ("judge", with_counts(written.judges) or "none"),
            ("generator", facts.model_of(source, "generator")),
            ("student", f"{escape(student)}, after iteration {source.iteration}"),
            ("dates", facts.dates(source)),
        ],
        raw=(1,),
    )


def _method(source: Source) -> str:
    tau = source.get("discrimination.tau")
    return (
        "1. The teacher answered the Train Pool, and the student was trained on the answers.\n"
        "2. Teacher and student answered the Cache Pool (every instruction so far). The judge scored both answers from "
        f"1 to 10 in both orders. A row is *hard* where the student's mean score is lower than "
        f"the teacher's by τ = {tau} or more, else *easy*.\n"
        f"3. From hard and easy rows the generator wrote new instructions (targets: {source.get('generation.hard'):,} "
        f"and {source.get('generation.easy'):,}). They are the next iteration's Train Pool and were added to the "
        "Cache Pool."
    )


def _filters(source: Source) -> str:
    lines = [
        f"- Generated instructions whose ROUGE-L F with an existing one exceeded "
        f"{source.get('generation.max_similarity')}, or of fewer than {source.get('generation.min_words')} words.",
    ]
    sets = source.get("data.decontaminate")
    if sets:
        names = ", ".join(f"`{public_name(one).replace('`', '')}`" for one in sets)
        lines.append(f"- Rows too similar to a question of an evaluation set: {names}.")
    else:
        lines.append("- No decontamination: no evaluation set was configured for it.")
    lines.append("- Failed answers, and verdicts without readable scores: none was replaced by a default.")
    if source.get("imitation.truncated") == "drop":
        lines.append("- Answers that were cut off (in `left_out`).")
    reasons = Counter[tuple[str, str]]()
    first = source.manifest(layout.pool(0))
    for what in ("duplicates", "bad_rows", "in_heldout"):
        reasons["the user's instructions", what.replace("_", " ")] += first.get(what) or 0
    for reason, count in (first.get("contaminated") or {}).items():
        reasons["the user's instructions", reason] += count
    for result in source.results:
        for stage_reason, count in result.quarantined.items():
            stage, _, reason = stage_reason.partition(": ")
            reasons[stage, reason] += count
        # Instructions that the exported iteration generated were not trained on and are not exported.
        if result.iteration < source.iteration:
            for kind, entry in result.generation.items():
                for reason, count in (entry.get("rejected") or {}).items():
                    reasons[f"generated from {kind}", reason] += count
    rows = [(stage, reason, count) for (stage, reason), count in reasons.items() if count]
    return "\n".join(lines) + ("\n\n" + table(("stage", "reason", "rows"), rows) if rows else "")


def _counts(source: Source, written: Written) -> str:
    rows = []
    for result in source.results:
        k = result.iteration
        kinds = [written.by_source[k, kind] for kind in ("seed", "hard", "easy")]
        judged = [written.judged[k, hard] for hard in (True, False)]
        rows.append(
            (k or "0 (base model)", *(n or None for n in (*kinds, *judged)), facts.quality(result.quality_heldout))
        )
    headings = (
        "iteration",
        "trained on: seed",
        "hard",
        "easy",
        "judged hard",
        "judged easy",
        "relative quality, held-out",
    )
    note = "Relative quality is the student's summed scores over the teacher's, with a 95 % bootstrap interval."
    return table(headings, rows) + "\n\n" + note


def _columns(written: Written) -> Iterator[str]:
    for config, schema in (("answers", ANSWERS), ("judged", JUDGED)):
        if config not in written.files:
            continue
        about = {"iteration": ITERATION[config]} | COLUMNS
        names = [group for group in about if all(name in schema.names for name in group.split(", "))]
        ordered = sorted(names, key=lambda group: schema.names.index(group.split(", ")[0]))
        rows = [
            (", ".join(f"`{name}`" for name in group.split(", ")), _type(schema, group), about[group])
            for group in ordered
        ]
        yield f"`{config}`:"
        yield table(("column", "type", "meaning"), rows, raw=(0, 1, 2))


def _type(schema: pa.Schema, group: str) -> str:
    kind = schema.field(group.split(", ")[0]).type
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)
