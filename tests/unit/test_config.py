"""The configuration's file: what it accepts, and how plainly it tells a mistake."""

from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import DiscriminationConfig, RunConfig
from lion_ray.config.file import describe, differences, load_config
from lion_ray.config.keys import reference
from lion_ray.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))

MINIMAL = """\
run_name: small
data:
  pool: pool.jsonl
endpoints:
  default:
    model: big
student:
  model: ./small
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def mistakes(path: Path, text: str | None = None, *overrides: str) -> list[str]:
    """The lines of the ConfigError that loading raises, without the path."""
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "pydantic" not in str(caught.value)
    assert "http" not in str(caught.value)
    return [line.replace(str(path), "FILE") for line in str(caught.value).split("\n")]


def test_every_key_is_described_in_one_line() -> None:
    docs = describe()
    assert {"run_name", "endpoints.NAME.serve.model", "imitation.lora.rank"} <= {doc.key for doc in docs}
    for doc in docs:
        assert doc.description.strip(), doc.key
        assert "\n" not in doc.description, doc.key
        assert doc.type, doc.key


def test_reference_says_type_range_and_default() -> None:
    docs = {doc.key: doc for doc in describe()}
    assert docs["run_name"].default == "required"
    assert docs["data.limit"][1:3] == ("a whole number at least 1 or null", "null")
    assert docs["imitation.precision"][1:3] == ("one of auto, bf16, fp32", "auto")
    assert docs["endpoints.NAME.json_schema"][1:3] == ("true or false", "false")
    assert docs["teacher.temperature"].type == "a number at least 0 and at most 2"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_parse(path: Path) -> None:
    loaded = load_config(path, [])
    assert loaded.base_dir == path.parent
    assert loaded.source == str(path)


def test_all_four_configs_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"demo", "lion-7b", "lion-13b", "domain-lora"}


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_lion_is_the_papers_recipe(size: str) -> None:
    config = load_config(ROOT / "configs" / f"lion-{size}.yaml", []).config
    assert config.student.model == f"huggyllama/llama-{size}"
    assert config.data.pool == "hf:tatsu-lab/alpaca"
    assert (config.iterations, config.generation.hard, config.generation.easy) == (3, 3000, 3000)
    assert config.discrimination.tau == 1.0
    fit = config.imitation
    assert (fit.epochs, fit.learning_rate, fit.schedule, fit.warmup_ratio) == (3, 2e-5, "cosine", 0.03)
    assert (fit.batch_size, fit.max_length, fit.precision, fit.weight_decay) == (128, 1024, "bf16", 0)
    assert (fit.workers, fit.sharding, fit.lora) == (8, "full", None)
    assert (config.teacher.temperature, config.teacher.max_tokens) == (0.7, 1024)
    assert (config.referee.temperature, config.referee.max_tokens) == (0.2, 512)
    assert (config.generator.temperature, config.generator.top_p, config.generator.tokens_per_word) == (1, 1, 4)
    roles = (config.teacher, config.referee, config.generator)
    assert {config.endpoints[role.endpoint].model for role in roles} == {"gpt-3.5-turbo"}
    assert (config.student.top_k, config.generator.min_tokens) == (50, 1)
    frame = (ROOT / "configs" / config.student.prompt).read_text()
    assert frame.endswith("### Response:\n"), "the published student is asked so, to the last new line"
    assert config.data.heldout, "or nothing shows whether the student got better"


def test_demo_needs_no_key_and_no_hub() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", []).config
    assert config.student.model.startswith("bundled:")
    for endpoint in config.endpoints.values():
        assert endpoint.api_key_env is None
        assert endpoint.serve is not None
        assert endpoint.serve.model.startswith("bundled:")


def test_overrides_are_yaml_and_make_sections(config_path: Path) -> None:
    overrides = [
        "imitation.lora.rank=8",
        "imitation.lora.target_modules=[q_proj, v_proj]",
        "imitation.learning_rate=1e-4",
        "endpoints.default.api_key_env=null",
        "endpoints.judge={model: other}",
        "referee.endpoint=judge",
        "data.heldout=held.jsonl",
        "iterations=2",
        "iterations=4",
    ]
    config = load_config(config_path, overrides).config
    assert config.imitation.lora is not None
    assert (config.imitation.lora.rank, config.imitation.lora.target_modules) == (8, ("q_proj", "v_proj"))
    assert config.imitation.learning_rate == 1e-4
    assert config.endpoints["default"].api_key_env is None
    assert config.endpoints["judge"].model == "other"
    assert config.data.heldout == "held.jsonl"
    assert config.iterations == 4, "the last one holds"
    without = load_config(config_path, ["imitation.lora.rank=8", "imitation.lora=null"]).config
    assert without.imitation.lora is None


def test_later_imitations_may_learn_more_slowly(config_path: Path) -> None:
    same, slower = (
        load_config(config_path, overrides).config.imitation
        for overrides in (["imitation.learning_rate=1e-4"], ["imitation.later_learning_rate=1e-6"])
    )
    assert [same.of_iteration(k).learning_rate for k in (1, 2)] == [1e-4, 1e-4]
    assert [slower.of_iteration(k).learning_rate for k in (1, 2, 3)] == [2e-5, 1e-6, 1e-6]
    assert slower.of_iteration(2).epochs == slower.epochs


def test_anchors_and_merges(config_path: Path) -> None:
    text = MINIMAL.replace("  default:\n", "  default: &one\n").replace(
        "student:", "  second:\n    <<: *one\n    model: other\n  third: *one\n  fourth:\n    <<: *one\nstudent:"
    )
    config_path.write_text(text)
    endpoints = load_config(config_path, []).config.endpoints
    assert [endpoint.model for endpoint in endpoints.values()] == ["big", "other", "big", "big"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("imitation:\n  epoch: 3", "FILE:10: imitation.epoch: unknown key; did you mean epochs?"),
        ("tau: 1", "FILE:9: tau: unknown key here; there is discrimination.tau"),
        ("qqqq: 1", "FILE:9: qqqq: unknown key; remove it"),
        ("iterations: many", 'FILE:9: iterations: given the text "many"; wanted a whole number at least 0'),
        ("iterations: 2.5", "FILE:9: iterations: given the number 2.5; wanted a whole number at least 0"),
        ("iterations: yes", "FILE:9: iterations: given true; wanted a whole number at least 0"),
        ("iterations: -1", "FILE:9: iterations: given the number -1; wanted a whole number at least 0"),
        ("storage_path: 7", "FILE:9: storage_path: given the number 7; wanted text"),
        ("storage_path: 2024-01-01\nseed: x", 'FILE:10: seed: given the text "x"; wanted a whole number'),
        ("teacher:", "FILE:9: teacher: given nothing (null); wanted a section"),
        (
            "imitation:\n  precision: bf17",
            'FILE:10: imitation.precision: given the text "bf17"; wanted one of auto, bf16, fp32; did you mean bf16?',
        ),
        (
            "teacher:\n  temperature: 3",
            "FILE:10: teacher.temperature: given the number 3; wanted a number at least 0 and at most 2",
        ),
        (
            "imitation:\n  lora:\n    target_modules: [1]",
            "FILE:11: imitation.lora.target_modules: given a list; wanted text or a list of text",
        ),
        ("teacher:\n  endpoint: x", "FILE:10: teacher.endpoint: no endpoint is called 'x' (there is default)"),
        ("generation: {hard: 0, easy: 0}", "FILE:9: generation: hard and easy are both 0: nothing would be generated"),
        ("seed: 1\nseed: 2", "FILE:10: seed: written twice, first in line 9; keep one"),
        ("seed: [1", "FILE:10: expected ',' or ']', but got '<stream end>'"),
        ("journal: s3: x", "FILE:9: mapping values are not allowed here; a text that holds ': ' needs quotes"),
    ],
)
def test_a_mistake_is_one_line(config_path: Path, written: str, expected: str) -> None:
    assert mistakes(config_path, MINIMAL + written + "\n") == [expected]


CHECKS = MINIMAL.replace("pool.jsonl\n", "pool.jsonl\n  heldout: 9\n") + "evaluation:\n  checks:\n"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "type: exakt",
            'FILE:12: evaluation.checks.0: type: given the text "exakt"; wanted one of exact, contains, regex, number, '
            "json, json_schema, json_fields; did you mean exact?",
        ),
        (
            "type: exact\n    ignore_cas: true",
            "FILE:13: evaluation.checks.0.ignore_cas: unknown key; did you mean ignore_case?",
        ),
        (
            "type: number\n    tolerance: -1",
            "FILE:13: evaluation.checks.0.tolerance: given the number -1; wanted a number at least 0",
        ),
        (
            "type: regex\n    pattern: '('",
            "FILE:13: evaluation.checks.0.pattern: not a regular expression: missing ), unterminated subpattern at "
            "position 0; correct it",
        ),
        (
            "type: json_schema\n    schema: {type: 3}",
            "FILE:13: evaluation.checks.0.schema: not a JSON Schema: 3 is not valid under any of the given schemas (at "
            "['type'])",
        ),
        (
            "import_path: mine",
            'FILE:12: evaluation.checks.0.import_path: given the text "mine"; wanted package.module:name',
        ),
        (
            "type: json\n  - type: json",
            "FILE:11: evaluation.checks: two are called 'json'; give each a different `name`",
        ),
        (
            "name: x",
            "FILE:12: evaluation.checks.0: type: missing; add it, one of exact, contains, regex, number, json, "
            "json_schema, json_fields, or import_path",
        ),
    ],
)
def test_a_mistake_in_a_check_is_one_line(config_path: Path, written: str, expected: str) -> None:
    assert mistakes(config_path, f"{CHECKS}  - {written}\n") == [expected]


def test_checks_survive_their_own_dump_and_make_another_run(config_path: Path) -> None:
    config_path.write_text(
        CHECKS + "  - {type: json_schema, schema: {type: object}}\n  - {import_path: a.b:c, name: mine}\n"
    )
    config = load_config(config_path).config
    dump = config.model_dump(mode="json")
    assert RunConfig.model_validate(dump) == config
    assert dump["evaluation"]["checks"][0]["schema"] == {"type": "object"}
    assert differences(dump, dump) == []
    older = {key: value for key, value in dump.items() if key != "evaluation"}
    assert differences(older, dump) == ["evaluation.checks"]
    assert differences(older, dump | {"evaluation": {"checks": []}}) == []


def test_checks_need_a_held_out_set(config_path: Path) -> None:
    (line,) = mistakes(config_path, None, "evaluation.checks=[{type: json}]")
    assert "evaluation.checks: data.heldout is 0" in line or "data.heldout is 0, so there is nothing to check" in line


def test_a_short_section_lists_its_keys(config_path: Path) -> None:
    text = MINIMAL.replace("  pool: pool.jsonl\n", "  pool: pool.jsonl\n  zzz: 1\n")
    keys = "pool, heldout, limit, on_bad_row, decontaminate, licence, source"
    expected = f"FILE:4: data.zzz: unknown key; the keys here are {keys}"
    assert mistakes(config_path, text) == [expected]


def test_all_mistakes_are_told_in_the_files_order(config_path: Path) -> None:
    text = "run_name: a b\ndata:\n  limit: 0\nendpoints: {}\nstudent:\n  model: 3\n  dtype: int8\n"
    assert [line.split(": ")[:2] for line in mistakes(config_path, text, "seed=x")] == [
        ["FILE:1", "run_name"],
        ["FILE:2", "data.pool"],
        ["FILE:3", "data.limit"],
        ["FILE:4", "endpoints"],
        ["FILE:6", "student.model"],
        ["FILE:7", "student.dtype"],
        ["FILE, override seed", 'given the text "x"; wanted a whole number'],
    ]


def test_missing_sections_say_what_to_add(config_path: Path) -> None:
    assert mistakes(config_path, "run_name: a\n") == [
        "FILE: data: missing; add this section with at least pool",
        "FILE: endpoints: missing; add this section with at least NAME: {model}",
        "FILE: student: missing; add this section with at least model",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "FILE: the file is empty; start from configs/demo.yaml"),
        (b"# nothing\n", "FILE: the file is empty; start from configs/demo.yaml"),
        (b"- 1\n", "FILE:1: wanted keys with values, such as run_name: demo"),
        (b"run_name: \xff\n", "FILE: not UTF-8 text (byte 10); save it as UTF-8"),
        (
            b"data:\n\tpool: x\n",
            "FILE:2: found character '\\t' that cannot start any token; indent with spaces, not tabs",
        ),
        (b"a: &x\n  b: *x\n", "FILE:1: an anchor contains its own alias; remove it"),
        (b"a: 1\n--- \nb: 2\n", "FILE:2: but found another document"),
        (b"a: !!python/object:os.system x\n", None),
    ],
)
def test_files_that_are_no_config(config_path: Path, content: bytes, expected: str | None) -> None:
    config_path.write_bytes(content)
    lines = mistakes(config_path)
    assert len(lines) == 1
    assert lines[0].startswith("FILE")
    if expected is not None:
        assert lines[0] == expected


def test_missing_file(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "none.yaml") == ["FILE: no such file; give the path of a .yaml configuration"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "override 'seed': wanted key=value, such as imitation.epochs=2"),
        ("=3", "override : wanted key=value, such as imitation.epochs=2"),
        ("data..pool=3", "override data..pool: wanted key=value, such as imitation.epochs=2"),
        ("seed=", "override seed: the value is empty; write seed=null or seed='\"\"'"),
        ("seed=[1", "override seed: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("data.pool.x=1", 'override data.pool.x: data.pool is the text "pool.jsonl", not a section'),
        ("imitation.epoch=1", "FILE, override imitation.epoch: unknown key; did you mean epochs?"),
        (
            "student={dtype: float32}",
            "FILE, override student: student.model: missing; add it, text: "
            "The model to start from: a folder, a hub name, or bundled:NAME.",
        ),
    ],
)
def test_wrong_overrides(config_path: Path, override: str, expected: str) -> None:
    assert mistakes(config_path, None, override) == [expected]


@pytest.mark.parametrize("override", ["endpoints.default.api_key_env=sk-abc123", "endpoints.default.api_key=sk-abc123"])
def test_a_key_in_the_config_is_refused_and_not_repeated(config_path: Path, override: str) -> None:
    (line,) = mistakes(config_path, None, override)
    assert "api_key_env" in line
    assert "abc123" not in line


def dumped(path: Path, *overrides: str) -> dict[str, Any]:
    return load_config(path, overrides).config.model_dump(mode="json")


def test_differences_ignore_operational_fields(config_path: Path) -> None:
    operational = [
        "storage_path=elsewhere",
        "placement=dedicated",
        "student.min_engines=4",
        "imitation.workers=2",
        "endpoints.default.max_concurrency=1",
        "endpoints.default.base_url=http://127.0.0.1:1/v1",
    ]
    assert differences(dumped(config_path), dumped(config_path, *operational)) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=1", "student.dtype=float32"], ["seed", "student.dtype"]),
        (["endpoints.default.model=x"], ["endpoints.default.model"]),
        (["endpoints.more={model: x}"], ["endpoints.more"]),
        (["imitation.lora.rank=8"], ["imitation.lora"]),
        (["endpoints.default.serve={model: x}"], ["endpoints.default.serve"]),
        (["data.heldout=5"], ["data.heldout"]),
    ],
)
def test_differences_name_what_makes_another_run(config_path: Path, overrides: list[str], expected: list[str]) -> None:
    one, other = dumped(config_path, "student.dtype=float16"), dumped(config_path, "student.dtype=float16", *overrides)
    assert differences(one, other) == expected
    assert differences(other, one) == expected


@pytest.mark.parametrize("key", ["student.dtype=float16", "imitation.precision=bf16"])
def test_what_is_left_to_the_machine_makes_no_other_run(config_path: Path, key: str) -> None:
    left, chosen = dumped(config_path), dumped(config_path, key)
    assert differences(left, chosen) == []
    assert differences(chosen, left) == [], "a run of before, whose default was this type, goes on"


def test_differences_inside_optional_sections(config_path: Path) -> None:
    serve = ["endpoints.default.serve={model: x, dtype: bfloat16}", "imitation.lora.target_modules=[a]"]
    one = dumped(config_path, *serve)
    changed = [*serve, "endpoints.default.serve.dtype=float32", "imitation.lora.rank=4"]
    keys = ["endpoints.default.serve.dtype", "imitation.lora.rank"]
    assert differences(one, dumped(config_path, *changed)) == keys
    assert differences(one, dumped(config_path, *serve, "endpoints.default.serve.num_gpus=1")) == []


def test_differences_across_dumps_and_versions(config_path: Path) -> None:
    config = load_config(config_path, ["imitation.lora.target_modules=[a]"]).config
    python, through_json = config.model_dump(), config.model_dump(mode="json")
    assert differences(python, through_json) == [], "tuples and lists are the same"
    older = {key: value for key, value in through_json.items() if key not in ("seed", "generation")}
    assert differences(older, through_json) == [], "what an older version did not know counts as its default"
    assert differences({**through_json, "gone": 1}, through_json) == ["gone"]
    del older["data"]
    assert differences(older, through_json) == ["data"]


def test_a_config_survives_its_own_dump(config_path: Path) -> None:
    config = load_config(config_path, []).config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("rows", "expected"), [(10, 64), (16_384, 64), (16_385, 128), (52_000, 256), (1_000_000, 512)])
def test_shards_grow_with_the_pool_unless_said(config_path: Path, rows: int, expected: int) -> None:
    config = load_config(config_path).config
    assert config.rows_per_shard(rows) == expected
    assert config.model_copy(update={"shard_rows": 7}).rows_per_shard(rows) == 7


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ([], 1),
        (["student.min_engines=0"], 1),
        (["student.min_engines=3"], 3),
        (["student.min_engines=0", "student.max_engines=8"], 8),
    ],
)
def test_how_many_engines_there_may_be(config_path: Path, overrides: list[str], most: int) -> None:
    assert load_config(config_path, overrides).config.student.most_engines == most


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize(
    "key",
    [
        "discrimination.tau",
        "teacher.temperature",
        "imitation.learning_rate",
        "budget.usd",
        "endpoints.default.timeout_s",
        "seed",
        "run_name",
        "evaluation.checks",
        "no.such.key",
    ],
)
def test_no_key_takes_a_number_that_is_none(config_path: Path, key: str, value: str) -> None:
    written = f"{{a: [1, {{b: {value}}}]}}" if key == "evaluation.checks" else value
    told = mistakes(config_path, None, f"{key}={written}")
    assert any("wanted a finite number" in line or "wanted a smaller one" in line for line in told), told


def test_a_section_made_in_code_takes_none_either() -> None:
    with pytest.raises(ValueError, match="finite"):
        DiscriminationConfig(tau=float("nan"))


def test_fewer_engines_at_most_than_at_least(config_path: Path) -> None:
    (line,) = mistakes(config_path, None, "student.min_engines=3", "student.max_engines=2")
    assert "max_engines (2) is less than min_engines (3)" in line


def test_what_an_endpoint_takes_may_change_between_attempts(config_path: Path) -> None:
    keys = ["omit=[top_p]", "extra_body={thinking: {type: disabled}}", "system_role=user", "finish_reasons={fin: stop}"]
    plain = load_config(config_path).config
    changed = load_config(config_path, [f"endpoints.default.{key}" for key in keys]).config
    endpoint = changed.endpoints["default"]
    assert (endpoint.omit, endpoint.extra_body) == (("top_p",), {"thinking": {"type": "disabled"}})
    assert (endpoint.system_role, endpoint.finish_reasons) == ("user", {"fin": "stop"})
    assert differences(plain.model_dump(mode="json"), changed.model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "name", ["model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "tools"]
)
def test_fields_that_are_not_the_users_to_add(config_path: Path, name: str) -> None:
    lines = mistakes(config_path, None, f"endpoints.default.extra_body={{{name}: 1}}")
    assert "endpoints.default.extra_body" in lines[0]
    assert f"'{name}' is" in lines[0]


@pytest.mark.parametrize("value", [".nan", "-.inf"])
def test_an_added_field_is_json(config_path: Path, value: str) -> None:
    assert (
        "wanted a finite number" in mistakes(config_path, None, f"endpoints.default.extra_body={{field: {value}}}")[0]
    )


def test_only_sampling_can_be_left_out(config_path: Path) -> None:
    assert "endpoints.default.omit" in mistakes(config_path, None, "endpoints.default.omit=[max_tokens]")[0]


def test_the_reference_in_the_docs_is_what_the_models_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "make it anew: python -m lion_ray.config > docs/configuration.md"
    for doc in describe():
        assert f"`{doc.key.rpartition('.')[2]}`" in page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("a: {" * 1500, "nested too deeply"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)), "values"),
        ("seed: " + "1" * 5000, "seed: cannot be read"),
    ],
    ids=["lists", "sections", "aliases of aliases", "digits"],
)
def test_a_file_that_would_never_end_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    """Found by fuzzing."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_an_override_that_is_nested_too_deep_is_told(config_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(config_path, ["imitation=" + "[" * 2000])
