"""`lion-ray eval --suite FILE` with checks: against a stub endpoint, and for a run with the run's own checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from lion_ray.config import RunConfig
from lion_ray.core.errors import BudgetError, ConfigError, DataError
from lion_ray.evaluation.checks import check_notes, check_suite, check_tables, own_suite, run_suite
from tests.gateway.test_eval_cli import configuration, lion_ray
from tests.gateway.test_evaluation import PRICES, participant, place, quiet, said
from tests.run_folder import RunFolder
from tests.stub_api import Answer, StubAPI

ROWS = [{"instruction": f"What is {n} plus {n}?", "reference": 2 * n} for n in range(8)]


def adding(body: dict[str, Any]) -> Answer:
    """Right for even numbers, one too many for odd ones."""
    number = int(said(body).split()[2])
    return Answer(f"It is {2 * number + number % 2}.")


def suite(folder: Path, given: list[dict[str, Any]] = ROWS, **changes: Any) -> Path:
    (folder / "sums").mkdir(exist_ok=True)
    (folder / "sums" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    written = {"rows": "sums/rows.jsonl", "checks": [{"type": "number"}, {"type": "regex", "pattern": "^It is"}]}
    path = folder / "sums.yaml"
    path.write_text(yaml.safe_dump(written | changes))
    return path


async def test_a_suite_of_ones_own(stub: StubAPI, tmp_path: Path) -> None:
    stub.answer = adding
    target = participant(stub, "student", prices=PRICES)
    plan = own_suite(suite(tmp_path, temperature=0.0, max_tokens=7), target, None, 1.0)
    assert (plan.target.temperature, plan.target.max_tokens) == (0.0, 7)
    found = await check_suite(plan, place(tmp_path, target), quiet())
    checks = found.json["checks"]
    assert checks["mean"]["value"] == 0.75
    assert checks["mean"]["low"] < 0.75 < checks["mean"]["high"]
    assert {name: one["value"] for name, one in checks["by_check"].items()} == {"number": 0.5, "regex": 1.0}
    assert found.json["cost"]["target"]["bought"] == 8
    assert found.json["cost"]["target"]["usd"] > 0
    assert json.loads(Path(found.path).read_text()) == found.json
    rows = pq.read_table(Path(found.path).with_suffix(".parquet")).to_pylist()
    assert [row["reference"] for row in rows] == [str(2 * n) for n in range(8)]
    assert [row["score"] for row in rows] == [1.0, 0.5] * 4
    assert [column.header for column in check_tables(found.json)[0].columns][1:] == [
        "answers",
        "mean score",
        "95 % interval",
    ]
    assert check_notes(found.json) == []
    again = await check_suite(plan, place(tmp_path, target), quiet())
    assert again.json["cost"]["target"]["bought"] == 0, "the journal has it"
    assert again.json["checks"] == checks


async def test_a_part_of_it_what_failed_and_what_cannot_be_scored(stub: StubAPI, tmp_path: Path) -> None:
    stub.answer = lambda body: Answer("") if "2 plus" in said(body) else adding(body)
    rows: list[dict[str, Any]] = [*ROWS[:5], {"instruction": "What is 9 plus 9?"}]
    target = participant(stub, "student")
    plan = own_suite(suite(tmp_path, rows), target, None, None)
    found = await check_suite(plan, place(tmp_path, target), quiet())
    checks = found.json["checks"]
    assert (checks["rows"], checks["scored"]) == (6, 4)
    assert checks["quarantined"] == {"check number: no reference": 1}
    assert sum(checks["unanswered"].values()) == 1
    assert found.json["cost"]["target"]["usd"] is None, "no price is known"
    assert check_notes(found.json)[0].startswith("not scored: 2 of 6 (1 × no answer: ")
    limited = await check_suite(replace(plan, limit=2), place(tmp_path, target), quiet())
    assert limited.json["checks"]["rows"] == 2
    assert check_notes(limited.json)[-1] == "only 2 of the suite's 6 rows were used"


async def test_what_ends_it_in_one_line(stub: StubAPI, tmp_path: Path) -> None:
    stub.answer = adding
    target = participant(stub, "student", prices=PRICES)
    where = place(tmp_path, target)
    plan = own_suite(suite(tmp_path, [{"instruction": "x"}]), target, None, None)
    with pytest.raises(
        ConfigError, match=r"1 of 1 rows cannot be scored, the first at sums/rows\.jsonl:1 \(check number"
    ):
        await check_suite(plan, where, quiet())
    assert stub.stats()["total"] == 0, "nothing was bought"
    (tmp_path / "own_checks_eval.py").write_text("def bad(i, a, r):\n    raise ValueError(a)\n")
    broken = suite(tmp_path, checks=[{"import_path": "own_checks_eval:bad"}])
    with pytest.raises(DataError, match=r"none of 8 answers could be scored: 1 × check bad: raised ValueError"):
        await check_suite(own_suite(broken, target, None, None), where, quiet())
    with pytest.raises(BudgetError, match="raise --budget"):
        await check_suite(
            own_suite(suite(tmp_path), participant(stub, "other", prices=PRICES), None, 1e-9), where, quiet()
        )


@pytest.mark.parametrize(
    ("changes", "said_"),
    [
        ({"checks": []}, "checks: empty; add at least one"),
        ({"checks": [{"type": "exakt"}]}, "checks.0: type: given the text"),
        ({"chekcs": 1}, "chekcs: unknown key; did you mean checks?"),
        ({"rows": "absent.jsonl"}, "absent.jsonl: no such file"),
        (
            {"checks": [{"import_path": "absent_module_q:f"}]},
            "checks.0.import_path: absent_module_q:f cannot be imported",
        ),
    ],
)
def test_mistakes_in_a_suite(stub: StubAPI, tmp_path: Path, changes: dict[str, Any], said_: str) -> None:
    with pytest.raises(ConfigError) as caught:
        own_suite(suite(tmp_path, **changes), participant(stub, "m"), None, None)
    assert said_ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_runs_own_checks_and_when_they_are_meant(stub: StubAPI, tmp_path: Path) -> None:
    checked = RunFolder(tmp_path / "run", config={"evaluation": {"checks": [{"type": "number"}]}})
    suite(tmp_path)
    rows = str(tmp_path / "sums" / "rows.jsonl")
    config: RunConfig = checked.settings
    target = replace(participant(stub, "student"), run=checked.store, run_config=config)
    plan = run_suite(rows, target, None, None)
    assert plan is not None
    assert (plan.suite, list(plan.names), plan.rows.num_rows) == ("rows", ["number"], 8)
    assert run_suite("vicuna80", target, None, None) is None
    assert run_suite("no-such-suite", target, None, None) is None
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": "a", "text": "Who?"}\n')
    assert run_suite(str(questions), target, None, None) is None, "a suite for a judge, as before"
    assert run_suite(rows, participant(stub, "student"), None, None) is None, "no run, no checks"
    without = RunFolder(tmp_path / "other")
    assert run_suite(rows, replace(target, run=without.store, run_config=without.settings), None, None) is None


async def test_the_command(stub: StubAPI, tmp_path: Path) -> None:
    stub.answer, stub.api_key = adding, "sk-planted"
    config = configuration(tmp_path / "mine.yaml", stub)
    command: list[Any] = [f"{config}:student", "--suite", suite(tmp_path), "--budget", "1"]
    code, out, err = await lion_ray(*command, cwd=tmp_path)
    assert code == 0, err
    assert "0.750" in out
    assert "all checks" in out
    code, out, err = await lion_ray(*command, "--json", cwd=tmp_path)
    assert code == 0, err
    assert json.loads(out)["checks"]["mean"]["value"] == 0.75
    code, _, err = await lion_ray(*command, "--judge", f"{config}:judge", cwd=tmp_path)
    assert code == 2
    assert "is scored by checks" in err
    code, _, err = await lion_ray(f"{config}:student", "--suite", "no-such", cwd=tmp_path)
    assert code == 2
    assert "--reference is missing" in err
