"""A run's results, read from its folder: returned by `distil` and `open_run`.

Invariants:
- It only reads, and works while the run is in progress, here or elsewhere.
- Heavy modules are imported only when they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from lion_ray.core.iteration_result import IterationResult
    from lion_ray.core.store import RunStore
    from lion_ray.pipeline.status import Status


@dataclass(frozen=True)
class RunResult:
    """A run, read from its folder during the run and afterwards.

    Tables are pyarrow tables; `.to_pandas()` converts them to DataFrames.
    """

    store: RunStore
    iterations: list[IterationResult]
    """The result of each iteration, from 0, which is the base model."""

    @property
    def root(self) -> str:
        """The run's folder, or its URL."""
        return self.store.root

    @property
    def checkpoint(self) -> str | None:
        """The last student: a model folder for transformers, or its URL. None before the first fine-tuning is done."""
        from lion_ray.models.checkpoints import student_ref

        last = next((one.iteration for one in reversed(self.iterations) if one.model is not None), None)
        return None if last is None else self.store.address(student_ref(self.store, last).folder)

    @property
    def report(self) -> str:
        """The path or URL of the run's report, one HTML file."""
        from lion_ray.core import layout

        return self.store.address(layout.REPORT)

    def status(self) -> Status:
        """The run's current progress."""
        from lion_ray.pipeline.status import read_status

        return read_status(self.store)

    def table(self) -> pa.Table:
        """The iterations as a table: one row each, one column for each metric (named as in trackers)."""
        import pyarrow as pa

        from lion_ray.tracking.numbers import numbers

        rows = [{"iteration": one.iteration} | numbers(one) for one in self.iterations]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def pool(self, number: int | str) -> pa.Table:
        """Instructions: pool 0 is your own, pool k was generated in iteration k, "heldout" is the held-out set."""
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
        """Every optimizer step: number, iteration, on-policy round (or 0), time, loss, tokens per second, …"""
        import pyarrow as pa

        from lion_ray.pipeline.history import History
        from lion_ray.tracking import Held, TrainingStep

        steps = [one for one in History.of(self.store)(Held()) if isinstance(one, TrainingStep)]
        rows = [
            {"step": one.number, "iteration": one.iteration, "round": one.round, "time": one.time, **one.metrics}
            for one in steps
        ]
        return pa.Table.from_pylist(rows)

    def heldout(self, iteration: int | None = None) -> pa.Table:
        """For each held-out instruction, the teacher's answer, an iteration's student's answer (default: the last that
        answered) and the judge's scores; null if a row has none."""
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


def _columns(table: pa.Table, names: Mapping[str, str]) -> dict[str, Any]:
    """Columns of a table under other names; missing columns are left out."""
    return {new: table[old] for old, new in names.items() if old in table.column_names}
