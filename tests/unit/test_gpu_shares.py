"""Which part of which GPU each of a run's models gets, computed without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lion_ray.config import ServeConfig
from lion_ray.inference import memory_share, server_gpus
from lion_ray.inference.server import ModelServer


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM's GPU build was installed."""
    for name in ("lion_ray.inference", "lion_ray.inference.server"):
        monkeypatch.setattr(f"{name}.gpu_build", lambda: True)


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


@pytest.mark.parametrize(
    ("gpus", "memory", "parallel"), [("auto", "0.9", "1"), (0.5, "0.45", "1"), (1, "0.9", "1"), (2, "0.9", "2")]
)
@pytest.mark.usefixtures("gpu_build")
def test_a_server_takes_the_memory_of_its_part(tmp_path: Path, gpus: float | str, memory: str, parallel: str) -> None:
    serve = ServeConfig.model_validate({"model": "m", "num_gpus": gpus})
    command = ModelServer(serve, str(tmp_path), "m").command(1)
    assert option(command, "--gpu-memory-utilization") == memory
    assert option(command, "--tensor-parallel-size") == parallel
    assert option(command, "--kv-cache-memory-bytes") is None
    assert option(command, "--dtype") == "bfloat16"


def test_on_a_cpu_a_server_takes_no_gpu_by_itself(tmp_path: Path) -> None:
    serve = ServeConfig(model="m", dtype="float32", max_num_seqs=1)
    assert server_gpus(serve) == 0
    command = ModelServer(serve, str(tmp_path), "m").command(1)
    assert option(command, "--gpu-memory-utilization") is None
    assert option(command, "--kv-cache-memory-bytes") == str(2 * 1024**3)


@pytest.mark.parametrize("gpus", [-1, 1.5, "all"])
def test_what_is_no_number_of_gpus_is_refused(gpus: object) -> None:
    with pytest.raises(ValidationError):
        ServeConfig.model_validate({"model": "m", "num_gpus": gpus})


def test_shares_of_one_gpu_leave_what_vllm_must_not_take() -> None:
    assert [memory_share(0.9, share) for share in (0.25, 0.5, 1.0, 4.0)] == [0.225, 0.45, 0.9, 0.9]
