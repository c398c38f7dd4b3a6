"""Checks that score an answer without a judge, as a configuration names them.

Invariants:
- A check is chosen by `type:`, or is a function of the user's own (`import_path:`). What it does is up to
  `discrimination.checks`.
- A pattern that does not compile and a schema that is no schema are refused where they are written.

This module imports no check and opens no file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from lion_ray.config.plugins import IMPORT_PATH, OWN, by_kind
from lion_ray.config.section import Section, compiles


class _Check(Section):
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$", max_length=40)
    """What its column is called; null: its type. No two checks of a list may have the same name."""


class ExactCheck(_Check):
    """1 where the answer is the reference, whitespace at both ends left out; else 0."""

    type: Literal["exact"]
    """The answer must equal the reference."""
    ignore_case: bool = False
    """Compare without regard to case."""
    ignore_whitespace: bool = False
    """Count every run of whitespace as one space."""


class ContainsCheck(_Check):
    """1 where the answer contains a text, else 0."""

    type: Literal["contains"]
    """The answer must contain a text."""
    text: str | None = Field(None, min_length=1)
    """The text to look for; null: the row's reference."""
    ignore_case: bool = False
    """Look for it without regard to case."""


class RegexCheck(_Check):
    """1 where a regular expression (Python's `re`) matches somewhere in the answer, else 0."""

    type: Literal["regex"]
    """A regular expression must match somewhere in the answer."""
    pattern: str | None = Field(None, min_length=1)
    """The regular expression; null: the row's reference."""
    ignore_case: bool = False
    """Match without regard to case."""

    _compiles = field_validator("pattern")(compiles)


class NumberCheck(_Check):
    """1 where the last number in the answer is the last number in the reference, else 0."""

    type: Literal["number"]
    """The last number in the answer must be the reference's."""
    tolerance: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The largest difference between the two numbers that still counts as equal."""


class JsonCheck(_Check):
    """1 where the answer is valid JSON, else 0."""

    type: Literal["json"]
    """The answer must be valid JSON."""


class JsonSchemaCheck(_Check):
    """1 where the answer is JSON that fits a JSON Schema, else 0."""

    # The key is `schema`, which is a method of every pydantic model.
    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    type: Literal["json_schema"]
    """The answer must be JSON that fits a JSON Schema."""
    schema_: str | dict[str, Any] = Field(alias="schema")
    """The JSON Schema itself, or a .json file that holds it."""

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, schema: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(schema, dict) and (problem := schema_problem(schema)):
            raise ValueError(problem)
        return schema


class JsonFieldsCheck(_Check):
    """The share of the reference's fields that the answer, a JSON object, has with the same values."""

    type: Literal["json_fields"]
    """The answer must be a JSON object with the reference's fields; scored by the share that match."""
    fields: tuple[str, ...] | None = Field(None, min_length=1)
    """Compare these fields alone; null: all of the reference's, and a field that it has not counts as a wrong one."""


class OwnCheck(_Check):
    """A function of the user's own: (instruction, answer, reference) -> a number from 0 to 1."""

    import_path: str = Field(pattern=IMPORT_PATH)
    """The function, as package.module:name; found as Python finds modules, and beside the configuration file."""


CheckConfig = Annotated[
    Annotated[ExactCheck, Tag("exact")]
    | Annotated[ContainsCheck, Tag("contains")]
    | Annotated[RegexCheck, Tag("regex")]
    | Annotated[NumberCheck, Tag("number")]
    | Annotated[JsonCheck, Tag("json")]
    | Annotated[JsonSchemaCheck, Tag("json_schema")]
    | Annotated[JsonFieldsCheck, Tag("json_fields")]
    | Annotated[OwnCheck, Tag(OWN)],
    by_kind,
]
"""One check; which one, its `type` says."""


class EvaluationConfig(Section):
    """Measuring the student on the held-out instructions without a judge."""

    checks: tuple[CheckConfig, ...] = ()
    """Score every held-out answer by these, against the row's `reference`; see docs/evaluation.md."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        refuse_same_names(self.checks)
        return self


class SuiteConfig(Section):
    """A suite of one's own for `lion-ray eval`: rows, and the checks that score the answers to them."""

    rows: str
    """The instructions with their references: a file like the pool's, relative to this one, or hf:NAME[:SPLIT]."""
    checks: tuple[CheckConfig, ...]
    """Score every answer by these; see docs/evaluation.md."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; null: the target's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling's mass; null: the target's own."""
    max_tokens: int | None = Field(None, ge=1)
    """The longest answer, in tokens; null: the target's own."""

    @model_validator(mode="after")
    def _names_differ(self) -> SuiteConfig:
        if not self.checks:  # by a length of its field, a check that is wrong would be missing too
            raise ValueError("checks: empty; add at least one")
        refuse_same_names(self.checks)
        return self


def check_name(check: CheckConfig) -> str:
    """What a check is called: as configured, else its type, or its function's name."""
    if check.name is not None:
        return check.name
    return check.import_path.rpartition(":")[2] if isinstance(check, OwnCheck) else check.type


def refuse_same_names(checks: tuple[CheckConfig, ...]) -> None:
    """Raises ValueError where two checks have one name."""
    names = [check_name(check) for check in checks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"checks: two are called '{twice}'; give each a `name` of its own")


def schema_problem(schema: Any) -> str | None:
    """Why something is no JSON Schema; None where it is one."""
    from jsonschema import SchemaError, validators

    if not isinstance(schema, dict):
        return "no JSON Schema: an object is wanted"
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"no JSON Schema: {error.message[:200]}{f' (at {where})' if where else ''}".replace("\n", " ")
    except (RecursionError, ValueError, TypeError) as error:
        return f"no JSON Schema: {type(error).__name__}"
    return None
