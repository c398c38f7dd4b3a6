"""Facts for both cards: models that answered and judged, dates of the run, licences, software versions.

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
from lion_ray.core.errors import ConfigError, one_line
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
"""The hub's identifiers (huggingface.co/docs/hub/repositories-licenses) of licences common for data and models."""


def licence_fields(licence: str | None, also: str = "") -> dict[str, Any]:
    """A card's licence keys: the hub's identifier, else `other` with a name. `also` is appended for further terms."""
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


def model_of(source: Source, role: str) -> str:
    """The model and host of a role, as part of a sentence."""
    name = source.get(f"{role}.endpoint")
    return f"{escape(source.endpoint(name).get('model') or 'unknown')} ({escape(source.host(name))})"


def dates(source: Source) -> str:
    """Start and end date of the run (UTC), as far as recorded."""
    started = source.manifest(layout.answers(0)).get("began")
    attempt: dict[str, Any] = source.store.attempt() or {}
    ended = attempt.get("alive") if attempt.get("ended") else None
    known = (("started", started), ("ended", ended))
    return ", ".join(f"{word} {time.strftime('%Y-%m-%d', time.gmtime(at))}" for word, at in known if at) or "unknown"


def teacher_terms(source: Source) -> str:
    """Known licences of the teachers' weights, and a warning about providers' terms of use."""
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
            "competing models: read them before you use or redistribute this.",
        ]
    )


def sampling(source: Source) -> str:
    """Table of each role's sampling settings."""
    rows = []
    for role in ("teacher", "referee", "generator", "student"):
        length = source.get(f"{role}.max_tokens")
        if role == "generator":
            length = f"{source.get('generator.tokens_per_word')} per word of the example"
        rows.append((role, source.get(f"{role}.temperature"), source.get(f"{role}.top_p"), length))
    return table(("role", "temperature", "top-p", "max tokens"), rows)


def prompts(source: Source) -> str:
    """Each API role's full template. The run records only their names, so the current files are read."""
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
    """The prompt template that the student was trained with; None for the model's chat template.

    Raises ConfigError if the user's file no longer exists.
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
        raise ConfigError(f"the prompt template {path} cannot be read: {one_line(error)}") from None


def versions(source: Source) -> str:
    """Versions of the software that the run used."""
    found = source.described.get("versions") or {}
    return ", ".join(f"{escape(name)} {escape(version)}" for name, version in found.items()) or "unknown"


def instructions(source: Source) -> str:
    """Origin and licence of the user's instructions, in a few sentences."""
    pool = source.get("data.pool")
    name = pool if pool and pool.startswith("hf:") and "/" in pool[3:] and pool[3] not in "./~" else None
    read_from = f"The first instructions were read from `{_code(name or Path(pool).name)}`." if pool else ""
    origin = f"Their origin, by the owner: {escape(source.origin)}." if source.origin else "Their origin is unknown."
    licence = f"Their licence: {escape(source.licence)}." if source.licence else "Their licence is unknown."
    return " ".join(part for part in (read_from, origin, licence) if part)


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
