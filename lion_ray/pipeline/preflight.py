"""Checks for errors before anything is started or spent.

It knows the configuration, the environment and the files that the configuration names; it starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lion_ray.config import RunConfig, endpoints_in_use, paid_roles
from lion_ray.config.file import LoadedConfig
from lion_ray.config.plugins import Own
from lion_ray.core.addresses import in_clear, without_secrets
from lion_ray.core.errors import ConfigError, EndpointError
from lion_ray.core.records import references
from lion_ray.data.importing import heldout_rows
from lion_ray.data.pools import where_is
from lion_ray.discrimination.checks import load_checks, unusable
from lion_ray.discrimination.drift import load_canaries
from lion_ray.discrimination.judge import load_judge
from lion_ray.imitation.filters import load_filters
from lion_ray.imitation.objectives import load_objective
from lion_ray.inference import CPU_BUILD, NO_CPU, gpu_build, server_gpus
from lion_ray.prompts.messages import load_template
from lion_ray.prompts.source import load_source


def check_templates(loaded: LoadedConfig) -> None:
    """Load every role's template, the canary pairs and the checks of answers.

    Raises:
        ConfigError: one is unknown, unreadable or cannot be rendered; a check's schema is invalid, or its function
            cannot be imported.
    """
    referee = loaded.config.referee
    load_checks(loaded.config.evaluation.checks, loaded.base_dir, f"{loaded.source}: evaluation.checks")
    load_canaries(referee.canaries, referee.canary_pairs, loaded.base_dir)
    for _, name, kind in templates_in_use(loaded.config):
        load_template(name, kind, loaded.base_dir)
    check_plugins(loaded.config, loaded.base_dir)


def check_plugins(config: RunConfig, base_dir: Path) -> None:
    """Load the user's own code. Raises ConfigError if that fails."""
    load_source(config.teacher, base_dir)
    load_judge(config.referee, structured=False, base_dir=base_dir, seed=config.seed)
    load_filters(config.imitation.filters, base_dir)
    if (lora := config.imitation.lora) is not None and lora.base == "nf4":
        from lion_ray.imitation.training.adapters import check_base

        check_base(lora)
    if isinstance(config.imitation.objective, Own):  # the built-in ones need torch, and cannot be wrong
        load_objective(config.imitation.objective, base_dir)


def templates_in_use(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """The key, the value and the kind of every template."""
    yield "teacher.prompt", config.teacher.prompt, "teacher"
    yield "referee.prompt", config.referee.prompt, "referee"
    yield "generator.hard_prompt", config.generator.hard_prompt, "generator"
    yield "generator.easy_prompt", config.generator.easy_prompt, "generator"
    for role in ("rubricator", "verifier"):
        if role in paid_roles(config):
            yield f"{role}.prompt", getattr(config, role).prompt, role


def keys_in_clear(loaded: LoadedConfig) -> list[str]:
    """A warning for each endpoint to which a key would go unencrypted over a network."""
    config = loaded.config
    used = {name: config.endpoints[name] for name in endpoints_in_use(config)}
    return [
        f"endpoints.{name}.base_url: the key in {one.api_key_env} goes to {without_secrets(one.base_url)} unencrypted; "
        "use https://"
        for name, one in used.items()
        if one.api_key_env and one.base_url and in_clear(one.base_url)
    ]


def idle_workers(config: RunConfig) -> list[str]:
    """A warning if some training workers get no sample of a batch."""
    batch, workers = config.imitation.batch_size, config.imitation.workers
    if batch >= workers:
        return []
    return [
        f"imitation.batch_size: {batch} samples cannot keep {workers} workers busy, so {workers - batch} would idle in "
        f"every step; raise it to {workers} or more, or set imitation.workers to {batch} or fewer"
    ]


def check_references(loaded: LoadedConfig) -> list[str]:
    """Check that the checks can score the held-out rows. Returns warnings about rows that they cannot score.

    Raises:
        ConfigError: they can score none of the rows.
        DataError, InfrastructureError: the rows cannot be read.
    """
    config = loaded.config
    if not config.evaluation.checks:
        return []
    return heldout_problems(config, loaded.base_dir, heldout_rows(config.data, loaded.base_dir, config.seed))


def heldout_problems(config: RunConfig, base_dir: Path, heldout: pa.Table) -> list[str]:
    """At most one line: how many held-out rows (INSTRUCTION) the checks cannot score, and the place of the first.

    Raises:
        ConfigError: they can score none of the rows.
    """
    checks = load_checks(config.evaluation.checks, base_dir)
    rows = zip(heldout["id"].to_pylist(), references(heldout), strict=True)
    found = [(row, why) for row, reference in rows if (why := unusable(checks, reference)) is not None]
    if not found:
        return []
    row, why = found[0]
    source = config.data.pool if isinstance(config.data.heldout, int) else config.data.heldout
    line = (
        f"evaluation.checks: {len(found)} of {heldout.num_rows} held-out rows cannot be scored, the first at "
        f"{where_is(source, base_dir, row)} ({why})"
    )
    if len(found) == heldout.num_rows:
        raise ConfigError(f"{line}; give these rows a suitable `reference`, or remove the check")
    return [f"{line}; they are left out of the checks' scores"]


def check_builds(config: RunConfig) -> None:
    """Refuse what the installed vLLM cannot do: the GPU build runs on no CPU.

    Raises:
        ConfigError: a server or the student's engines were to run on the CPU with that build.
    """
    if not gpu_build():
        return
    served = {name: config.endpoints[name].serve for name in endpoints_in_use(config)}
    for name, serve in served.items():
        if serve is not None and not server_gpus(serve):
            raise ConfigError(f"endpoints.{name}.serve.num_gpus: 0 {NO_CPU}; set auto, {CPU_BUILD}")
    if config.student.use_gpu is False:
        raise ConfigError(f"student.use_gpu: false {NO_CPU}; set null, {CPU_BUILD}")


def check_keys(loaded: LoadedConfig) -> None:
    """Check that every endpoint in use has its key in the environment.

    Raises:
        EndpointError: a key is missing.
    """
    config = loaded.config
    for name in endpoints_in_use(config):
        endpoint = config.endpoints[name]
        if endpoint.serve is None and endpoint.api_key_env and not os.environ.get(endpoint.api_key_env):
            raise EndpointError(
                f"endpoint '{name}' needs its key in the environment variable {endpoint.api_key_env}, which is not "
                f"set; export it, or set endpoints.{name}.api_key_env=null if the endpoint needs none"
            )
