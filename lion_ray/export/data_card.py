"""The data set's card: what is in it, where every part comes from, and what was left out.

Invariants: as `facts`. Counts are those of the files that were just written, and of the run's manifests.
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
    ("answers", LEFT_OUT): "answered, but not trained on; `left_out` says why",
    ("answers", layout.HELDOUT): "never trained on: the measure",
    ("judged", CACHE): "the Cache Pool: both answers and the judge's scores, for each iteration's student",
    ("judged", layout.HELDOUT): "the same for the held-out instructions",
}
COLUMNS = {
    "id": "of the instruction: the first 16 hex digits of its text's SHA-256",
    "instruction": "what was asked last",
    "messages": "the whole conversation, without the answer",
    "gap": "by how much the judge finds the teacher's answer better",
    "answer": "what the teacher answered",
    "source": "`seed`: from the user; `hard`, `easy`: generated from such an instruction",
    "parent_id": "the `id` of the instruction that it was generated from; null for seeds",
    "left_out": "why it was not trained on",
    "teacher": "the model that answered",
    "endpoint": "the name of the API that answered, in the run's configuration",
    "finish_reason": "`stop`, `length` where the answer was cut off, `unknown` where the endpoint's word for it is",
    "prompt_tokens, completion_tokens": "as the API counted them",
    "cost_usd": "US dollars; null where no price was configured",
    "call": "the key of the call in the run's journal",
    "teacher_answer, student_answer": "what was compared",
    "teacher_score, student_score": "1 to 10: means of both orders",
    "hard": "the student's score is lower by τ or more",
    "teacher_first, student_first": "[teacher's score, student's score] with that one's answer shown first",
    "review_teacher_first, review_student_first": "what the judge wrote",
    "judge, judge_endpoint": "the model that judged, and the API's name in the run's configuration",
    "calls": "the keys of the calls in the run's journal",
}
ITERATION = {
    "answers": "whose Train Pool it is in, from 1; the iteration before wrote it, or the user. 0: held out",
    "judged": "whose student was judged; 0: the base model",
}


def data_card(source: Source, written: Written, model_repo: str | None = None) -> str:
    """README.md of the data set. `model_repo` is where the student is pushed to, if it is."""
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
        f"Instructions and a teacher's answers, with which a smaller model was trained: {seeds:,} instructions of the "
        f"user's and {made:,} that were generated where the student was weak or strong, by the method of {facts.PAPER}."
        " Every verdict on teacher and student is here too."
        + (f" The student is [{model_repo}](https://huggingface.co/{model_repo})." if model_repo else "")
    )
    yield table(
        ("config", "split", "rows", "what it is"),
        [(f"`{c}`", f"`{s}`", written.rows[c, s], text) for (c, s), text in ABOUT.items() if written.rows[c, s]],
        raw=(0, 1, 3),
    )
    yield (
        "```python\nfrom datasets import load_dataset\n\n"
        'answers = load_dataset("PATH_OR_REPO")                 # train, and the other splits\n'
        'judged = load_dataset("PATH_OR_REPO", "judged")\n```'
    )
    yield "## Who and when"
    yield _who(source, written)
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
        "The answers are a model's: some are wrong, and none was checked by a person. The scores are a model's too, "
        "and the splits into hard and easy rest on them. Generated instructions lean towards what the generator finds "
        "easy to write. The texts were not searched for personal data."
    )
    yield "## Prompts"
    yield "As the templates were when this card was written; the run keeps their names."
    yield facts.prompts(source)
    yield "## Software"
    yield f"{facts.versions(source)}. Seed of every random choice: {source.get('seed')}."
    yield f"## Citation\n\n{facts.fenced(facts.CITATION, 'bibtex')}"


def _who(source: Source, written: Written) -> str:
    def counted(found: Mapping[tuple[str, str], int]) -> str:
        return "; ".join(
            f"{escape(model)} ({escape(source.host(name))}): {count:,} rows"
            for (model, name), count in sorted(found.items())
        )

    student = public_name(source.get("student.model") or "unknown")
    return table(
        ("role", "who"),
        [
            ("teacher", counted(written.teachers) or "nobody"),
            ("judge", counted(written.judges) or "nobody"),
            ("generator", facts.who(source, "generator")),
            ("student", f"{escape(student)}, after iteration {source.iteration}"),
            ("when", facts.when(source)),
        ],
        raw=(1,),
    )


def _method(source: Source) -> str:
    tau = source.get("discrimination.tau")
    return (
        "1. The teacher answered the Train Pool, and the student was trained on the answers.\n"
        "2. Teacher and student answered the Cache Pool (every instruction so far). The judge scored both answers from "
        f"1 to 10, twice: with either one shown first. A row is *hard* where the student's mean score is lower than "
        f"the teacher's by τ = {tau} or more, else *easy*.\n"
        f"3. From hard and easy rows the generator wrote new instructions ({source.get('generation.hard'):,} and "
        f"{source.get('generation.easy'):,} wanted). They are the next iteration's Train Pool, and joined the "
        "Cache Pool."
    )


def _filters(source: Source) -> str:
    lines = [
        f"- A generated instruction whose ROUGE-L F with any known one exceeded "
        f"{source.get('generation.max_similarity')}, or of fewer than {source.get('generation.min_words')} words.",
    ]
    sets = source.get("data.decontaminate")
    if sets:
        names = ", ".join(f"`{public_name(one).replace('`', '')}`" for one in sets)
        lines.append(f"- What was too near a question of an evaluation set: {names}.")
    else:
        lines.append("- No evaluation set was named for decontamination: nothing was checked against any.")
    lines.append("- Answers that failed, and verdicts without readable scores: none was replaced by a made-up one.")
    if source.get("imitation.truncated") == "drop":
        lines.append("- Answers that were cut off: they are in `left_out`.")
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
        # What the exported iteration generated was not trained on, and is not here.
        if result.iteration < source.iteration:
            for kind, entry in result.generation.items():
                for reason, count in (entry.get("rejected") or {}).items():
                    reasons[f"generated from {kind}", reason] += count
    rows = [(where, reason, count) for (where, reason), count in reasons.items() if count]
    return "\n".join(lines) + ("\n\n" + table(("where", "why", "rows"), rows) if rows else "")


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
        yield table(("column", "type", "is"), rows, raw=(0, 1, 2))


def _type(schema: pa.Schema, group: str) -> str:
    kind = schema.field(group.split(", ")[0]).type
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)
