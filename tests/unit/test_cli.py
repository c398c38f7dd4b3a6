"""A user's mistakes, each told in one line, each with its exit code; a stack trace never."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.warm import lion

KEY = "sk-canary-0123456789"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Name a river."}\n{"instruction": "Name a lake."}\n')
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run_name": "r",
                "storage_path": str(tmp_path / "runs"),
                "data": {"pool": "pool.jsonl"},
                "endpoints": {"default": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}},
                "student": {"model": "./student"},
            },
            sort_keys=False,
        )
    )
    return path


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("imitation.epoch=3", 2, ("imitation.epoch", "epochs")),
        ("imitation.epochs=three", 2, ("imitation.epochs", "three")),
        ("imitation.epochs=0", 2, ("imitation.epochs",)),
        ("placement=anywhere", 2, ("placement", "handoff", "dedicated")),
        ("imitation.epochs", 2, ("imitation.epochs", "=")),
        ("teacher.endpoint=gpt", 2, ("teacher.endpoint", "'gpt'", "default")),
        ("data.pool=absent.jsonl", 2, ("absent.jsonl",)),
        ("teacher.prompt=nonsense", 2, ("nonsense", "answer")),
    ],
)
def test_a_wrong_value(config: Path, tmp_path: Path, override: str, code: int, says: Sequence[str]) -> None:
    outcome = lion("plan", str(config), override, cwd=tmp_path)
    assert outcome.code == code
    assert all(word in outcome.message for word in says), outcome.message


def test_a_missing_config(tmp_path: Path) -> None:
    outcome = lion("run", "absent.yaml", cwd=tmp_path)
    assert outcome.code == 2
    assert "absent.yaml" in outcome.message


def test_a_missing_key_is_told_before_anything_starts(config: Path, tmp_path: Path) -> None:
    outcome = lion("run", str(config), cwd=tmp_path)
    assert outcome.code == 4
    assert "OPENAI_API_KEY" in outcome.message
    assert not (tmp_path / "runs").exists()


def test_a_malformed_row_is_named_by_file_and_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Name a river."}\n{"instruction": 7}\n')
    outcome = lion("plan", str(config), cwd=tmp_path)
    assert outcome.code == 3
    assert "pool.jsonl:2" in outcome.message


def test_no_such_student(config: Path, tmp_path: Path) -> None:
    outcome = lion("run", str(config), cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert outcome.code == 5
    assert "student" in outcome.message


def test_no_such_bundled_model(config: Path, tmp_path: Path) -> None:
    outcome = lion("run", str(config), "student.model=bundled:smolm2", cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert outcome.code == 5
    assert "smollm2-135m-instruct" in outcome.message


def test_a_folder_of_another_run(config: Path, tmp_path: Path) -> None:
    known = yaml.safe_load(config.read_text())
    from lion_ray.config import RunConfig

    dumped = RunConfig.model_validate(known).model_dump(mode="json")
    dumped["imitation"]["epochs"] = 5
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": dumped}))
    outcome = lion("run", str(config), cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    assert outcome.code == 7
    assert "imitation.epochs" in outcome.message


def test_an_operational_difference_is_allowed(config: Path, tmp_path: Path) -> None:
    from lion_ray.config import RunConfig

    dumped = RunConfig.model_validate(yaml.safe_load(config.read_text())).model_dump(mode="json")
    dumped["imitation"]["workers"] = 5
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": dumped}))
    # It gets past the folder, as far as the student that is not there.
    assert lion("run", str(config), cwd=tmp_path, env={"OPENAI_API_KEY": KEY}).code == 5


@pytest.mark.parametrize("verb", ["status", "chat"])
def test_no_such_run(tmp_path: Path, verb: str) -> None:
    outcome = lion(verb, "nothing", cwd=tmp_path)
    assert outcome.code == 2
    assert "nothing" in outcome.message


def test_a_checkpoint_that_is_not_there(config: Path, tmp_path: Path) -> None:
    from lion_ray.config import RunConfig

    dumped = RunConfig.model_validate(yaml.safe_load(config.read_text())).model_dump(mode="json")
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": dumped, "base_dir": str(tmp_path)}))
    outcome = lion("chat", str(folder), "--iteration", "2", cwd=tmp_path)
    assert outcome.code == 2
    assert "no checkpoint of iteration 2" in outcome.message


def test_a_cluster_that_is_not_there(config: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        outcome = lion("run", str(config), cwd=tmp_path, env={"OPENAI_API_KEY": KEY, "RAY_ADDRESS": address})
    assert outcome.code == 2
    assert address in outcome.message


def test_plan_counts_what_the_paper_counts(tmp_path: Path, config: Path) -> None:
    rows = "\n".join(json.dumps({"instruction": f"Question number {n}?"}) for n in range(300))
    (tmp_path / "pool.jsonl").write_text(rows)
    changes = ("generation.hard=20", "generation.easy=20", "iterations=2", "imitation.batch_size=100")
    outcome = lion("plan", str(config), *changes, "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    stages = {(stage["iteration"], stage["stage"]): stage for stage in json.loads(outcome.out)["stages"]}
    assert stages[1, "teacher answers the Train Pool"]["calls"] == 300
    assert stages[1, "fine-tuning"]["steps"] == 9
    assert stages[1, "judging the Cache Pool"]["calls"] == 600, "both orders"
    assert stages[2, "judging the Cache Pool"]["calls"] == 680, "the Cache Pool has grown"
    assert stages[3, "fine-tuning"]["rows"] == 40, "a last imitation on the last new rows"
    assert (3, "generating") not in stages


def test_doctor_and_models_answer(tmp_path: Path) -> None:
    doctor = lion("doctor", "--json", cwd=tmp_path, env={"OPENAI_API_KEY": KEY})
    names = {check["name"] for check in json.loads(doctor.out)}
    assert {"python", "ray", "torch", "vllm"} <= {name.lower() for name in names}
    assert KEY not in doctor.out
    models = lion("models", "list", "--json", cwd=tmp_path)
    assert "smollm2-135m-instruct" in {model["name"] for model in json.loads(models.out)}
