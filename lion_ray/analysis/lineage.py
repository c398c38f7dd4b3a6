"""The lineage of every instruction and its score gap over the iterations, read from a run's folder.

Invariants:
- Only the needed columns are read, never the texts: a Cache Pool may have a million rows.
- Only committed data is read, so it also works for a running or killed run.
- A gap is the teacher's score minus the student's. A row without a verdict has no gap (NaN).
- A parent that is missing from the pools, or comes after its child, is ignored.

This module does not know Ray, models or the presentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.core import layout
from lion_ray.core.errors import DamagedError
from lion_ray.core.records import as_instructions
from lion_ray.core.store import RunStore
from lion_ray.discrimination.scores import is_hard

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]


def committed_pools(store: RunStore) -> list[int]:
    """The committed pools: 0 is the user's, k was generated in iteration k."""
    last = _iterations(store)
    pools = [pool for pool in range(last + 1) if store.stage(layout.pool(pool)).manifest() is not None]
    # A pool is generated from the earlier ones, and an iteration judges all pools before it.
    for pool in range(max([*pools, *(k - 1 for k in judged_iterations(store))], default=-1) + 1):
        if pool not in pools:
            raise DamagedError(store.path(layout.manifest(layout.pool(pool))), "missing, although later ones exist")
    return pools


def judged_iterations(store: RunStore) -> list[int]:
    """The iterations whose Cache Pool is judged and split, in order."""
    numbers = sorted(number for name in store.names("") if (number := layout.iteration_number(name)) is not None)
    manifests = {k: store.stage(layout.verdicts(k)).manifest() for k in numbers}
    return [iteration for iteration, manifest in manifests.items() if manifest and "hard" in manifest]


def read_pools(store: RunStore, pools: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Columns of the pools' INSTRUCTION rows, concatenated in the order of the Cache Pool."""
    stages = [store.stage(layout.pool(pool)) for pool in pools]
    return as_instructions(stage.read((stage.manifest() or {})["parts"], columns) for stage in stages)


def read_lineage(store: RunStore) -> Lineage:
    """The lineage of all instructions of the committed pools, without the held-out set."""
    columns = ("id", "parent", "source", "iteration")
    pools = committed_pools(store)
    return Lineage(read_pools(store, pools, columns) if pools else pa.table({name: [] for name in columns}))


def read_gaps(store: RunStore) -> Gaps:
    """Both scores of every Cache Pool row in every judged iteration."""
    iterations = judged_iterations(store)
    parts = [_verdicts(store, layout.verdicts(iteration)) for iteration in iterations]
    # The Cache Pool only grows, so the last iteration judged all rows, in the order in which they were added.
    ids = pa.array(parts[-1]["id"].to_pylist() if parts else [], pa.string())
    shape = (len(ids), len(parts))
    teacher, student = np.full(shape, np.nan), np.full(shape, np.nan)
    for column, part in enumerate(parts):
        indexes = pc.index_in(part["id"], value_set=ids).to_numpy()
        for scores, name in ((teacher, "teacher_score"), (student, "student_score")):
            scores[indexes, column] = pc.fill_null(part[name], np.nan).to_numpy()
    tau = _config(store).get("discrimination", {}).get("tau", 1.0)
    return Gaps(ids, tuple(iterations), teacher, student, tuple(part.num_rows for part in parts), tau)


class Lineage:
    """The seed, parent and children of every instruction."""

    def __init__(self, rows: pa.Table) -> None:
        """`rows`: INSTRUCTION columns id, parent, source and iteration; parents before their children."""
        self.rows = rows
        self.ids: pa.Array = rows["id"].cast(pa.string()).combine_chunks()
        found = pc.index_in(rows["parent"].cast(pa.string()), value_set=self.ids)
        indexes = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        self.parents: Indexes = np.where(indexes < np.arange(len(indexes)), indexes, -1)
        """Index of each row's parent; -1 for none."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def depths(self) -> Indexes:
        """Generations between each row and its seed: 0 for a seed, 1 for its children."""
        depths = np.zeros(len(self), np.int64)
        ancestors = self.parents.copy()
        while (known := ancestors >= 0).any():
            depths += known
            ancestors[known] = self.parents[ancestors[known]]
        return depths

    @cached_property
    def seeds(self) -> Indexes:
        """Index of each row's first ancestor; its own for a seed."""
        seeds = np.arange(len(self))
        while (known := self.parents[seeds] >= 0).any():
            seeds[known] = self.parents[seeds[known]]
        return seeds

    def depth(self, one: str) -> int:
        """Generations between a row and its seed. Raises KeyError if there is no such row."""
        return int(self.depths[self._index(one)])

    def children(self, one: str) -> list[str]:
        """The ids of a row's children, in the order in which they were added. Raises KeyError."""
        order, parents = self._by_parent
        first, last = np.searchsorted(parents, [(index := self._index(one)), index + 1])
        return [self.ids[int(child)].as_py() for child in order[first:last]]

    def ancestry(self, one: str) -> list[str]:
        """The ids from the seed to the row itself. Raises KeyError."""
        index = self._index(one)
        found = []
        while index >= 0:
            found.append(self.ids[index].as_py())
            index = int(self.parents[index])
        return found[::-1]

    @cached_property
    def _by_parent(self) -> tuple[Indexes, Indexes]:
        order = np.argsort(self.parents, kind="stable")
        return order, self.parents[order]

    def _index(self, one: str) -> int:
        index = int(pc.index(self.ids, one).as_py())
        if index < 0:
            raise KeyError(one)
        return index


@dataclass(frozen=True, slots=True)
class Gaps:
    """The Cache Pool's scores over the iterations."""

    ids: pa.Array
    """Rows, in the order in which they were added."""
    iterations: tuple[int, ...]
    """The judged iterations, one column each."""
    teacher: Floats
    """[rows, iterations], 1 to 10; NaN where a row has no verdict."""
    student: Floats
    rows: tuple[int, ...]
    """The Cache Pool's size in each of the iterations."""
    tau: float
    """A row is hard if its gap is at least this."""

    @property
    def values(self) -> Floats:
        """The gaps: teacher's score minus student's, [rows, iterations]."""
        return self.teacher - self.student

    def hard(self) -> npt.NDArray[np.bool_]:
        """Which rows were hard, [rows, iterations]; False without a verdict."""
        return np.asarray(is_hard(self.teacher, self.student, self.tau))

    def widest(self, count: int) -> list[int]:
        """Indexes of the rows with the widest gaps in the last judged iteration, widest first."""
        if not self.iterations:
            return []
        last = self.values[:, -1]
        order = np.argsort(-last, kind="stable")  # NaN goes last
        return [int(index) for index in order[:count] if not np.isnan(last[index])]

    def steps(self) -> list[Step]:
        """The changes from each judged iteration to the next, among the rows that both judged."""
        hard, values = self.hard(), self.values
        found = []
        for left in range(len(self.iterations) - 1):
            right = left + 1
            both = ~np.isnan(values[:, left]) & ~np.isnan(values[:, right])
            was, now = hard[:, left], hard[:, right]
            found.append(
                Step(
                    before=self.iterations[left],
                    after=self.iterations[right],
                    learned=self.ids.filter(pa.array(both & was & ~now)),
                    forgotten=self.ids.filter(pa.array(both & ~was & now)),
                    still_hard=int((both & was & now).sum()),
                    still_easy=int((both & ~was & ~now).sum()),
                    unmeasured=self.rows[left] - int(both.sum()),
                    gap_before=float(values[both, left].mean()) if both.any() else None,
                    gap_after=float(values[both, right].mean()) if both.any() else None,
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """From one judged iteration to the next. Verdicts are noisy, so some rows cross tau both ways by chance: the
    difference of `learned` and `forgotten` says more than either."""

    before: int
    after: int
    learned: pa.Array
    """Ids of rows that were hard and became easy."""
    forgotten: pa.Array
    """Ids of rows that were easy and became hard."""
    still_hard: int
    still_easy: int
    unmeasured: int
    """Rows of both Cache Pools without a verdict in one of them."""
    gap_before: float | None
    """Mean gap of the rows judged in both; None if there are none."""
    gap_after: float | None

    @property
    def judged(self) -> int:
        """Rows with a verdict in both."""
        return len(self.learned) + len(self.forgotten) + self.still_hard + self.still_easy


def _verdicts(store: RunStore, name: str) -> pa.Table:
    stage = store.stage(name)
    found = stage.read((stage.manifest() or {})["parts"], ("id", "teacher_score", "student_score"), ("gap",))
    if "gap" not in found.column_names:
        return found
    # A user's judge may give only gaps: then the gap counts as the teacher's score, with 0 for the student.
    scored = found["teacher_score"].is_valid()
    zero = pa.scalar(0.0, pa.float64())
    for name, other in (
        ("teacher_score", found["gap"]),
        ("student_score", pc.if_else(found["gap"].is_valid(), zero, None)),
    ):
        index = found.column_names.index(name)
        found = found.set_column(index, name, pc.if_else(scored, found[name], other))
    return found


def _iterations(store: RunStore) -> int:
    """The configured number of iterations; 0 if the folder is not a run yet."""
    return int(_config(store).get("iterations", 0))


def _config(store: RunStore) -> dict[str, Any]:
    described = store.description()
    return {} if described is None else dict(described.get("config") or {})
