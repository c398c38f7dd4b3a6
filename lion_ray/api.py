"""The Python API: a run from a script or a notebook, and its results. The command line uses it too.

Invariants:
- A run is its folder here too: `distil` runs or resumes it, and the result object reads the folder (`run_result`).
- Errors are LionErrors of one line, as the command line prints them.
- The program's state is restored: its signal handlers and its environment. Ray is stopped.
- Heavy modules are imported only when they are needed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lion_ray.core.errors import LionError, as_raised
from lion_ray.run_result import RunResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from lion_ray.config import RunConfig
    from lion_ray.config.file import LoadedConfig
    from lion_ray.pipeline.interrupts import Stop
    from lion_ray.pipeline.plan import Plan
    from lion_ray.tracking import Tracker

__all__ = ["RunResult", "distil", "distil_async", "load", "open_run", "plan"]

OURS = ("RAY_", "WANDB_", "MLFLOW_", "VLLM_", "PYTHONBREAKPOINT")
"""Prefixes of environment variables that a run, or Ray in it, may set; they are restored afterwards."""


def distil(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    trackers: Sequence[Tracker] = (),
    progress: TextIO | bool = True,
) -> RunResult:
    """Run a distillation, or resume it with the same call. Returns when it is done.

    It also works in a notebook, where an event loop is already running. An interrupt ends the run cleanly, as on the
    command line; the same call then resumes it.

    Args:
        config: a RunConfig, the path of a YAML file, or the values of one.
        base_dir: the folder to which file names in the configuration are relative; default: the YAML file's folder, or
            the working directory.
        overrides: changes to the configuration, such as ``imitation.epochs=2``.
        trackers: receive the run's metrics, in addition to the configured trackers.
        progress: a stream for the log; True: standard output, False: none.

    Raises:
        LionError: the error that ended the run, in one line; its class gives the kind (`core.errors`).
        KeyboardInterrupt: the run was interrupted.
    """
    from lion_ray.pipeline.interrupts import Stop, raising_on_interrupt

    loaded = load(config, base_dir=base_dir, overrides=overrides)
    stop = Stop()

    def work() -> RunResult:
        return _run(loaded, trackers, progress, stop)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    thread = _Thread(work)
    with raising_on_interrupt():
        try:
            thread.start()  # an interrupt may arrive here too
            return thread.result()
        except KeyboardInterrupt:
            stop.ask()
            thread.wait()
            raise


async def distil_async(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    trackers: Sequence[Tracker] = (),
    progress: TextIO | bool = True,
) -> RunResult:
    """Like `distil`, without blocking the event loop. Cancelling it ends the run cleanly, like an interrupt."""
    from lion_ray.pipeline.interrupts import Stop

    loaded = load(config, base_dir=base_dir, overrides=overrides)
    stop = Stop()
    thread = _Thread(lambda: _run(loaded, trackers, progress, stop))
    thread.start()
    ended = asyncio.ensure_future(asyncio.to_thread(thread.wait))
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.ask()
        await ended
        raise
    return thread.result()


def open_run(run: str | os.PathLike[str]) -> RunResult:
    """Open an existing run by its folder, its URL, or its name under ./runs.

    Raises:
        ConfigError: there is no such run.
    """
    from lion_ray.models.checkpoints import open_run as found
    from lion_ray.pipeline.results import results

    store = found(os.fspath(run))
    return RunResult(store, results(store))


def plan(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Estimate a run's cost and time, stage by stage, before anything is spent.

    Raises:
        LionError: the configuration or its data cannot be used.
    """
    from lion_ray.pipeline.plan import make_plan
    from lion_ray.pipeline.preflight import check_templates

    loaded = load(config, base_dir=base_dir, overrides=overrides)
    check_templates(loaded)
    return make_plan(loaded.config, loaded.base_dir)


def load(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> LoadedConfig:
    """Load and check a configuration. Raises ConfigError with one line per mistake."""
    from dataclasses import replace

    from lion_ray.config.file import load_config, load_values

    if isinstance(config, str | os.PathLike):
        loaded = load_config(Path(config), overrides)
        return loaded if base_dir is None else replace(loaded, base_dir=Path(base_dir).absolute())
    values = config if isinstance(config, Mapping) else config.model_dump(mode="json")
    return load_values(values, Path.cwd() if base_dir is None else Path(base_dir), overrides)


def _run(loaded: LoadedConfig, trackers: Sequence[Tracker], progress: TextIO | bool, stop: Stop) -> RunResult:
    from lion_ray.pipeline.interrupts import signals_given_back

    with _environment_given_back(), signals_given_back():
        # Imported here, because Ray changes the environment when it is imported.
        from lion_ray.core.progress import Progress
        from lion_ray.core.store import RunStore
        from lion_ray.pipeline import runner
        from lion_ray.report import write_report
        from lion_ray.tracking.fan_out import Named

        named = [Named(type(one).__name__, one) for one in trackers]
        with _words(progress) as stream:
            shown = Progress(stream)
            try:
                found = runner.run(loaded, shown, write_report, named, stop)
            except LionError as error:
                raise as_raised(error) from None
            finally:
                shown.close()
        return RunResult(RunStore(runner.run_root(loaded.config.storage_path, loaded.config.run_name)), found)


@contextmanager
def _words(progress: TextIO | bool) -> Iterator[TextIO]:
    if progress is False:
        with Path(os.devnull).open("w") as nowhere:
            yield nowhere
    else:
        yield sys.stdout if progress is True else progress


@contextmanager
def _environment_given_back() -> Iterator[None]:
    before = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(OURS)]:
            if name not in before:
                del os.environ[name]
        os.environ.update(before)


class _Thread(threading.Thread):
    """Runs a distillation in a thread; the program does not exit while it runs."""

    def __init__(self, work: Callable[[], RunResult]) -> None:
        super().__init__(name="lion-ray")
        self._work = work
        self._done = threading.Event()
        self._result: RunResult | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            self._error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        """Wait until the thread has ended or was never started; signals are handled meanwhile."""
        while not self._done.wait(1.0) and self.ident is not None:
            pass

    def result(self) -> RunResult:
        """Wait for the result. Raises the thread's exception."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result
