"""Extension points: a built-in part is chosen by `type:`, the user's own by `import_path:`.

Invariants:
- A built-in part has a `type`; the user's own part has an `import_path` and no `type`.
- An import path is looked up in the configuration file's folder and in Python's own path (`core.plugins`).

This module imports no user code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from lion_ray.config.section import Section, compiles

OWN = "import_path"
"""The kind of the user's own part, which has no `type`."""
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"


class Own(Section):
    """The user's own part; docs/extending.md describes its interface."""

    import_path: str = Field(pattern=IMPORT_PATH)
    """The class, as package.module:Name; looked up in the configuration file's folder and in Python's own path."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments; no secrets, because they are stored with the run."""


def kind(value: Any) -> str | None:
    """A part's `type`, or `import_path` for one that has none."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    has_path = OWN in value if isinstance(value, dict) else hasattr(value, OWN)
    if given is None and has_path:
        return OWN
    return None if given is None else str(given)


by_kind = Discriminator(kind)
"""The discriminator of a union of sections tagged with their types, and one tagged `import_path`."""


class CrossEntropyConfig(Section):
    """The mean cross-entropy of the answers' tokens (paper, section 3.1)."""

    type: Literal["cross_entropy"] = "cross_entropy"
    """Cross-entropy of the answer's tokens."""


class PreferenceConfig(Section):
    """Direct preference optimisation on the verdicts of the iteration before, beside the new answers.

    From the second iteration on, each Cache Pool row on which the judge's gap is at least `min_gap` is trained on as a
    pair: the better answer is raised above the worse one, relative to the student before the fit. The new answers are
    imitated as ever. It adds no call. Source: arXiv 2305.18290.
    """

    type: Literal["preference"]
    """Preference pairs from the verdicts that discrimination has bought."""
    beta: float = Field(0.1, gt=0)
    """How far the student may move from the student before the fit: less moves further."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of a pair's better answer, which keeps its probability from falling."""
    length_normalised: bool = False
    """Divide log-probabilities by the answer's number of tokens; beta is then of the order of 1 to 10."""
    min_gap: float = Field(1.0, gt=0)
    """The least gap between the scores of teacher and student that makes a pair."""


class PolicyGradientConfig(Section):
    """The objective of on-policy rounds; made by `on_policy`, not chosen as `imitation.objective`."""

    type: Literal["policy_gradient"] = "policy_gradient"
    """The clipped policy gradient on rewarded answers."""
    clip: float = Field(0.2, gt=0, lt=1)
    """As on_policy.clip."""
    importance_cap: float = Field(2.0, ge=1)
    """As on_policy.importance_cap."""


class PairwiseJudgeConfig(Section):
    """Two scores from 1 to 10, asked in both orders of the answers (paper, section 3.2)."""

    type: Literal["pairwise"] = "pairwise"
    """Scores both answers, in both orders."""


class TemplatePromptConfig(Section):
    """Fills the teacher's template (`teacher.prompt`) with an instruction."""

    type: Literal["template"] = "template"
    """The template named by teacher.prompt."""


class LengthFilterConfig(Section):
    """Drops answers that are too short or too long."""

    type: Literal["length"]
    """Drop answers of fewer or more words."""
    min_words: int = Field(1, ge=0)
    """The fewest words that an answer may have."""
    max_words: int | None = Field(None, ge=1)
    """The most words that an answer may have; null: no limit."""


class PatternFilterConfig(Section):
    """Drops answers in which a regular expression (Python's `re`) matches, such as refusals."""

    type: Literal["pattern"]
    """Drop answers in which a regular expression matches."""
    pattern: str = Field(min_length=1)
    """The regular expression."""
    ignore_case: bool = True
    """Match without regard to case."""

    _compiles = field_validator("pattern")(compiles)


ObjectiveConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[PreferenceConfig, Tag("preference")]
    | Annotated[Own, Tag(OWN)],
    by_kind,
]
"""The loss that a fit minimises."""
FitObjective = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[PreferenceConfig, Tag("preference")]
    | Annotated[PolicyGradientConfig, Tag("policy_gradient")]
    | Annotated[Own, Tag(OWN)],
    by_kind,
]
"""The same, and what a round of `on_policy` minimises."""
JudgeConfig = Annotated[Annotated[PairwiseJudgeConfig, Tag("pairwise")] | Annotated[Own, Tag(OWN)], by_kind]
"""How the referee reaches a verdict."""
PromptSourceConfig = Annotated[Annotated[TemplatePromptConfig, Tag("template")] | Annotated[Own, Tag(OWN)], by_kind]
"""How an instruction becomes a prompt for the teacher."""
FilterConfig = Annotated[
    Annotated[LengthFilterConfig, Tag("length")]
    | Annotated[PatternFilterConfig, Tag("pattern")]
    | Annotated[Own, Tag(OWN)],
    by_kind,
]
"""A filter that leaves answers out of the training."""


def imports_of(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every import path in a configuration: (dotted key, path)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        here = (*path, name)
        if name == OWN and isinstance(value, str):
            yield ".".join(here), value
        elif isinstance(value, BaseModel):
            yield from imports_of(value, here)
        elif isinstance(value, dict):
            for key, one in value.items():
                if isinstance(one, BaseModel):
                    yield from imports_of(one, (*here, str(key)))
        elif isinstance(value, tuple | list):
            for number, one in enumerate(value):
                if isinstance(one, BaseModel):
                    yield from imports_of(one, (*here, str(number)))
