"""The Python API: a run from a script or a notebook, and what came out of it. The command line uses nothing else.

Invariants:
- A run is its folder here too: `distil` runs it or resumes it, and what it returns reads it (`open_run` alone does).
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lion_ray.core.errors import LionError, as_raised

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from lion_ray.config import RunConfig
    from lion_ray.config.file import LoadedConfig
    from lion_ray.core.store import RunStore
    from lion_ray.pipeline.interrupts import Stop
    from lion_ray.pipeline.plan import Plan
    from lion_ray.pipeline.results import IterationResult
    from lion_ray.pipeline.status import Status
    from lion_ray.tracking import Tracker

__all__ = ["RunResult", "distil", "distil_async", "load", "open_run", "plan"]

OURS = ("RAY_", "WANDB_", "MLFLOW_", "VLLM_")
"""How the environment variables begin that a run may set, and that are given back."""


@dataclass(frozen=True)
class RunResult:
    """A run, read from its folder, while it goes on and afterwards.

    Tables are pyarrow's; `.to_pandas()` makes DataFrames of them.
    """

    store: RunStore
    iterations: list[IterationResult]
    """What each iteration came to, from 0, which is the base model."""

    @property
    def root(self) -> str:
        """The run's folder, or its URL."""
        return self.store.root

    @property
    def checkpoint(self) -> str | None:
        """The last student: a model folder as transformers reads one; None before the first fine-tuning is done."""
        return next((one.model for one in reversed(self.iterations) if one.model is not None), None)

    @property
    def report(self) -> str:
        """Where the run's report is: one HTML file."""
        from lion_ray.core import layout

        return self.store.path(layout.REPORT)

    def status(self) -> Status:
        """What the run has done and is doing now."""
        from lion_ray.pipeline.status import read_status

        return read_status(self.store)

    def table(self) -> pa.Table:
        """The iterations as a table: a row for each, a column for each number (as trackers name them)."""
        import pyarrow as pa

        from lion_ray.tracking.numbers import numbers

        rows = [{"iteration": one.iteration} | numbers(one) for one in self.iterations]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def pool(self, number: int | str) -> pa.Table:
        """Instructions: pool 0 is your own, pool k what iteration k generated, "heldout" what nobody trains on."""
        from lion_ray.core import layout

        return self._rows(layout.pool(number))

    def answers(self, number: int | str) -> pa.Table:
        """The teacher's answers to a pool, row for row."""
        from lion_ray.core import layout

        return self._rows(layout.answers(number))

    def student(self, iteration: int, *, heldout: bool = False) -> pa.Table:
        """An iteration's student's answers to the Cache Pool, or to the held-out set."""
        from lion_ray.core import layout

        return self._rows(layout.student_answers(iteration, heldout=heldout))

    def verdicts(self, iteration: int, *, heldout: bool = False) -> pa.Table:
        """The judge's verdicts on these answers, row for row."""
        from lion_ray.core import layout

        return self._rows(layout.verdicts(iteration, heldout=heldout))

    def steps(self) -> pa.Table:
        """Every optimizer step of the run: its number, iteration, time, loss, learning rate, tokens per second, …"""
        import pyarrow as pa

        from lion_ray.pipeline.history import History
        from lion_ray.tracking import Held, TrainingStep

        history = History(self.store, self.store.described()["config"]["iterations"])
        steps = [one for one in history(Held()) if isinstance(one, TrainingStep)]
        return pa.Table.from_pylist(
            [{"step": one.number, "iteration": one.iteration, "time": one.time, **one.metrics} for one in steps]
        )

    def heldout(self, iteration: int | None = None) -> pa.Table:
        """Side by side for each held-out instruction: the teacher's answer and an iteration's student's (the last that
        answered, by default), and the scores that the judge gave them; null where a row has none."""
        import pyarrow as pa

        last = max((one.iteration for one in self.iterations), default=0)
        wanted = range(last, -1, -1) if iteration is None else [iteration]
        columns = _columns(self.pool("heldout"), {"id": "id", "text": "instruction", "reference": "reference"})
        columns |= _columns(self.answers("heldout"), {"text": "teacher"})
        for number in wanted:
            if self._has(self._heldout("student", number)):
                columns |= _columns(self.student(number, heldout=True), {"text": "student", "version": "version"})
                if self._has(self._heldout("verdicts", number)):
                    scores = {name: name for name in ("teacher_score", "student_score")}
                    columns |= _columns(self.verdicts(number, heldout=True), scores)
                break
        kinds = {"student": pa.string(), "version": pa.string()} | dict.fromkeys(
            ("teacher_score", "student_score"), pa.float64()
        )
        for name in kinds.keys() - columns.keys():
            columns[name] = pa.nulls(len(columns["id"]), kinds[name])
        return pa.table(columns)

    def _heldout(self, what: str, iteration: int) -> str:
        from lion_ray.core import layout

        of = {"student": layout.student_answers, "verdicts": layout.verdicts}
        return of[what](iteration, heldout=True)

    def _has(self, stage: str) -> bool:
        return self.store.stage(stage).manifest() is not None

    def _rows(self, stage: str) -> pa.Table:
        from lion_ray.core.errors import DataError

        manifest = self.store.stage(stage).manifest()
        if manifest is None:
            raise DataError(f"{self.store.path(stage)}: this stage is not done, or the run has no such stage")
        return self.store.stage(stage).read(manifest["parts"])


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


def _columns(table: pa.Table, names: Mapping[str, str]) -> dict[str, Any]:
    """Columns of a table under other names; one that the table lacks is left out."""
    return {new: table[old] for old, new in names.items() if old in table.column_names}


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
