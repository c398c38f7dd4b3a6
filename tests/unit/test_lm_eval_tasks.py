"""The tasks for lm-eval: they cover every suite, their files are what the code makes, they score as `eval score`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lion_ray.core.errors import ConfigError
from lion_ray.evaluation.benchmarks.lm_eval_tasks import FOLDER, TEMPLATE, task_name, utils, yaml_files
from lion_ray.evaluation.benchmarks.protocol import SUITES, load_suite
from lion_ray.evaluation.benchmarks.recorded import score
from tests.unit.test_benchmarks import bbh_file


class Loader(yaml.SafeLoader):
    """YAML with lm-eval's `!function module.name`."""


Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def parsed(name: str) -> dict[str, Any]:
    found = yaml.load((FOLDER / name).read_text(), Loader)
    assert isinstance(found, dict)
    return found


def test_the_files_are_those_that_the_code_makes() -> None:
    made = dict(yaml_files())
    assert {path.name for path in FOLDER.glob("*.yaml")} == set(made)
    assert all((FOLDER / name).read_text() == text for name, text in made.items()), "run it with --write"


def test_every_task_of_every_suite() -> None:
    template = parsed(TEMPLATE)
    for key in ("custom_dataset", "process_results"):
        assert hasattr(utils, template[key].removeprefix("!function utils."))
    for suite, tasks in SUITES.items():
        group = parsed(f"_lion_{suite}.yaml")
        assert group["task"] == [task_name(suite, task) for task in tasks]
        assert len(group["task"]) == {"bbh": 23, "agieval": 8}[suite]
        means = {one["metric"]: one["weight_by_size"] for one in group["aggregate_metric_list"]}
        assert means == {"published": False, "standing": False}
        for task in tasks:
            one = parsed(f"{task_name(suite, task)}.yaml")
            assert one["include"] == TEMPLATE
            assert one["dataset_kwargs"] == {"suite": suite, "task": task}
            assert one["task"] == task_name(suite, task)


def test_questions_and_letters_are_those_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bbh_file(tmp_path / "bbh", "navigate", [{"input": f"Go {n}. Back?", "target": "No"} for n in range(3)])
    monkeypatch.setenv("LION_BBH", str(tmp_path / "bbh"))
    rows = utils.questions("bbh", "navigate")["test"].to_list()
    loaded = load_suite("bbh", tmp_path / "bbh")
    assert [row["id"] for row in rows] == [one.id for one in loaded]
    assert [row["prompt"] for row in rows] == [one.prompt() for one in loaded]
    assert utils.questions("bbh", "navigate", data=str(tmp_path / "bbh"), version=1.0)["test"].num_rows == len(loaded)
    said = {row["id"]: ("Because (B)", "(A)", "Certainly B", "none")[n % 4] for n, row in enumerate(rows)}
    for way in ("published", "standing"):
        mean = sum(utils.letters(row, [said[row["id"]]])[way] for row in rows) / len(rows)
        assert mean == score("bbh", loaded, said, way).mean
    with pytest.raises(ConfigError, match="the file of snarks is missing"):
        utils.questions("bbh", "snarks")
    monkeypatch.delenv("LION_BBH")
    with pytest.raises(ConfigError, match="LION_BBH is not set"):
        utils.questions("bbh", "navigate")


def test_the_folder_is_told() -> None:
    command = [sys.executable, "-m", "lion_ray.evaluation.benchmarks.lm_eval_tasks"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert (Path(told) / TEMPLATE).is_file()
    assert json.dumps(told) == json.dumps(str(FOLDER))
