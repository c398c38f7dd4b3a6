"""Checks: an answer's quality as a number from 0 to 1, without a judge. Pure: no model; reads no file except a schema.

Invariants:
- No answer of a model makes a check raise: an answer that the check cannot parse (nested too deep, NaN, half a
  character, endless numbers) scores 0.
- A score is measured or it is None. If a reference cannot be used, or a user's function fails on a row, the score is
  None with a reason.
- The same arguments give the same scores in every process. (A user's function must ensure this itself.)

The whole interface is `load_checks` and `apply_checks`. This module does not know what the scores are used for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lion_ray.config.checks import (
    CheckConfig,
    ContainsCheck,
    ExactCheck,
    JsonCheck,
    JsonFieldsCheck,
    JsonSchemaCheck,
    NumberCheck,
    OwnCheck,
    RegexCheck,
    check_name,
    schema_problem,
)
from lion_ray.core.errors import ConfigError
from lion_ray.core.plugins import load_attribute
from lion_ray.core.values import EXACT, NOTHING, agree, json_value, last_number

Measure = Callable[[str, str, str | None], float]
"""(instruction, answer, reference) to a score; raises `_UnusableError` if the row cannot be scored."""

NO_REFERENCE = "no reference"


class Score(NamedTuple):
    """One check's score of one answer."""

    check: str
    """Its name."""
    value: float | None
    """From 0 to 1; None if it could not be measured."""
    problem: str | None = None
    """The reason for a None; details of this row are in parentheses."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check, ready to be applied."""

    name: str
    measure: Measure
    problem: Callable[[str | None], str | None]
    """Why a reference cannot be used. Returns None if it can."""


class _UnusableError(Exception):
    """A row cannot be scored, through no fault of its answer."""


def load_checks(configured: Sequence[CheckConfig], base_dir: Path, where: str = "evaluation.checks") -> list[Check]:
    """The checks that a configuration names.

    Args:
        base_dir: schema paths are relative to it, and modules are also imported from it.
        where: the configuration key of the checks, for errors.

    Raises:
        ConfigError: a schema is invalid or cannot be read, or a function cannot be imported; names the key.
    """
    return [_load(one, base_dir, f"{where}.{number}") for number, one in enumerate(configured)]


def apply_checks(checks: Iterable[Check], instruction: str, answer: str, reference: str | None) -> list[Score]:
    """Each check's score of an answer to an instruction."""
    return [_apply(check, instruction, answer, reference) for check in checks]


def unusable(checks: Iterable[Check], reference: str | None) -> str | None:
    """Why some check cannot score any answer for this reference. Returns None if all can."""
    found = ((check.name, check.problem(reference)) for check in checks)
    return next((f"check {name}: {why}" for name, why in found if why), None)


def mean_score(scores: Sequence[Score]) -> float | None:
    """A row's score: the mean over its checks. Returns None if a check could not be measured or there are no checks."""
    values = [score.value for score in scores if score.value is not None]
    return math.fsum(values) / len(values) if values and len(values) == len(scores) else None


def _apply(check: Check, instruction: str, answer: str, reference: str | None) -> Score:
    if (why := check.problem(reference)) is not None:
        return Score(check.name, None, f"check {check.name}: {why}")
    try:
        return Score(check.name, check.measure(instruction, answer, reference))
    except _UnusableError as error:
        return Score(check.name, None, f"check {check.name}: {error}")
    except RecursionError:
        return Score(check.name, 0.0)  # an answer nested this deep cannot be right


def _load(config: CheckConfig, base_dir: Path, key: str) -> Check:
    name = check_name(config)
    if isinstance(config, OwnCheck):
        return Check(name, _own(_imported(config.import_path, base_dir, key)), lambda _: None)
    if isinstance(config, JsonCheck):
        return Check(name, lambda _, answer, __: float(json_value(answer) is not NOTHING), lambda _: None)
    if isinstance(config, JsonSchemaCheck):
        return Check(name, _fits(_schema(config.schema_, base_dir, f"{key}.schema"), f"{key}.schema"), lambda _: None)
    if isinstance(config, ContainsCheck):
        return Check(name, _contains(config), _optional(config.text))
    if isinstance(config, RegexCheck):
        return Check(name, _matches(config), _optional(config.pattern, _pattern_problem))
    if isinstance(config, NumberCheck):
        return Check(name, _number(config), _needed(_number_problem))
    if isinstance(config, JsonFieldsCheck):
        return Check(name, _json_fields(config), _needed(_object_problem(config.fields)))
    assert isinstance(config, ExactCheck)
    return Check(name, _exact(config), _needed())


# -- references ------------------------------------------------------------------------------------------------------


def _needed(also: Callable[[str], str | None] = lambda _: None) -> Callable[[str | None], str | None]:
    return lambda reference: NO_REFERENCE if reference is None else also(reference)


def _optional(
    own: str | None, also: Callable[[str], str | None] = lambda _: None
) -> Callable[[str | None], str | None]:
    """A check with its own text needs no reference."""
    return _needed(also) if own is None else lambda _: None


def _pattern_problem(reference: str) -> str | None:
    try:
        re.compile(reference)
    except (re.error, RecursionError, OverflowError):
        return "the reference is no regular expression"
    return None


def _number_problem(reference: str) -> str | None:
    return None if last_number(reference) else "the reference holds no number"


def _object_problem(fields: Sequence[str] | None) -> Callable[[str], str | None]:
    def problem(reference: str) -> str | None:
        value = json_value(reference)
        if not isinstance(value, dict):
            return "the reference is no JSON object"
        return "the reference has none of the fields" if fields and not value.keys() & set(fields) else None

    return problem


# -- texts and numbers -----------------------------------------------------------------------------------------------


def _exact(config: ExactCheck) -> Measure:
    def plain(text: str) -> str:
        text = " ".join(text.split()) if config.ignore_whitespace else text.strip()
        return text.casefold() if config.ignore_case else text

    return lambda _, answer, reference: float(plain(answer) == plain(reference or ""))


def _contains(config: ContainsCheck) -> Measure:
    def measure(_: str, answer: str, reference: str | None) -> float:
        wanted = config.text if config.text is not None else (reference or "").strip()
        return float(wanted.casefold() in answer.casefold() if config.ignore_case else wanted in answer)

    return measure


def _matches(config: RegexCheck) -> Measure:
    flags = re.IGNORECASE if config.ignore_case else re.NOFLAG
    return lambda _, answer, reference: float(re.search(config.pattern or reference or "", answer, flags) is not None)


def _number(config: NumberCheck) -> Measure:
    tolerance = Decimal(str(config.tolerance))

    def close(one: Decimal, other: Decimal) -> bool:
        # A difference beyond the exponent range is NaN, which is within no tolerance.
        return one == other or bool(EXACT.abs(EXACT.subtract(one, other)) <= tolerance)

    def measure(_: str, answer: str, reference: str | None) -> float:
        said, wanted = last_number(answer), last_number(reference or "")
        if said is None or wanted is None:
            return 0.0
        if close(said[0], wanted[0]):
            return 1.0
        # 12 % may be written as 0.12: if only one of the two has a percent sign, compare both readings.
        hundredth = Decimal("0.01")
        if said[1] and not wanted[1]:
            return float(close(EXACT.multiply(said[0], hundredth), wanted[0]))
        if wanted[1] and not said[1]:
            return float(close(said[0], EXACT.multiply(wanted[0], hundredth)))
        return 0.0

    return measure


# -- JSON ------------------------------------------------------------------------------------------------------------


def _schema(given: str | dict[str, Any], base_dir: Path, key: str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        schema = json.loads((base_dir / given).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        advice = "give a .json file with a JSON Schema, or the schema itself"
        raise ConfigError(f"{key}: {given}: {why}; {advice}") from None
    if (problem := schema_problem(schema)) is not None:
        raise ConfigError(f"{key}: {given}: {problem}; correct it")
    return dict(schema)


def _fits(schema: dict[str, Any], key: str) -> Measure:
    from jsonschema import validators
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    # An empty registry, because by default jsonschema fetches remote references.
    registry: Any = Registry()
    validator = validators.validator_for(schema, default=validators.Draft202012Validator)(schema, registry=registry)
    resource: Any = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = registry.with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError, KeyError):
            raise ConfigError(
                f"{key}: $ref {reference!r} cannot be resolved; refer only to parts of the schema itself"
            ) from None

    def measure(_: str, answer: str, __: str | None) -> float:
        value = json_value(answer)
        return float(value is not NOTHING and bool(validator.is_valid(value)))

    return measure


def _references(schema: Any, *, outermost: bool = True) -> Iterable[str]:
    """Every `$ref` of a schema, except those below a nested `$id`, which are relative to it."""
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item, outermost=False)
    elif isinstance(schema, dict) and (outermost or not isinstance(schema.get("$id"), str)):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in ("const", "enum", "default", "examples"):
                yield from _references(value, outermost=False)


def _json_fields(config: JsonFieldsCheck) -> Measure:
    def measure(_: str, answer: str, reference: str | None) -> float:
        wanted, given = json_value(reference or ""), json_value(answer)
        if not isinstance(given, dict):
            return 0.0
        # An invented field costs as much as a missing one; otherwise listing every field would pay off.
        compared = (wanted.keys() | given.keys()) if config.fields is None else set(config.fields)
        counted = [field for field in compared if field in wanted or field in given]
        if not counted:
            return 1.0
        right = sum(field in wanted and field in given and agree(wanted[field], given[field]) for field in counted)
        return right / len(counted)

    return measure


# -- a user's own ----------------------------------------------------------------------------------------------------


def _imported(import_path: str, base_dir: Path, key: str) -> Callable[..., Any]:
    found = load_attribute(import_path, base_dir, f"{key}.import_path")
    if not callable(found):
        raise ConfigError(
            f"{key}.import_path: {import_path} is not a function; name one that takes (instruction, answer, reference) "
            "and returns a number from 0 to 1"
        )
    function: Callable[..., Any] = found
    return function


def _own(function: Callable[..., Any]) -> Measure:
    def measure(instruction: str, answer: str, reference: str | None) -> float:
        try:
            value = function(instruction, answer, reference)
            value = value.item() if isinstance(value, np.generic) else value
            score = float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code may raise anything
            detail = " ".join(str(error).split())[:200]
            raise _UnusableError(f"raised {type(error).__name__}{f' ({detail})' if detail else ''}") from None
        if score is None:
            shown = f" ({value:g})" if isinstance(value, float) else ""
            raise _UnusableError(f"returned {type(value).__name__}, not a number from 0 to 1{shown}")
        return score

    return measure
