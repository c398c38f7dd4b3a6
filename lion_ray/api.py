"""The Python API: a run from a script or a notebook, and what came out of it. The command line uses nothing else.

Invariants:
- A run is its folder here too: `distil` runs it or resumes it, and what it returns reads it (`run_result`).
- Errors are LionErrors of one line, as the command line prints them.
- The program is left as it was: its signal handlers and its environment are its own again, Ray has stopped.
- Nothing heavy is imported before it is needed.
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
"""How the environment variables begin that a run, or Ray in it, may set, and that are given back."""


def distil(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    trackers: Sequence[Tracker] = (),
    progress: TextIO | bool = True,
) -> RunResult:
    """Run a distillation, or resume it: the same call does both. Returns when it is done.

    It works in a notebook too, where a loop is running already. An interrupt ends the run in order, as it does on the
    command line; the same call then goes on.

    Args:
        config: a RunConfig, the path of a YAML file, or the values of one.
        base_dir: where the files that the configuration names are; by default the YAML file's folder, or the working
            directory.
        overrides: changes to it, such as ``imitation.epochs=2``.
        trackers: told of the run as it goes, beside those that the configuration names.
        progress: a stream for the run's words; True: standard output, False: none.

    Raises:
        LionError: what ended the run, in one line; its class says what kind of thing that was (`core.errors`).
        KeyboardInterrupt: it was interrupted.
    """
    from lion_ray.pipeline.interrupts import Stop

    loaded = load(config, base_dir=base_dir, overrides=overrides)
    stop = Stop()

    def work() -> RunResult:
        return _run(loaded, trackers, progress, stop)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    thread = _Thread(work)
    try:
        thread.start()  # an interrupt may come in here too
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
    """As `distil`, beside whatever else the loop does. Cancelling it ends the run in order, as an interrupt does."""
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
    """A run that is there: by its folder, its URL, or its name under ./runs.

    Raises:
        ConfigError: there is none.
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
    """What a run will take, stage by stage, before anything is spent.

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
    """A configuration, checked, and where its files are. Raises ConfigError, one line per mistake."""
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
        # Here, as Ray changes the environment when it is imported.
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
    """A run beside whoever waits for it; the program does not end while it goes on."""

    def __init__(self, work: Callable[[], RunResult]) -> None:
        super().__init__(name="lion-ray")
        self._work = work
        self._done = threading.Event()
        self._result: RunResult | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        """Until it has ended, or where it never began; a signal is heard meanwhile."""
        while not self._done.wait(1.0) and self.ident is not None:
            pass

    def result(self) -> RunResult:
        """What it came to, once it has ended. Raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result
