"""Which part of which GPU each of a run's models gets, computed without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lion_ray.actors.placement import Node, Shares, at_once, never_fits, shares
from lion_ray.actors.resources import has_types
from lion_ray.config import RunConfig, ServeConfig, StudentConfig
from lion_ray.config.file import load_config
from lion_ray.core.errors import ConfigError, EndpointError
from lion_ray.inference import memory_share, server_gpus
from lion_ray.inference.engine_settings import engine_arguments
from lion_ray.inference.server import ModelServer
from lion_ray.pipeline.preflight import check_builds


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM's GPU build was installed."""
    for name in (
        "lion_ray.inference",
        "lion_ray.inference.server",
        "lion_ray.inference.engine_settings",
        "lion_ray.pipeline.preflight",
    ):
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


def config(**changes: object) -> RunConfig:
    """A run that serves its own teacher and uses GPUs, as with the GPU build."""
    values: dict[str, object] = {
        "run_name": "r",
        "data": {"pool": "p.jsonl"},
        "endpoints": {"default": {"model": "m", "serve": {"model": "m"}}},
        "student": {"model": "s"},
    }
    return RunConfig.model_validate(values | changes)


def nodes(*gpus: float, cpus: float = 8.0) -> list[Node]:
    return [Node(f"10.0.0.{n}", {"CPU": cpus, "GPU": each, "memory": 1e9}) for n, each in enumerate(gpus, 1)]


THREE = {
    "endpoints": {name: {"model": name, "serve": {"model": name}} for name in ("a", "b", "c")},
    "teacher": {"endpoint": "a"},
    "referee": {"endpoint": "b"},
    "generator": {"endpoint": "c"},
}


def served(gpus: float, **more: object) -> dict[str, object]:
    return {"endpoints": {"default": {"model": "m", "serve": {"model": "m", "num_gpus": gpus}, **more}}}


@pytest.mark.parametrize(
    ("changes", "gpus", "grows", "servers", "student"),
    [
        ({}, 1, False, 0.5, 0.5),  # one GPU for all
        ({}, 2, False, 1, 1),
        ({}, 8, False, 1, 1),
        ({}, 1, True, 1, 1),  # an autoscaler brings the second
        ({}, 0, True, 1, 1),
        (served(0.25), 1, False, 0.25, 0.75),  # as configured: the student has the rest
        (served(1), 1, False, 1, 1),  # refused, below
        (THREE, 1, False, 0.25, 0.25),
        (THREE, 2, False, 1 / 3, 1),
        (THREE, 3, False, 0.5, 1),
        (THREE, 4, False, 1, 1),
        ({"imitation": {"workers": 8}}, 9, False, 1, 1),
        ({"student": {"model": "s", "min_engines": 2}}, 1, False, 1, 1),  # refused, below
    ],
)
@pytest.mark.usefixtures("gpu_build")
def test_shares(changes: dict[str, object], gpus: int, grows: bool, servers: float, student: float) -> None:
    found = shares(config(**changes), gpus, may_grow=grows)
    assert set(found.servers.values()) == {servers}
    assert (found.engine, found.worker) == (student, student)


def test_on_a_cpu_there_is_nothing_to_share() -> None:
    assert shares(config(), 0, may_grow=False) == Shares({"default": 0.0})
    assert never_fits(at_once(config(), Shares({"default": 0.0})), [Node("here", {"CPU": 4.0})]) == ""


@pytest.mark.parametrize(
    ("changes", "there", "why"),
    [
        ({}, nodes(1), ""),
        ({}, nodes(1, 1), ""),
        (THREE, nodes(1), ""),
        ({"student": {"model": "s", "max_engines": 8}, "imitation": {"workers": 7}}, nodes(8), ""),
        (
            served(1),
            nodes(1),
            "the run needs 2 GPU at once (the server of endpoint default: 1 GPU; student engines: 1 CPU and 1 GPU); "
            "the cluster has 1 node (10.0.0.1: 8 CPU and 1 GPU)",
        ),
        (
            {"student": {"model": "s", "tensor_parallel_size": 2}},
            nodes(1, 1, 1, 1),
            "the run needs student engines: 1 CPU and 2 GPU; "
            "the cluster has 4 nodes (10.0.0.1, 10.0.0.2, 10.0.0.3 …: 8 CPU and 1 GPU)",
        ),
        (
            {"placement": "dedicated", **served(0.5)},
            nodes(1),
            "the run needs 2.5 GPU at once (the server of endpoint default: 0.5 GPU; student engines: 1 CPU and 1 GPU; "
            "training workers: 1 CPU and 1 GPU); the cluster has 1 node (10.0.0.1: 8 CPU and 1 GPU)",
        ),
        (
            {"imitation": {"workers": 4, "num_cpus": 5}},
            nodes(4, cpus=16),
            "the run needs training workers: 4 × 5 CPU and 1 GPU; the cluster has 1 node (10.0.0.1: 16 CPU and 4 GPU)",
        ),
        (
            {},
            nodes(0, cpus=4),
            "the run needs the server of endpoint default: 1 GPU; the cluster has 1 node (10.0.0.1: 4 CPU)",
        ),
    ],
)
@pytest.mark.usefixtures("gpu_build")
def test_what_can_never_be_placed_is_told(changes: dict[str, object], there: list[Node], why: str) -> None:
    one = config(**changes)
    found = shares(one, sum(node.resources["GPU"] for node in there), may_grow=False)
    assert never_fits(at_once(one, found), there) == why


@pytest.mark.usefixtures("gpu_build")
def test_an_engine_takes_the_memory_of_its_part(tmp_path: Path) -> None:
    student = StudentConfig(model="s", dtype="float16")
    assert engine_arguments(student, tmp_path, 0)["gpu_memory_utilization"] == 0.9
    assert engine_arguments(student, tmp_path, 0, 0.5)["gpu_memory_utilization"] == 0.45


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (served(0), r"endpoints\.default\.serve\.num_gpus: 0 asks for the CPU, and .* set auto"),
        (
            {**served(1), "student": {"model": "s", "use_gpu": False}},
            r"student\.use_gpu: false asks for the CPU, and .* set null",
        ),
    ],
)
def test_the_gpu_build_is_not_asked_to_run_on_a_cpu(
    request: pytest.FixtureRequest, changes: dict[str, object], why: str
) -> None:
    check_builds(config(**changes))
    request.getfixturevalue("gpu_build")
    with pytest.raises(ConfigError, match=why):
        check_builds(config(**changes))


@pytest.mark.usefixtures("gpu_build")
async def test_nor_is_a_server_that_no_run_has_checked(tmp_path: Path) -> None:
    server = ModelServer(ServeConfig(model="m", num_gpus=0), str(tmp_path), "m")
    with pytest.raises(EndpointError, match=r"the server for m asks for the CPU, and .* give it a GPU, or install"):
        await server.start(lambda _: None)


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize("name", ["demo", "demo-general"])
def test_the_demo_fits_one_gpu(name: str) -> None:
    demo = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml").config
    check_builds(demo)
    found = shares(demo, 1, may_grow=False)
    assert (dict(found.servers), found.engine, found.worker) == ({"local": 0.5}, 0.5, 0.5)
    assert never_fits(at_once(demo, found), nodes(1)) == ""


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({"c042a2": "node_c042a21e0896"}, False),  # `ray start` on each machine
        ({"c042a2": "node_c042a21e0896", "f6cdb4": "node_f6cdb45a56ba"}, False),
        ({"10.0.0.1": "ray.head.default"}, True),
        ({"10.0.0.1": "headgroup", "10.0.0.2": "gpu-group"}, True),
        (None, False),
    ],
)
def test_an_autoscaler_is_known_by_its_types_of_nodes(types: dict[str, str] | None, expected: bool) -> None:
    assert has_types({"autoscaler_report": {"node_type_mapping": types}}) is expected


def test_an_autoscaler_that_has_just_started_has_no_report_yet() -> None:
    assert has_types({"load_metrics_report": {}, "time": 1.0}) is None
