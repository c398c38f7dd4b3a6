"""Where instructions came from, what became of their gaps, and how varied the new ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lion_ray.analysis.diversity import distinct, indexes, nearest, read_diversity
from lion_ray.analysis.gain import paired_gain
from lion_ray.analysis.lineage import Gaps, Lineage, read_gaps, read_lineage
from lion_ray.core.store import RunStore
from lion_ray.similarity.novelty import NoveltyIndex
from tests.run_folder import RunFolder

NAN = float("nan")


def family(*rows: tuple[str, str | None]) -> Lineage:
    return Lineage(
        pa.table(
            {
                "id": [one for one, _ in rows],
                "parent": pa.array([parent for _, parent in rows], pa.string()),
                "source": ["seed" if parent is None else "hard" for _, parent in rows],
                "iteration": [0] * len(rows),
            }
        )
    )


def test_children_depth_and_ancestry() -> None:
    lineage = family(("a", None), ("b", None), ("c", "a"), ("d", "c"), ("e", "a"), ("f", "d"))
    assert lineage.depths.tolist() == [0, 0, 1, 2, 1, 3]
    assert lineage.seeds.tolist() == [0, 1, 0, 0, 0, 0]
    assert lineage.depth("f") == 3
    assert lineage.children("a") == ["c", "e"]
    assert lineage.children("f") == []
    assert lineage.ancestry("f") == ["a", "c", "d", "f"]
    assert lineage.ancestry("b") == ["b"]
    with pytest.raises(KeyError):
        lineage.children("nobody")


def test_a_parent_that_is_not_there_or_comes_later_is_none() -> None:
    lineage = family(("a", "b"), ("b", "a"), ("c", "missing"), ("d", "d"))
    assert lineage.depths.tolist() == [0, 1, 0, 0]
    assert lineage.ancestry("b") == ["a", "b"]


def gaps(values: list[list[float]], rows: tuple[int, ...], tau: float = 1.0) -> Gaps:
    teacher = np.array(values)
    ids = pa.array([f"r{n}" for n in range(len(values))])
    return Gaps(ids, tuple(range(1, teacher.shape[1] + 1)), teacher + 3, np.full_like(teacher, 3.0), rows, tau)


def test_what_became_easy_and_what_became_hard() -> None:
    found = gaps([[2, 0], [0, 1], [3, 1], [0, 0.5], [NAN, 0], [NAN, 2]], rows=(5, 6))
    (step,) = found.steps()
    assert (step.before, step.after) == (1, 2)
    assert step.learned.to_pylist() == ["r0"]
    assert step.forgotten.to_pylist() == ["r1"], "a gap of exactly tau is hard"
    assert (step.still_hard, step.still_easy, step.judged) == (1, 1, 4)
    assert step.unmeasured == 1, "the row that joined later was not in both pools"
    assert step.gap_before == pytest.approx(5 / 4)
    assert step.gap_after == pytest.approx(2.5 / 4)
    assert found.widest(2) == [5, 1]
    assert not found.hard()[4, 0], "without a verdict a row is not hard"


def test_a_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", rows=12, new=4, iterations=2).finish()
    lineage, found = read_lineage(folder.store), read_gaps(folder.store)
    assert len(lineage) == 12 + 4 + 4
    assert lineage.depths.tolist() == [0] * 12 + [1] * 4 + [2] * 4
    child = folder.read_pool("2")[1]
    assert lineage.ancestry(child["id"])[-2:] == [child["parent"], child["id"]]
    assert child["id"] in lineage.children(child["parent"])
    assert found.iterations == (1, 2)
    assert found.rows == (12, 16)
    assert found.ids.to_pylist() == [one["id"] for pool in "01" for one in folder.read_pool(pool)]
    assert np.isnan(found.values[12:, 0]).all(), "what joined later was not judged in iteration 1"
    assert np.isnan(found.values[3, 0]), "the row without a verdict"
    (step,) = found.steps()
    assert step.judged + step.unmeasured == 12
    assert step.judged == 11


def test_nothing_yet(tmp_path: Path) -> None:
    empty = RunFolder(tmp_path / "run").store
    assert len(read_lineage(empty)) == 0
    assert read_gaps(empty).steps() == []
    assert read_gaps(empty).widest(3) == []
    assert read_diversity(empty) == []
    assert len(read_lineage(RunStore(str(tmp_path / "nowhere")))) == 0


def test_distinct_n_grams() -> None:
    assert distinct(["a b a b"], 1) == 0.5
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b", "a b"], 2) == 0.5, "an n-gram ends with its text"
    assert distinct(["a"], 2) == 0.0


def test_nearest_is_what_the_filter_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_ray.analysis.diversity._CHUNK", 3)
    known = [
        f"tell me about {word} and about the sea number {n}" for n, word in enumerate(["salt", "tides", "fish"] * 3)
    ]
    texts = ["tell me about tides", "something else", *known[:2]]
    index = NoveltyIndex(known)
    found = nearest(texts, indexes(known))
    assert found is not None
    assert found.tolist() == [index.nearest(text, 1)[0][1] for text in texts]
    own = nearest(known, indexes(known), exclude_self=True)
    assert own is not None
    assert own.tolist() == [
        max(score for place, score in index.nearest(text, len(known)) if place != row) for row, text in enumerate(known)
    ]
    assert nearest(texts, []) is None
    assert nearest(["alone"], indexes(["alone"]), exclude_self=True) is None


def test_every_pool_is_measured_on_as_many_rows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", rows=30, new=6, iterations=2).finish()
    found = read_diversity(folder.store)
    assert [(one.pool, one.rows, one.sample) for one in found] == [(0, 30, 6), (1, 6, 6), (2, 6, 6)]
    assert found[0].nearest_before is None
    assert all(one.nearest_before is not None and 0 < one.nearest_before <= 1 for one in found[1:])
    assert [one.sample for one in read_diversity(folder.store, sample=2)] == [2, 2, 2]
    assert read_diversity(folder.store) == found


def test_a_gain_is_paired() -> None:
    rng = np.random.default_rng(5)
    teacher = np.full(200, 8.0)
    before = rng.integers(1, 10, 200).astype(float)
    found = paired_gain((teacher, before), (teacher, before + 0.4), seed=1)
    assert found is not None
    assert found.value == pytest.approx(0.05)
    # Unpaired, the spread of the scores exclude_self would hide so small a gain.
    assert found.low == pytest.approx(0.05)
    assert found.high == pytest.approx(0.05)
    noisy = paired_gain((teacher, before), (teacher, rng.permutation(before)), seed=1)
    assert noisy is not None
    assert noisy.low < 0 < noisy.high
    nothing = np.array([])
    assert paired_gain((nothing, nothing), (nothing, nothing), seed=1) is None
