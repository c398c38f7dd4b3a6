"""The checks: what each counts as right, and that nothing a model may answer breaks one."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lion_ray.config import CheckConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.values import canonical
from lion_ray.discrimination.checks import Check, apply_checks, load_checks, mean_score, unusable

CONFIG: TypeAdapter[Any] = TypeAdapter(CheckConfig)
OBJECT = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
EVERY = (
    {"type": "exact"},
    {"type": "exact", "ignore_case": True, "ignore_whitespace": True},
    {"type": "contains"},
    {"type": "contains", "ignore_case": True},
    {"type": "regex", "pattern": "a+$"},
    {"type": "number"},
    {"type": "number", "tolerance": 0.5},
    {"type": "json"},
    {"type": "json_schema", "schema": OBJECT},
    {"type": "json_fields"},
    {"type": "json_fields", "fields": ["a"]},
)


def loaded(folder: Path = Path(), **config: Any) -> Check:
    return load_checks([CONFIG.validate_python(config)], folder)[0]


def score(answer: str, reference: str | None = None, **config: Any) -> float | None:
    (found,) = apply_checks([loaded(**config)], "the instruction", answer, reference)
    return found.value


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("Paris", "Paris", {}, 1),
        (" Paris\n", "Paris", {}, 1),
        ("paris", "Paris", {}, 0),
        ("paris", "Paris", {"ignore_case": True}, 1),
        ("STRASSE", "straße", {"ignore_case": True}, 1),
        ("a  b", "a b", {}, 0),
        ("a \n b", "a b", {"ignore_whitespace": True}, 1),
        ("Paris.", "Paris", {}, 0),
        ("", "Paris", {}, 0),
    ],
)
def test_exact(answer: str, reference: str, options: dict[str, Any], expected: float) -> None:
    assert score(answer, reference, type="exact", **options) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("It is Paris.", "Paris", {}, 1),
        ("It is paris.", "Paris", {}, 0),
        ("It is paris.", "Paris", {"ignore_case": True}, 1),
        ("It is Rome.", None, {"text": "Rome"}, 1),
        ("It is Rome.", "Paris", {"text": "Rome"}, 1),
        ("a.c", "a.c", {}, 1),
        ("abc", "a.c", {}, 0),
    ],
)
def test_contains(answer: str, reference: str | None, options: dict[str, Any], expected: float) -> None:
    assert score(answer, reference, type="contains", **options) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("The code is AB-12.", None, {"pattern": r"[A-Z]{2}-\d\d"}, 1),
        ("the code is ab-12.", None, {"pattern": r"[A-Z]{2}-\d\d"}, 0),
        ("the code is ab-12.", None, {"pattern": r"[A-Z]{2}-\d\d", "ignore_case": True}, 1),
        ("abc", "a.c", {}, 1),
        ("abc", "^b", {}, 0),
    ],
)
def test_regex(answer: str, reference: str | None, options: dict[str, Any], expected: float) -> None:
    assert score(answer, reference, type="regex", **options) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "expected"),
    [
        ("The answer is 42.", "42", 0, 1),
        ("7 times 6 is 42", "42", 0, 1),
        ("42 is 7 times 6", "42", 0, 0),
        ("1,234.50", "1234.5", 0, 1),
        ("$1,234", "1234", 0, 1),
        ("It costs -$5.", "-5", 0, 1),
        ("between 3-5", "5", 0, 1),
        ("x=-2", "-2", 0, 1),
        ("−7", "-7", 0, 1),
        ("- 3 apples", "3", 0, 1),
        ("+3", "3", 0, 1),
        (".5", "0.5", 0, 1),
        ("1e3", "1000", 0, 1),
        ("#### 72", "He sold 24. #### 72", 0, 1),
        ("H2O", "2", 0, 0),
        ("10kg", "10", 0, 1),
        ("3.14", "3.14159", 0, 0),
        ("3.14", "3.14159", 0.01, 1),
        ("3.1", "3.14159", 0.01, 0),
        ("12%", "12 %", 0, 1),
        ("12 percent", "12%", 0, 1),
        ("12", "12%", 0, 1),
        ("0.12", "12%", 0, 1),
        ("12%", "0.12", 0, 1),
        ("12%", "0.13", 0, 0),
        ("0.1", "0.10000000000000000001", 0, 0),
        ("none", "0", 0, 0),
        ("9" * 400, "9" * 400, 0, 1),
        ("9" * 400, "8" + "9" * 399, 0, 0),
        ("9" * 5000, "1", 0, 0),
        ("1e999999", "1e999999", 0, 1),
        ("1e999999", "1e999998", 5, 0),
        ("1e99999999999", "1", 0, 0),
        ("-1e9999999", "-1e9999999", 0, 1),
        ("-1e9999999", "5", 1, 0),
        ("1e-999999", "0", 0, 0),
        ("-" + "9" * 400, "-" + "9" * 399 + "8", 0, 0),
        ("٣", "3", 0, 0),
    ],
)
def test_number(answer: str, reference: str, tolerance: float, expected: float) -> None:
    assert score(answer, reference, type="number", tolerance=tolerance) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1}', 1),
        (" [1, 2]\n", 1),
        ("null", 1),
        ("3", 1),
        ('```json\n{"a": 1}\n```', 1),
        ('```\n{"a": 1}\n```', 1),
        ('Here:\n```json\n{"a": 1}\n```', 0),
        ('```json\n{"a": 1}\n```\n```json\n{"a": 1}\n```', 0),
        ("{'a': 1}", 0),
        ('{"a": 1} and more', 0),
        ("", 0),
        ("NaN", 0),
        ('{"a": Infinity}', 0),
        ("1e999", 0),
        ('"\\ud800"', 0),
        ('"\\ud83d\\ude00"', 1),
        ('"\ud800"', 0),
        ("[" * 100_000, 0),
        ("[" * 100_000 + "]" * 100_000, 0),
        ("9" * 10_000, 0),
    ],
)
def test_json(answer: str, expected: float) -> None:
    assert score(answer, type="json") == expected


def test_json_schema(tmp_path: Path) -> None:
    (tmp_path / "object.json").write_text(json.dumps(OBJECT))
    for schema in (OBJECT, "object.json"):
        check = loaded(tmp_path, type="json_schema", schema=schema)
        wanted = {'{"a": 1}': 1, '{"a": "1"}': 0, "{}": 0, "no": 0, '```json\n{"a": 2}\n```': 1, '{"a": 1.0}': 1}
        assert {one: apply_checks([check], "", one, None)[0].value for one in wanted} == wanted
    local = {"$defs": {"n": {"type": "number"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}
    assert score("[1]", type="json_schema", schema=local) == 1
    assert score('["1"]', type="json_schema", schema=local) == 0


@pytest.mark.parametrize("reference", ["https://example.com/schema.json", "#/$defs/absent", "other.json"])
def test_a_schema_that_refers_elsewhere_is_refused_and_nothing_is_fetched(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.checks\.0\.schema: \$ref .* cannot be resolved"):
        loaded(type="json_schema", schema={"properties": {"a": {"$ref": reference}}})


@pytest.mark.parametrize(
    ("answer", "reference", "fields", "expected"),
    [
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}, None, 1),
        ({"a": 1.0, "b": "  X "}, {"a": 1, "b": "x"}, None, 1),
        ({"a": 1}, {"a": 1, "b": "x"}, None, 0.5),
        ({"a": 1, "b": "y"}, {"a": 1, "b": "x"}, None, 0.5),
        ({"a": 1, "b": "x", "c": 0}, {"a": 1, "b": "x"}, None, 2 / 3),
        ({"a": 1, "b": "x", "c": 0}, {"a": 1, "b": "x"}, ["a", "b"], 1),
        ({"a": 1, "b": "y"}, {"a": 1, "b": "x"}, ["a"], 1),
        ({"a": 1}, {"a": 1}, ["a", "z"], 1),
        ({"a": 1, "z": 1}, {"a": 1}, ["a", "z"], 0.5),
        ({"a": True}, {"a": 1}, None, 0),
        ({"a": "1"}, {"a": 1}, None, 0),
        ({"a": None}, {"a": None}, None, 1),
        ({}, {"a": None}, None, 0),
        ({"a": {"b": [1, "X"]}}, {"a": {"b": [1.0, "X"]}}, None, 1),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [1, "X"]}}, None, 0),
        ({"a": [True]}, {"a": [1]}, None, 0),
        ({}, {}, None, 1),
        ([1], {"a": 1}, None, 0),
    ],
)
def test_json_fields(answer: Any, reference: Any, fields: list[str] | None, expected: float) -> None:
    found = score(json.dumps(answer), canonical(reference), type="json_fields", fields=fields)
    assert found == pytest.approx(expected)


HOSTILE = (
    "",
    " ",
    "\x00",
    "\ud800",
    '{"a": "\ud800"}',
    '"\\udfff"',
    "NaN",
    "-Infinity",
    "1e999999999",
    "9" * 100_000,
    "." * 9999,
    "[" * 200_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    "[" * 900 + "]" * 900,
    '{"a": ' + "[" * 400 + "]" * 400 + "}",
    "-" * 10_000,
    "-1e9999999",
    "1e-9999999 %",
    "1," * 50_000,
    "$ " * 20_000,
    "%" * 9999,
    "```json\n" * 5000,
    "```json\n" + "`" * 9999,
    "\u202e\u2066",
    '{"a": 1e400}',
    '{"a": ' + "9" * 5000 + "}",
    '{"a": 1, "a": 2}',
    "[bold]x[/]",
    "{{7*7}}",
    "\x1b]8;;x\x07",
    "İ" * 1000,
)


@pytest.mark.parametrize("config", EVERY, ids=lambda config: "-".join(map(str, config.values()))[:40])
@pytest.mark.parametrize("reference", ['{"a": 1}', "1", "x", None, "[" * 900 + "]" * 900])
def test_no_answer_breaks_a_check(config: dict[str, Any], reference: str | None) -> None:
    check = loaded(**config)
    for answer in HOSTILE:
        (found,) = apply_checks([check], "i", answer, reference)
        if found.value is None:
            assert found.problem == unusable([check], reference), "only the reference may be at fault"
        else:
            assert found.problem is None
            assert 0 <= found.value <= 1


@pytest.mark.parametrize(
    ("config", "reference", "why"),
    [
        ({"type": "exact"}, None, "check exact: no reference"),
        ({"type": "contains"}, None, "check contains: no reference"),
        ({"type": "contains", "text": "x"}, None, None),
        ({"type": "regex"}, "(", "check regex: the reference is no regular expression"),
        ({"type": "regex", "pattern": "x"}, "(", None),
        ({"type": "number", "name": "sum"}, "none", "check sum: the reference holds no number"),
        ({"type": "json_fields"}, "[1]", "check json_fields: the reference is no JSON object"),
        (
            {"type": "json_fields", "fields": ["z"]},
            '{"a": 1}',
            "check json_fields: the reference has none of the fields",
        ),
        ({"type": "json"}, None, None),
    ],
)
def test_references_that_cannot_be_used(config: dict[str, Any], reference: str | None, why: str | None) -> None:
    check = loaded(**config)
    assert unusable([check], reference) == why
    (found,) = apply_checks([check], "", "1", reference)
    assert found.problem == why
    assert (found.value is None) == (why is not None)


OWN = """
import sys
def longer(instruction, answer, reference):
    return len(answer) > len(reference)
def broken(instruction, answer, reference):
    return 1 / len(answer)
def text(instruction, answer, reference): return "1"
def nan(instruction, answer, reference): return float("nan")
def two(instruction, answer, reference): return 2.0
def huge(instruction, answer, reference): return 10 ** 6000
def leaves(instruction, answer, reference): sys.exit(3)
def half(instruction, answer, reference):
    import numpy
    return numpy.float32(0.5)
class Inner:
    @staticmethod
    def check(instruction, answer, reference): return 0.25
value = 7
"""


def test_a_users_function(tmp_path: Path) -> None:
    (tmp_path / "own_checks_a.py").write_text(OWN)
    before = list(sys.path)
    wanted = {
        "longer": (1.0, None),
        "broken": (None, "check broken: raised ZeroDivisionError (division by zero)"),
        "text": (None, "check text: returned str, not a number from 0 to 1"),
        "nan": (None, "check nan: returned float, not a number from 0 to 1 (nan)"),
        "two": (None, "check two: returned float, not a number from 0 to 1 (2)"),
        "huge": (None, "check huge: returned int, not a number from 0 to 1"),
        "leaves": (None, "check leaves: raised SystemExit (3)"),
        "half": (0.5, None),
        "Inner.check": (0.25, None),
    }
    checks = [loaded(tmp_path, import_path=f"own_checks_a:{name}") for name in wanted]
    assert sys.path == before
    assert loaded(tmp_path, import_path="own_checks_a:broken", name="mine").name == "mine"
    for check, (value, problem) in zip(checks, wanted.values(), strict=True):
        answer = "" if check.name == "broken" else "longer"
        assert apply_checks([check], "i", answer, "short")[0][1:] == (value, problem)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module_x:f", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module_x')"),
        ("own_checks_b:absent", "has no attribute 'absent'"),
        ("own_checks_b:value", "is not a function"),
        ("own_checks_c:f", "cannot be imported (RuntimeError: at import)"),
        ("own_checks_d:f", "cannot be imported (SystemExit: 4)"),
        ("own_checks_e:f", "cannot be imported (SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_imported(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "own_checks_b.py").write_text(OWN)
    (tmp_path / "own_checks_c.py").write_text("raise RuntimeError('at\\nimport')")
    (tmp_path / "own_checks_d.py").write_text("import sys; sys.exit(4)")
    (tmp_path / "own_checks_e.py").write_text("def f(:")
    with pytest.raises(ConfigError) as caught:
        load_checks([CONFIG.validate_python({"import_path": path})], tmp_path, "run.yaml: evaluation.checks")
    assert str(caught.value).startswith(f"run.yaml: evaluation.checks.0.import_path: {path} ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("{", "not JSON"), ('{"type": 3}', "not a JSON Schema"), ("[]", "not a JSON")],
)
def test_a_schema_file_that_is_none(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(ConfigError, match=r"evaluation\.checks\.0\.schema: s\.json: ") as caught:
        loaded(tmp_path, type="json_schema", schema="s.json")
    assert said in str(caught.value)


def test_a_rows_score_is_a_mean_or_nothing() -> None:
    checks = [loaded(type="exact"), loaded(type="json"), loaded(type="number")]
    assert mean_score(apply_checks(checks, "i", "3", "3")) == 1
    assert mean_score(apply_checks(checks, "i", " 3.0 ", "3")) == pytest.approx(2 / 3)
    assert mean_score(apply_checks(checks, "i", "3", "three")) is None, "one check could not say"
    assert mean_score([]) is None


def test_canonical_json() -> None:
    assert canonical({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'
    for value in (math.nan, math.inf, "\ud800"):
        with pytest.raises(ValueError):
            canonical(value)
