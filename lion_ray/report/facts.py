"""The data of a report, read from a run folder.

Invariants:
- Only committed stages and displayed columns are read; texts only for the few displayed rows.
- Missing data is None or empty. A user's file that cannot be read is listed as a problem and hides no other data.

This module does not know pages or pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lion_ray.analysis.diversity import Diversity, read_diversity
from lion_ray.analysis.examples import Example, read_examples
from lion_ray.analysis.gain import paired_gain
from lion_ray.analysis.lineage import Gaps, Lineage, Step, read_gaps, read_lineage
from lion_ray.core import layout
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.records import OK, ORDERS, derive_seed
from lion_ray.core.statistics import Estimate
from lion_ray.core.store import Manifest, RunStore
from lion_ray.data.pools import cache_pools
from lion_ray.discrimination.split import leads
from lion_ray.pipeline.results import finished
from lion_ray.pipeline.scheduling import Shard
from lion_ray.pipeline.stages import of_iteration
from lion_ray.pipeline.status import Status, read_status
from lion_ray.report.pictures import Clock, Span

HARDEST = 10
"""Rows that are shown with all answers and verdicts."""
ANCESTORS = 3
COLOURS = {"teacher": "s1", "trainer": "s2", "student": "s3", "referee": "s3", "generator": "s4", "rewarder": "s3"}
"""Classes of the style sheet by a stage's actor."""


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """The judge's statistics on one set of rows."""

    iteration: int
    what: str
    """Cache Pool, or held-out."""
    rows: int
    scored: int
    both: int
    """Rows scored in both orders; others were scored in one (`referee.second_order`)."""
    unscored: dict[str, int]
    """By reason."""
    flips: int | None
    """Rows whose two orders have different winners."""
    ties: int
    """Rows with the same mean score for both."""
    position_bias: float | None
    """Mean score of the answer shown first minus the other's, in points; None if nothing was scored."""


@dataclass(frozen=True, slots=True)
class HardRow:
    """A row with a wide gap, with its answers and verdicts."""

    id: str
    text: str
    source: str
    iteration: int
    depth: int
    ancestors: list[str]
    """Texts of its nearest ancestors, parent first."""
    history: list[tuple[int, float | None]]
    """(iteration, gap)."""
    teacher: dict[str, Any]
    """The answer's row."""
    student: dict[str, Any]
    verdict: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a report shows."""

    name: str
    state: str
    """running, finished, or stopped with how to continue."""
    config: dict[str, Any]
    versions: dict[str, str]
    status: Status
    results: list[IterationResult]
    imported: Manifest
    """Counts of the user's rows: rows, duplicates, bad_rows, contaminated, in_heldout."""
    heldout_rows: int | None
    lineage: Lineage
    gaps: Gaps
    steps: list[Step]
    diversity: list[Diversity]
    judged: list[JudgeStats]
    gain: Estimate | None
    """Gain in held-out relative quality from the first to the last judged checkpoint."""
    gain_between: tuple[int, int] | None
    hardest: list[HardRow]
    teacher_checks: Manifest
    """The checks' scores of the teacher's held-out answers; empty if there are none."""
    examples: list[Example]
    """Held-out instructions with answers before and after."""
    spans: list[Span]
    untimed: list[tuple[str, float]]
    """Stages with their seconds whose start was not recorded."""
    calibration: dict[str, Any] | None
    """The result of `lion-ray judge calibrate` for the run's referee."""
    evaluations: list[tuple[str, dict[str, Any]]]
    """(file name, content), ordered by `made_at`."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be read."""

    @property
    def active_s(self) -> float | None:
        """Seconds with at least one stage running; None if a stage's start is unknown or no stage is committed."""
        if self.untimed or not self.spans:
            return None
        return Clock(self.spans).busy


def read_facts(store: RunStore) -> Facts:
    """Read a run in any state; `run.json` must exist.

    Raises:
        InfrastructureError: the storage failed, or a file of the run is damaged.
    """
    described = store.described()
    config = described["config"]
    problems: list[str] = []
    evaluations = _evaluations(store, problems)
    status = read_status(store)
    lineage, gaps = read_lineage(store), read_gaps(store)
    heldout = [k for k in range(config["iterations"] + 2) if _manifest(store, layout.verdicts(k, heldout=True), "hard")]
    judged = [_judged(store, k, "held-out", layout.verdicts(k, heldout=True)) for k in heldout]
    judged += [_judged(store, k, "Cache Pool", layout.verdicts(k)) for k in gaps.iterations]
    spans, untimed = _spans(store, config["iterations"])
    return Facts(
        name=config["run_name"],
        state="finished" if finished(store, config["iterations"]) else status.state,
        config=config,
        versions=described.get("versions", {}),
        status=status,
        results=status.results,
        imported=store.stage(layout.pool(0)).manifest() or {},
        heldout_rows=(store.stage(layout.pool(layout.HELDOUT)).manifest() or {}).get("rows"),
        lineage=lineage,
        gaps=gaps,
        steps=gaps.steps(),
        diversity=read_diversity(store),
        judged=sorted(judged, key=lambda one: (one.iteration, one.what)),
        gain=_gain(store, heldout, config["seed"]),
        gain_between=(heldout[0], heldout[-1]) if len(heldout) > 1 else None,
        hardest=_hardest(store, lineage, gaps),
        teacher_checks=store.stage(layout.checks(None)).manifest() or {},
        examples=read_examples(store),
        spans=spans,
        untimed=untimed,
        calibration=dict(evaluations).get(layout.CALIBRATION),
        evaluations=[one for one in evaluations if one[0] != layout.CALIBRATION],
        problems=[*problems, *status.problems],
    )


def _manifest(store: RunStore, name: str, key: str) -> Manifest | None:
    """A stage's manifest, if it has `key`."""
    manifest = store.stage(name).manifest()
    return manifest if manifest and key in manifest else None


def _judged(store: RunStore, iteration: int, what: str, name: str) -> JudgeStats:
    stage = store.stage(name)
    manifest = stage.manifest() or {}
    rows = stage.read(manifest["parts"], ("status", "teacher_score", "student_score", *ORDERS))
    scored = rows.filter(pc.equal(rows["status"], OK))
    teacher, student = (scored[who].to_numpy() for who in ("teacher_score", "student_score"))
    # Between the two orders, the teacher's lead changes by twice the position bias.
    first, second = leads(scored)
    lead_change = (first - second)[~np.isnan(first - second)]
    return JudgeStats(
        iteration=iteration,
        what=what,
        rows=rows.num_rows,
        scored=scored.num_rows,
        both=lead_change.size,
        unscored=manifest.get("quarantined", {}),
        flips=manifest.get("order_flips"),
        ties=int((teacher == student).sum()),
        position_bias=float(lead_change.mean() / 2) if lead_change.size else None,
    )


def _gain(store: RunStore, iterations: list[int], seed: int) -> Estimate | None:
    if len(iterations) < 2:
        return None
    scores: list[pa.Table] = []
    for iteration in (iterations[0], iterations[-1]):
        stage = store.stage(layout.verdicts(iteration, heldout=True))
        rows = stage.read((stage.manifest() or {})["parts"], ("id", "status", "teacher_score", "student_score"))
        scores.append(rows.filter(pc.equal(rows["status"], OK)))
    both = [
        rows.filter(pc.is_in(rows["id"], value_set=other["id"].combine_chunks()))
        for rows, other in (scores, scores[::-1])
    ]
    before, after = (
        [rows.sort_by("id")[who].to_numpy() for who in ("teacher_score", "student_score")] for rows in both
    )
    return paired_gain((before[0], before[1]), (after[0], after[1]), seed=derive_seed(seed, "gain", *iterations))


def _hardest(store: RunStore, lineage: Lineage, gaps: Gaps) -> list[HardRow]:
    """The rows with the widest gaps in the last judged iteration. Only parts with such rows are read."""
    indexes = gaps.widest(HARDEST)
    if not indexes:
        return []
    wanted = {gaps.ids[index].as_py(): index for index in indexes}
    last = gaps.iterations[-1]
    shards = [
        Shard(str(pool), index)
        for pool in cache_pools(last)
        for index in range((store.stage(layout.pool(pool)).manifest() or {}).get("parts", 0))
    ]
    found: dict[str, tuple[dict[str, Any], ...]] = {}
    verdicts, student = store.stage(layout.verdicts(last)), store.stage(layout.student_answers(last))
    for index, shard in enumerate(shards):
        ids = store.read_table(verdicts.part_name(index), ("id",))["id"]
        if not pc.any(pc.is_in(ids, value_set=pa.array(list(wanted)))).as_py():
            continue
        names = (shard.instructions, shard.answers, student.part_name(index), verdicts.part_name(index))
        tables = [store.read_table(name) for name in names]
        for row in np.flatnonzero(pc.is_in(ids, value_set=pa.array(list(wanted))).to_numpy()):
            found[ids[int(row)].as_py()] = tuple(table.slice(int(row), 1).to_pylist()[0] for table in tables)
    ancestors = {one: lineage.ancestry(one)[-2::-1][:ANCESTORS] for one in wanted}
    texts = _texts(store, {ancestor for line in ancestors.values() for ancestor in line})
    return [
        HardRow(
            id=one,
            text=found[one][0]["text"],
            source=found[one][0]["source"],
            iteration=found[one][0]["iteration"],
            depth=lineage.depth(one),
            ancestors=[texts[ancestor] for ancestor in ancestors[one] if ancestor in texts],
            history=[
                (iteration, None if np.isnan(gap) else float(gap))
                for iteration, gap in zip(gaps.iterations, gaps.values[index], strict=True)
            ],
            teacher=found[one][1],
            student=found[one][2],
            verdict=found[one][3],
        )
        for one, index in wanted.items()
    ]


def _texts(store: RunStore, ids: set[str]) -> dict[str, str]:
    """The texts of instructions, from all pools."""
    found: dict[str, str] = {}
    pool = 0
    while len(found) < len(ids) and (manifest := store.stage(layout.pool(pool)).manifest()) is not None:
        for index in range(manifest["parts"]):
            rows = store.read_table(Shard(str(pool), index).instructions, ("id", "text"))
            rows = rows.filter(pc.is_in(rows["id"], value_set=pa.array(sorted(ids), pa.string())))
            found |= dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        pool += 1
    return found


def _spans(store: RunStore, iterations: int) -> tuple[list[Span], list[tuple[str, float]]]:
    spans, untimed = [], []
    for iteration in range(iterations + 2):
        for stage in of_iteration(iteration):
            manifest = stage.manifest(store, iteration)
            label = f"{iteration} · {stage.name}"
            if manifest.get("began") is not None:
                spans.append(Span(label, COLOURS.get(stage.actor, "s3"), manifest["began"], manifest["seconds"]))
            elif manifest.get("seconds") is not None:
                untimed.append((label, manifest["seconds"]))
    return spans, untimed


def _evaluations(store: RunStore, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in store.names(layout.EVALUATIONS):
        if not name.endswith(".json"):
            continue
        try:
            value = store.read_json(layout.evaluation(name))
        except InfrastructureError:
            problems.append(f"{layout.evaluation(name)}: not JSON")
            continue
        if isinstance(value, dict):
            found.append((name, value))
        else:
            problems.append(f"{layout.evaluation(name)}: not a JSON object")
    return sorted(found, key=lambda one: str(one[1].get("made_at", "")))
