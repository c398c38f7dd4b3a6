"""What `lion-ray submit` takes along for the checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lion_ray.config import RunConfig
from lion_ray.config.file import LoadedConfig
from lion_ray.core.errors import ConfigError
from lion_ray.pipeline.submit import check_paths, config_files


def test_a_schema_and_a_module_beside_the_configuration_go_along(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(i, a, r): return 1\n")
    (tmp_path / "package").mkdir()
    checks = [
        {"type": "json_schema", "schema": "schemas/one.json"},
        {"import_path": "mine:f"},
        {"import_path": "package.inner:g"},
        {"import_path": "installed:h"},
    ]
    config = RunConfig.model_validate(
        {
            "run_name": "r",
            "data": {"pool": "p.jsonl", "heldout": 4},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "s"},
            "evaluation": {"checks": checks},
            "tracking": [{"type": "tensorboard"}, {"import_path": "mine:Tracker"}, {"import_path": "installed:T"}],
        }
    )
    assert list(config_files(LoadedConfig(config, tmp_path, "run.yaml"))) == [
        ("data.pool", "p.jsonl"),
        ("evaluation.checks.0.schema", "schemas/one.json"),
        ("evaluation.checks.1.import_path", "mine.py"),
        ("evaluation.checks.2.import_path", "package"),
        ("tracking.1.import_path", "mine.py"),
    ]


def test_a_folder_of_event_files_would_be_lost_with_the_job(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "run_name": "r",
            "storage_path": "/shared/runs",
            "data": {"pool": "hf:pool"},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "s"},
            "tracking": [{"type": "tensorboard", "folder": "logs"}],
        }
    )
    with pytest.raises(ConfigError, match=r"^run\.yaml: tracking\.0\.folder: 'logs' would be lost") as raised:
        check_paths(LoadedConfig(config, tmp_path, "run.yaml"))
    assert "\n" not in str(raised.value)
