"""Facts for both cards: which models answered and judged, when, under which licence, with which software.

Invariants:
- What the run did not record is shown as unknown, never guessed.
- Every text from the user, a model or an endpoint is escaped (`markdown`).
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from lion_ray.core import layout
from lion_ray.core.errors import ConfigError
from lion_ray.export.markdown import escape, fenced, table
from lion_ray.export.source import Source, public_name
from lion_ray.models.bundled import CATALOGUE
from lion_ray.models.prompter import INSTRUCTION_FRAME
from lion_ray.models.resolve import BUNDLED
from lion_ray.pipeline.stages import PIPELINE
from lion_ray.prompts.messages import load_template

PAPER = "[Lion: Adversarial Distillation of Proprietary Large Language Models](https://arxiv.org/abs/2305.12870)"
CITATION = """@inproceedings{jiang2023lion,
  title = {Lion: Adversarial Distillation of Proprietary Large Language Models},
  author = {Jiang, Yuxin and Chan, Chunkit and Chen, Mingyang and Wang, Wei},
  booktitle = {Proceedings of EMNLP},
  year = {2023},
  url = {https://arxiv.org/abs/2305.12870}
}"""
_HUB_LICENCES = """
    apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cdla-permissive-2.0
    gpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 odc-by odbl openrail unlicense gemma llama2 llama3 llama3.1 llama3.2
    llama3.3
"""
HUB_LICENCES = frozenset(_HUB_LICENCES.split())
"""Names that the hub knows (huggingface.co/docs/hub/repositories-licenses), of those that data and models have."""


def licence_fields(licence: str | None, also: str = "") -> dict[str, Any]:
    """A card's licence keys: the hub's own name, else `other` with a name; `also` names further terms."""
    if not licence:
        return {"license": "unknown"}
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    if slug in HUB_LICENCES and not also:
        return {"license": slug}
    return {"license": "other", "license_name": f"{slug}{also}"[:96], "license_link": "README.md"}


def weights_licence(model: str | None) -> str | None:
    """The licence of a bundled model's weights; None if unknown."""
    entry = CATALOGUE.get((model or "").removeprefix(BUNDLED)) if (model or "").startswith(BUNDLED) else None
    return entry.licence if entry else None


def who(source: Source, role: str) -> str:
    """A sentence part that names the model of a role."""
    name = source.get(f"{role}.endpoint")
    return f"{escape(source.endpoint(name).get('model') or 'unknown')} ({escape(source.host(name))})"


def when(source: Source) -> str:
    """When the run began and ended (UTC), as far as it was recorded."""
    began = source.manifest(layout.answers(0)).get("began")
    attempt: dict[str, Any] = source.store.attempt() or {}
    ended = attempt.get("alive") if attempt.get("ended") else None
    told = (("begun", began), ("ended", ended))
    return ", ".join(f"{word} {time.strftime('%Y-%m-%d', time.gmtime(at))}" for word, at in told if at) or "unknown"


def teacher_terms(source: Source) -> str:
    """The known terms of use for the teachers' answers."""
    lines = []
    for name in source.teachers():
        endpoint = source.endpoint(name)
        served = (endpoint.get("serve") or {}).get("model")
        if known := weights_licence(served):
            lines.append(f"{escape(endpoint.get('model'))} ran from weights under {escape(known)}.")
    return " ".join(
        [
            *lines,
            "The terms of use of a teacher's provider may limit what its answers may be used for, such as training "
            "models that compete with it: read them before you use or pass on what is here.",
        ]
    )


def sampling(source: Source) -> str:
    """How each role's tokens were drawn."""
    rows = []
    for role in ("teacher", "referee", "generator", "student"):
        length = source.get(f"{role}.max_tokens")
        if role == "generator":
            length = f"{source.get('generator.tokens_per_word')} for each word of the example"
        rows.append((role, source.get(f"{role}.temperature"), source.get(f"{role}.top_p"), length))
    return table(("role", "temperature", "top-p", "tokens at most"), rows)


def prompts(source: Source) -> str:
    """Each API role's template, whole; the run keeps their names alone, so they are read as they are now."""
    parts = []
    for role, kind, key in (
        ("Teacher", "teacher", "teacher.prompt"),
        ("Judge", "referee", "referee.prompt"),
        ("Generator, for hard examples", "generator", "generator.hard_prompt"),
        ("Generator, for easy examples", "generator", "generator.easy_prompt"),
    ):
        name = source.get(key)
        parts.append(f"**{role}**: `{_code(public_name(name))}`" if name else f"**{role}**: unknown")
        if not name:
            continue
        try:
            messages = load_template(name, kind, source.base_dir).messages
        except ConfigError:
            parts.append("The template is not on the machine that wrote this card.")
        else:
            parts.append(fenced("\n\n".join(f"[{role}]\n{text.strip()}" for role, text in messages), "jinja"))
    return "\n\n".join(parts)


def frame(source: Source) -> str | None:
    """The text around an instruction with which the student was trained; None for the model's chat template.

    Raises ConfigError where the user's file is not there any more.
    """
    prompt = source.get("student.prompt")
    if prompt == "chat":
        return None
    if prompt == "instruction":
        return INSTRUCTION_FRAME
    path = source.base_dir / prompt
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt template {path} cannot be read: {error}") from None


def versions(source: Source) -> str:
    """What the run ran on."""
    found = source.described.get("versions") or {}
    return ", ".join(f"{escape(name)} {escape(version)}" for name, version in found.items()) or "unknown"


def instructions(source: Source) -> str:
    """Where the user's instructions come from and under what licence, in a sentence or two."""
    pool = source.get("data.pool")
    name = pool if pool and pool.startswith("hf:") and "/" in pool[3:] and pool[3] not in "./~" else None
    told = f"The first instructions were read from `{_code(name or Path(pool).name)}`." if pool else ""
    origin = f"The owner says of them: {escape(source.origin)}." if source.origin else "Their origin is unknown."
    licence = f"Their licence: {escape(source.licence)}." if source.licence else "Their licence is unknown."
    return " ".join(part for part in (told, origin, licence) if part)


def quality(value: dict[str, float] | None) -> str:
    """A relative quality with its interval."""
    return "not measured" if not value else f"{value['ratio']:.1%} ({value['low']:.1%} to {value['high']:.1%})"


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")


def stages(source: Source) -> str:
    """A table of the pipeline's stages: seconds, calls, tokens and US dollars over all iterations."""
    names = ("seconds", "calls", "prompt_tokens", "completion_tokens", "cost_usd")
    sums: dict[str, dict[str, float]] = {}
    for result in source.results:
        for stage, numbers in result.stages.items():
            known = sums.setdefault(stage, {})
            for name in names:
                if name in numbers:
                    known[name] = known.get(name, 0) + numbers[name]
    ordered = [stage.name for stage in PIPELINE if stage.name in sums]
    rows = [
        (name, *(None if key not in sums[name] else round(sums[name][key], 2) for key in names)) for name in ordered
    ]
    return table(("stage", "seconds", "calls", "prompt tokens", "completion tokens", "US $"), rows)
