"""The cards of the student and of its adapters: results, usage, training and limits.

Invariants: as `facts`. A number that was not measured is called so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lion_ray.core import layout
from lion_ray.export import facts
from lion_ray.export.markdown import escape, fenced, table
from lion_ray.export.source import Source, hub_name, public_name
from lion_ray.models.resolve import BUNDLED

SETTINGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "precision",
    "truncated",
)
"""Keys of `imitation` that affect the weights."""
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def model_card(source: Source, data_repo: str | None = None) -> str:
    """README.md of the model. `data_repo`: the hub repository of the data set, if it is pushed."""
    sections = [
        f"# {escape(source.name)}",
        f"{_base(source)}, fine-tuned on answers of {facts.model_of(source, 'teacher')} with the method of "
        f"{facts.PAPER}: imitation of the teacher's answers, and new instructions where the student is weak. "
        f"This is the student after iteration {source.iteration}.",
        f"## Results\n\n{_results(source)}",
        f"## Prompt format\n\n{_prompt_format(source)}",
        *_usage(source),
        f"## Training\n\n{_training(source, data_repo)}",
        *_closing(source),
    ]
    return _front(source, data_repo, "transformers") + "\n\n".join(sections) + "\n"


def adapter_card(source: Source, rank: int, data_repo: str | None = None) -> str:
    """README.md of the merged adapters; `rank` is their total rank."""
    sections = [
        f"# {escape(source.name)}: adapters",
        f"A low-rank adapter (arXiv 2106.09685) for {_base(source)}, trained on answers of "
        f"{facts.model_of(source, 'teacher')} with the method of {facts.PAPER}. With it, that model is the student "
        f"after iteration {source.iteration}. Each iteration trained adapters of rank "
        f"{source.get('imitation.lora.rank')} on top of the previous ones; concatenated they are this one, of rank "
        f"{rank}. Merged into the base model, it gives the run's own weights up to float32 rounding.",
        f"## Results\n\n{_results(source)}",
        f"## Usage\n\n{_adapter_usage(source, rank)}",
        f"## Prompt format\n\n{_prompt_format(source)}",
        f"## Training\n\n{_training(source, data_repo)}",
        *_closing(source),
    ]
    return _front(source, data_repo, "peft") + "\n\n".join(sections) + "\n"


def _front(source: Source, data_repo: str | None, library: str) -> str:
    from huggingface_hub import ModelCardData

    base = source.get("student.model")
    relation = "adapter" if library == "peft" else "finetune"
    head = ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        base_model=hub_name(base),
        base_model_relation=relation if hub_name(base) else None,
        datasets=[data_repo] if data_repo else None,
        tags=["distillation", "lion", "lion-ray"],
        **facts.licence_fields(facts.weights_licence(base)),
    )
    return f"---\n{head.to_yaml()}\n---\n\n"


def _base(source: Source) -> str:
    return escape(public_name(source.get("student.model")))


def _results(source: Source) -> str:
    before, first, after = source.results[0], source.results[1], source.results[-1]
    rows = source.manifest(layout.pool(layout.HELDOUT)).get("rows") or 0
    if not rows:
        return "The run had no held-out set, so nothing was measured."
    was, now = before.quality_heldout, after.quality_heldout
    loss = (facts.number(first.loss_before), facts.number(after.loss_after))
    measured = table(
        (f"on {rows:,} held-out instructions", "base model", f"after iteration {source.iteration}"),
        [
            ("loss on the teacher's answers (nats per token)", *loss),
            ("relative quality", facts.quality(was), facts.quality(now)),
        ],
    )
    notes = [
        "Relative quality is the student's summed scores over the teacher's, judged in both orders by "
        f"{facts.model_of(source, 'referee')}, with its 95 % bootstrap interval."
    ]
    if source.get("referee.endpoint") == source.get("teacher.endpoint"):
        notes.append("The judge is the teacher itself, which may favour its own answers.")
    if was and now and now["low"] <= was["high"] and was["low"] <= now["high"]:
        notes.append("The two intervals overlap: this measure alone shows neither a gain nor a loss.")
    return measured + "\n\n" + " ".join(notes)


def _prompt_format(source: Source) -> str:
    frame = facts.frame(source)
    if frame is None:
        return "It was trained with its chat template: one user message, no system message."
    shown = fenced(frame.replace("{instruction}", "{your instruction}"))
    return f"It was trained with this text around an instruction, which `chat_template.jinja` builds:\n\n{shown}"


def _usage(source: Source) -> Iterator[str]:
    dtype, length = source.get("student.dtype"), source.get("student.max_model_len")
    request = {"model": "PATH_OR_REPO", "messages": [{"role": "user", "content": "Hello"}]}
    body = json.dumps(request | {"temperature": source.get("student.temperature")})
    yield "With vLLM:"
    yield fenced(
        f"vllm serve PATH_OR_REPO --dtype {dtype} --max-model-len {length}\n"
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'",
        "sh",
    )
    yield "With transformers:"
    yield fenced(
        f"""import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO")
model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPO", dtype=torch.{dtype})
messages = [{{"role": "user", "content": "Hello"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens={source.get("student.max_tokens")})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))""",
        "python",
    )
    yield f"The weights are float32; the run's own engines used {escape(dtype)}."


def _adapter_usage(source: Source, rank: int) -> str:
    base = source.get("student.model")
    where = hub_name(base) or "BASE"
    code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({json.dumps(where)})
model = PeftModel.from_pretrained(model, "PATH_OR_REPO")"""
    parts = [fenced(code, "python")]
    if base.startswith(BUNDLED):
        fetched = f"BASE is the folder that `lion-ray models fetch {base}` prints"
        parts.append(f"{fetched}; other copies of this model may be rounded differently.")
    elif where == "BASE":
        parts.append(f"BASE is the folder of {_base(source)} that the run started from.")
    max_rank = next((known for known in _VLLM_RANKS if known >= rank), None)
    if max_rank is not None:
        parts.append(f"With vLLM: `--enable-lora --max-lora-rank {max_rank} --lora-modules student=PATH_OR_REPO`.")
    return "\n\n".join(parts)


def _training(source: Source, data_repo: str | None) -> str:
    fits: list[tuple[Any, ...]] = []
    for result in source.results[1:]:
        fit = source.manifest(layout.checkpoint(result.iteration))
        counts = (fit.get(name) for name in ("samples", "steps", "tokens"))
        fits.append((result.iteration, *counts, facts.number(result.loss_after)))
    settings = [(name.replace("_", " "), source.get(f"imitation.{name}")) for name in SETTINGS]
    for name, value in (source.get("imitation.lora") or {}).items():
        settings.append((f"LoRA {name.replace('_', ' ')}", str(value)))
    start = (
        "the base model and trains on all rows so far" if source.starts_from_base else "the previous one's checkpoint"
    )
    data = f"[{data_repo}](https://huggingface.co/datasets/{data_repo})" if data_repo else "the data set of this export"
    return "\n\n".join(
        [
            f"On {data}; each iteration starts from {start}. {facts.instructions(source)}",
            table(("iteration", "answers", "steps", "tokens", "held-out loss after"), fits),
            table(("setting", "value"), [*settings, ("optimizer", "AdamW"), ("seed", str(source.get("seed")))]),
            f"Time and cost of each stage, over all iterations:\n\n{facts.stages(source)}",
            f"The run: {facts.dates(source)}. Software: {facts.versions(source)}.",
        ]
    )


def _closing(source: Source) -> Iterator[str]:
    known = facts.weights_licence(source.get("student.model"))
    licence = f"The base model's licence: {escape(known)}." if known else "The base model's licence is unknown."
    yield f"## Licence\n\n{licence} {facts.teacher_terms(source)}"
    fits = (source.manifest(layout.checkpoint(k)) for k in range(1, source.iteration + 1))
    answers, length = sum(fit.get("samples") or 0 for fit in fits), source.get("imitation.max_length")
    yield (
        f"## Limits\n\nIt imitates one teacher on {answers:,} answers, so it copies the teacher's mistakes and "
        "style, and may invent facts that its base model does not know. It was trained on texts of at most "
        f"{length:,} tokens. It was evaluated only on the held-out instructions above. It was neither trained nor "
        "tested for safety."
    )
    yield f"## Citation\n\n{fenced(facts.CITATION, 'bibtex')}"
