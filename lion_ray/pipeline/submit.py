"""Submit a run to a Ray cluster as a job: ``lion-ray submit``.

Invariants:
- Every detectable error is reported before anything is uploaded.
- Only files that the configuration names are uploaded (the YAML file, its data files and templates), and this package's
  code, so that the cluster runs the version that was checked here.
- No key is uploaded. Endpoints' keys are in the environment of the cluster's nodes (``cluster/README.md``); a job's
  metadata contains none.

This module starts no run itself: the driver on the cluster is ``lion-ray run``.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

import lion_ray
from lion_ray.config import models_in_use
from lion_ray.config.checks import JsonSchemaCheck
from lion_ray.config.file import LoadedConfig
from lion_ray.config.plugins import imports_of
from lion_ray.config.tracking import TensorBoardTracking
from lion_ray.core.addresses import without_secrets
from lion_ray.core.errors import ConfigError, InfrastructureError, one_line
from lion_ray.core.terminal import tell
from lion_ray.pipeline.preflight import check_templates, templates_in_use

STOP_WAIT_S = 150
"""Seconds that `ray job stop` gives a run to finish paid calls and stop its servers; Ray's default is 3."""
POLL_S = 2.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
AGENT_WAIT_S = 120.0
"""How long to retry if the cluster reports that no node can take a job yet, in seconds."""


@dataclass(frozen=True)
class Submission:
    """How a job is submitted."""

    address: str
    """The dashboard's address, such as http://127.0.0.1:8265."""
    driver_cpus: float = 1.0
    """CPUs for the driver; it avoids a head node without CPUs."""
    driver_resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources for the driver, if the cluster marks the nodes for drivers."""
    installed: bool = False
    """Use the lion-ray that the cluster has installed instead of this one."""


def submit(loaded: LoadedConfig, overrides: Sequence[str], how: Submission) -> str:
    """Upload a run's files and start it as a job. Returns the job's id.

    Raises:
        ConfigError: the configuration cannot be used on a cluster.
        InfrastructureError: the cluster does not answer, or refuses.
    """
    check_templates(loaded)
    check_paths(loaded)
    with tempfile.TemporaryDirectory(prefix="lion-ray-submit-") as folder:
        stage(loaded, Path(folder))
        environment: dict[str, Any] = {
            "working_dir": folder,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1"},
        }
        if not how.installed:
            environment["py_modules"] = [str(Path(lion_ray.__file__).parent)]
            environment["excludes"] = ["__pycache__", "*.pyc"]
        name = loaded.config.run_name
        wanted = {
            "entrypoint": shlex.join(["python", "-m", "lion_ray", "run", Path(loaded.source).name, *overrides]),
            "submission_id": f"lion-ray-{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            "runtime_env": environment,
            "metadata": {"lion_ray_run": name, "lion_ray_storage": without_secrets(loaded.config.storage_path)},
            "entrypoint_num_cpus": how.driver_cpus,
            "entrypoint_resources": dict(how.driver_resources) or None,
        }
        with _answering(how.address) as client:
            return _submit_with_retries(client, wanted)


def _submit_with_retries(client: Any, wanted: dict[str, Any]) -> str:
    until = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(**wanted))
        except RuntimeError as error:
            # A cluster that has just started, or whose nodes come and go.
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(POLL_S)


def follow(job: str, address: str) -> bool:
    """Print the job's log until it ends. Returns whether it succeeded.

    Raises:
        InfrastructureError: the connection to the cluster was lost.
    """
    from ray.job_submission import JobStatus

    async def tail(client: Any) -> None:
        async for text in client.tail_job_logs(job):
            tell(_COLOUR.sub("", text), end="")  # Ray colours the names of processes

    with _answering(address) as client:
        try:
            asyncio.run(tail(client))
            # The log ends shortly before the status changes.
            while not (status := client.get_job_status(job)).is_terminal():
                time.sleep(POLL_S)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise InfrastructureError(
                f"{address}: the connection to the cluster's job server was lost while {job} ran ({one_line(error)}). "
                "If the cluster still runs, the job continues, and `ray job logs --follow` shows its log; if not, the "
                "same command on another cluster resumes the run"
            ) from None
        if status != JobStatus.SUCCEEDED:
            tell(f"job {job}: {status.value.lower()}: {client.get_job_info(job).message}")
        return bool(status == JobStatus.SUCCEEDED)


def check_paths(loaded: LoadedConfig) -> None:
    """Check that the cluster can reach everything that the run reads and writes.

    Raises:
        ConfigError: it cannot; with the key, and what to write instead.
    """
    config = loaded.config
    problems = []
    for key, value in (("storage_path", config.storage_path), ("journal", config.journal)):
        if value and "://" not in value and not Path(value).expanduser().is_absolute():
            problems.append(
                f"{key}: '{value}' would be lost with the job's working directory; give an absolute path on storage "
                "that every node mounts, or a URL such as s3://bucket/runs"
            )
    for number, one in enumerate(config.tracking):
        if isinstance(one, TensorBoardTracking) and one.folder and not Path(one.folder).expanduser().is_absolute():
            problems.append(
                f"tracking.{number}.folder: '{one.folder}' would be lost with the job's working directory; give an "
                "absolute path on storage that every node mounts"
            )
    for key, value in models_in_use(config):
        if "://" not in value and not Path(value).is_absolute() and (loaded.base_dir / value).is_dir():
            problems.append(
                f"{key}: the folder '{value}' is on this machine and weights are not uploaded; copy it to the shared "
                "storage and give its absolute path, or use a hub name"
            )
    for key, value in config_files(loaded):
        path = loaded.base_dir / value
        if not path.resolve().is_relative_to(loaded.base_dir.resolve()):
            problems.append(f"{key}: '{value}' is outside the configuration's folder; put it in or below it")
        elif not path.exists():
            problems.append(f"{key}: {path} does not exist")
    if problems:
        raise ConfigError("\n".join(f"{loaded.source}: {problem}" for problem in problems))


def config_files(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """The configuration's keys and values that name files beside it; absolute paths are paths on the cluster."""
    config = loaded.config
    data = config.data
    named = [("data.pool", data.pool), *(("data.decontaminate", path) for path in data.decontaminate)]
    if isinstance(data.heldout, str):
        named.append(("data.heldout", data.heldout))
    if config.referee.canaries is not None:
        named.append(("referee.canaries", config.referee.canaries))
    for number, check in enumerate(config.evaluation.checks):
        if isinstance(check, JsonSchemaCheck) and isinstance(check.schema_, str):
            named.append((f"evaluation.checks.{number}.schema", check.schema_))
    for key, path in imports_of(config):
        # If the module is not beside the configuration, the cluster must have it installed.
        module = path.partition(":")[0].partition(".")[0]
        named += [(key, one) for one in (module, f"{module}.py") if (loaded.base_dir / one).exists()]
    for key, value in named:
        if not value.startswith("hf:") and "://" not in value and not Path(value).is_absolute():
            yield key, value
    prompts = [(key, value) for key, value, _ in templates_in_use(config)]
    for key, value in (*prompts, ("student.prompt", config.student.prompt)):
        if value.lower().endswith((".yaml", ".yml", ".txt")) and not Path(value).is_absolute():
            yield key, value


def stage(loaded: LoadedConfig, folder: Path) -> None:
    """Copy the configuration and the files that it names into `folder`, keeping their relative paths."""
    shutil.copy(loaded.base_dir / Path(loaded.source).name, folder)
    for _, name in config_files(loaded):
        source, target = loaded.base_dir / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


@contextmanager
def _answering(address: str) -> Iterator[Any]:
    """A client of the cluster's job server; its errors are raised as one line."""
    from ray.job_submission import JobSubmissionClient

    try:
        yield JobSubmissionClient(address)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        message = one_line(error)
        hint = "is the address the dashboard's, and is it forwarded to this machine?"
        if any(word in message.lower() for word in ("401", "403", "unauthenticated", "token")):
            hint = "export RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN"
        raise InfrastructureError(f"{address}: the cluster's job server refuses ({message}); {hint}") from None
