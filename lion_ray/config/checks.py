"""The configuration of checks, which score an answer without a judge.

Invariants:
- A check is chosen by `type:`, or is the user's own function (`import_path:`). `discrimination.checks` implements them.
- A pattern that does not compile, or an invalid JSON Schema, is an error at its own key.

This module imports no check and opens no file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from lion_ray.config.plugins import IMPORT_PATH, OWN, by_kind
from lion_ray.config.section import Section, compiles


class _Check(Section):
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$", max_length=40)
    """The name of its column; null: its type. Names in a list must differ."""


class ExactCheck(_Check):
    """1 if the answer equals the reference, ignoring whitespace at both ends; else 0."""

    type: Literal["exact"]
    """The answer must equal the reference."""
    ignore_case: bool = False
    """Compare without regard to case."""
    ignore_whitespace: bool = False
    """Count every run of whitespace as one space."""


class ContainsCheck(_Check):
    """1 if the answer contains a text, else 0."""

    type: Literal["contains"]
    """The answer must contain a text."""
    text: str | None = Field(None, min_length=1)
    """The text to look for; null: the row's reference."""
    ignore_case: bool = False
    """Search without regard to case."""


class RegexCheck(_Check):
    """1 if a regular expression (Python's `re`) matches somewhere in the answer, else 0."""

    type: Literal["regex"]
    """A regular expression must match somewhere in the answer."""
    pattern: str | None = Field(None, min_length=1)
    """The regular expression; null: the row's reference."""
    ignore_case: bool = False
    """Match without regard to case."""

    _compiles = field_validator("pattern")(compiles)


class NumberCheck(_Check):
    """1 if the last number in the answer equals the last number in the reference, else 0."""

    type: Literal["number"]
    """The last number in the answer must equal the reference's."""
    tolerance: float = Field(0.0, ge=0, allow_inf_nan=False)
    """The largest difference between the two numbers that still counts as equal."""


class JsonCheck(_Check):
    """1 if the answer is valid JSON, else 0."""

    type: Literal["json"]
    """The answer must be valid JSON."""


class JsonSchemaCheck(_Check):
    """1 if the answer is JSON that conforms to a JSON Schema, else 0."""

    # The key `schema` needs an alias, because every pydantic model has a method of that name.
    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    type: Literal["json_schema"]
    """The answer must be JSON that conforms to a JSON Schema."""
    schema_: str | dict[str, Any] = Field(alias="schema")
    """The JSON Schema itself, or a .json file that holds it."""

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, schema: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(schema, dict) and (problem := schema_problem(schema)):
            raise ValueError(problem)
        return schema


class JsonFieldsCheck(_Check):
    """The share of the reference's fields that have the same values in the answer, a JSON object."""

    type: Literal["json_fields"]
    """The answer must be a JSON object with the reference's fields; scored by the share that match."""
    fields: tuple[str, ...] | None = Field(None, min_length=1)
    """Compare only these fields; null: all of the reference's, and an additional field counts as wrong."""


class OwnCheck(_Check):
    """The user's own function: (instruction, answer, reference) -> a number from 0 to 1."""

    import_path: str = Field(pattern=IMPORT_PATH)
    """The function, as package.module:name; looked up in the configuration file's folder and in Python's own path."""


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
"""One check, chosen by its `type`."""


class EvaluationConfig(Section):
    """Measuring the student on the held-out instructions without a judge."""

    checks: tuple[CheckConfig, ...] = ()
    """Score every held-out answer with these checks, against the row's `reference`; see docs/evaluation.md."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        refuse_same_names(self.checks)
        return self


class SuiteConfig(Section):
    """The user's own suite for `lion-ray eval`: rows, and the checks that score the answers to them."""

    rows: str
    """The instructions with their references: a file like the pool's, relative to this one, or hf:NAME[:SPLIT]."""
    checks: tuple[CheckConfig, ...]
    """Score every answer with these checks; see docs/evaluation.md."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; null: the target's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling's mass; null: the target's own."""
    max_tokens: int | None = Field(None, ge=1)
    """The longest answer, in tokens; null: the target's own."""

    @model_validator(mode="after")
    def _names_differ(self) -> SuiteConfig:
        if not self.checks:  # not a length constraint of the field, which would also count an invalid check as missing
            raise ValueError("checks: empty; add at least one")
        refuse_same_names(self.checks)
        return self


def check_name(check: CheckConfig) -> str:
    """A check's name: the configured one, else its type or its function's name."""
    if check.name is not None:
        return check.name
    return check.import_path.rpartition(":")[2] if isinstance(check, OwnCheck) else check.type


def refuse_same_names(checks: tuple[CheckConfig, ...]) -> None:
    """Raises ValueError if two checks have the same name."""
    names = [check_name(check) for check in checks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"checks: two are called '{twice}'; give each a different `name`")


def schema_problem(schema: Any) -> str | None:
    """Why a value is not a JSON Schema. Returns None if it is one."""
    from jsonschema import SchemaError, validators

    if not isinstance(schema, dict):
        return "not a JSON Schema: it must be an object"
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"not a JSON Schema: {error.message[:200]}{f' (at {where})' if where else ''}".replace("\n", " ")
    except (RecursionError, ValueError, TypeError) as error:
        return f"not a JSON Schema: {type(error).__name__}"
    return None
