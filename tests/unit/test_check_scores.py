"""From scores to figures: means, gains and shares with paired intervals; and the stage that writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lion_ray.actors.run_store import RunStoreServer
from lion_ray.config import RunConfig
from lion_ray.core.errors import DataError
from lion_ray.core.records import ANSWER, CHECKED, INSTRUCTION, instruction_id, table
from lion_ray.core.statistics import RESAMPLES, percentiles, resampled_sums
from lion_ray.core.store import RunStore
from lion_ray.evaluation.check_scores import describe, gain_of, mean_of, share_of
from lion_ray.pipeline.results import summarise
from lion_ray.pipeline.results_table import results_table

ROWS = 40


def rows(scores: list[float | None]) -> pa.Table:
    def row(n: int, score: float | None) -> dict[str, Any]:
        each = [{"check": "one", "value": score}, {"check": "other", "value": score}]
        ok = score is not None
        return {"id": f"{n}", "status": "ok" if ok else "quarantined", "score": score, "scores": each if ok else []}

    return table((row(n, score) for n, score in enumerate(scores)), CHECKED)


def test_all_columns_are_drawn_together_and_the_same_each_time() -> None:
    sums = resampled_sums([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], seed=3)
    assert sums.shape == (2, RESAMPLES)
    assert (sums[1] == 2 * sums[0]).all()
    assert (sums == resampled_sums([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], seed=3)).all()


def test_draws_in_several_pieces_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled_sums([[1.0, 2.0, 3.0]], seed=3)
    monkeypatch.setattr("lion_ray.core.statistics.AT_ONCE", 1000)
    assert (resampled_sums([[1.0, 2.0, 3.0]], seed=3) == whole).all()


def test_an_interval_covers_as_often_as_it_says() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.random(ROWS)
        low, high = percentiles(resampled_sums([values], seed)[0] / ROWS)
        covered += low <= 0.5 <= high
    assert 178 <= covered <= 200


def test_a_mean_of_nothing_is_nothing() -> None:
    assert mean_of([], 0) is None
    assert gain_of({"a": 1.0}, {"b": 1.0}, 0) is None
    assert share_of({"a": 0.0}, {"a": 0.5}, 0) is None, "of a teacher that has nothing there is no share"
    alone = mean_of([0.5], 0)
    assert alone is not None
    assert (alone.value, alone.low, alone.high, alone.n) == (0.5, 0.5, 0.5, 1)


def test_pairs_cancel_what_makes_a_row_hard() -> None:
    before = {f"{n}": n / ROWS for n in range(ROWS)}
    after = {row: score + 0.1 for row, score in before.items()}
    gain = gain_of(before, after, 0)
    assert gain is not None
    assert gain.value == pytest.approx(0.1)
    assert gain.high - gain.low < 1e-9
    mean = mean_of(list(after.values()), 0)
    assert mean is not None
    assert mean.high - mean.low > 0.1


def test_figures_use_the_rows_that_both_have() -> None:
    base, teacher = rows([0.0, 0.5, None, 1.0]), rows([1.0, None, 1.0, 1.0])
    found = describe(rows([0.5, 0.5, 1.0, None]), ["one", "other"], seed=0, teacher=teacher, before=base, base=base)
    assert (found["mean"]["value"], found["mean"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["gain"]["value"], found["gain"]["n"]) == (0.25, 2)
    assert found["gain_over_base"] == found["gain"]
    assert (found["share_of_teacher"]["value"], found["share_of_teacher"]["n"]) == (0.75, 2)
    assert (found["teacher"]["value"], found["teacher"]["n"]) == (1.0, 3)
    assert found["by_check"]["one"] == found["by_check"]["other"] == found["mean"]
    nothing = describe(rows([None]), ["one"], seed=0)
    assert nothing["mean"] is nothing["by_check"]["one"] is nothing["gain"] is nothing["share_of_teacher"] is None


# -- the stage -------------------------------------------------------------------------------------------------------


def configured(*checks: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_name": "r",
            "data": {"pool": "p.jsonl", "heldout": 4},
            "endpoints": {"default": {"model": "m"}},
            "student": {"model": "s"},
            "evaluation": {"checks": checks},
        }
    )


def folder(path: Path, given: dict[str, list[str | None]], *, references: bool = True) -> RunStore:
    """A run with a held-out set of 4 rows in 2 parts, and answers by stage; None is a quarantined one."""
    store = RunStore(str(path))
    store.claim()
    texts = [f"What is {n}?" for n in range(4)]
    asked = [
        {"id": instruction_id(t), "text": t, "source": "seed", "iteration": 0, "reference": f"{n}"}
        for n, t in enumerate(texts)
    ]
    for part in (0, 1):
        pool = table(asked[2 * part : 2 * part + 2], INSTRUCTION)
        # As the version before wrote it.
        store.stage("pool-heldout").write_part(part, pool if references else pool.drop_columns(["reference"]))
        for stage, answers in given.items():
            said = [
                {"id": row["id"], "text": text or "", "status": "ok" if text else "quarantined", "reason": why}
                for row, text in list(zip(asked, answers, strict=True))[2 * part : 2 * part + 2]
                for why in [None if text else "timed out (after 3 s)"]
            ]
            store.stage(stage).write_part(part, table(said, ANSWER))
    store.stage("pool-heldout").commit({"rows": 4, "parts": 2})
    return store


GIVEN: dict[str, list[str | None]] = {
    "answers-heldout": ["0", "1", "2", "3"],
    "iteration-0/heldout/student": ["9", "9", "9", None],
    "iteration-1/heldout/student": ["0", "it is 1", None, "3"],
}


def test_the_stage_of_a_checkpoint(tmp_path: Path) -> None:
    store = folder(tmp_path, GIVEN)
    config = configured({"type": "number"}, {"type": "exact"})
    run_store = RunStoreServer(store)
    for iteration in (None, 0, 1):
        name = "answers-heldout/checks" if iteration is None else f"iteration-{iteration}/heldout/checks"
        first = run_store.check_answers(config, tmp_path, iteration)
        again = run_store.check_answers(config, tmp_path, iteration)
        assert first == again, "killed before its manifest it says the same"
        store.stage(name).commit(first)
    found = store.stage("iteration-1/heldout/checks").manifest() or {}
    assert (found["rows"], found["scored"], found["unanswered"]) == (4, 3, {"no answer: timed out": 1})
    assert found["mean"]["value"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["by_check"]["exact"]["value"] == pytest.approx(2 / 3)
    assert (found["gain"]["value"], found["gain"]["n"]) == (0.75, 2)
    assert found["share_of_teacher"]["value"] == pytest.approx(2.5 / 3)
    assert found["teacher"]["value"] == 1
    result = summarise(store, 1)
    assert result.checks is not None
    assert result.checks["mean"] == found["mean"]
    assert "checks 0.83 [" in result.sentence()
    assert "83% of the teacher's" in result.sentence()
    assert result.quarantined == {}, "the answer's fault is counted with the answers"
    headings = [column.header for column in results_table([result]).columns]
    assert headings.index("checks, held-out") == headings.index("minutes") - 1
    assert "checks, held-out" not in [column.header for column in results_table([summarise(store, 7)]).columns]


def test_rows_without_a_reference_in_an_older_runs_parts(tmp_path: Path) -> None:
    store = folder(tmp_path, GIVEN, references=False)
    found = RunStoreServer(store).check_answers(configured({"type": "json"}), tmp_path, None)
    assert found["mean"]["value"] == 1
    with pytest.raises(DataError, match=r"none of the teacher's answers .*: 4 × check exact: no reference\. Correct"):
        RunStoreServer(store).check_answers(configured({"type": "exact"}), tmp_path, None)


def test_parts_of_two_versions_are_one_table(tmp_path: Path) -> None:
    store = folder(tmp_path, GIVEN)
    stage = store.stage("pool-heldout")
    stage.write_part(0, stage.read_part(0).drop_columns(["reference"]))
    names = [stage.part_name(0), stage.part_name(1)]
    for read in (RunStoreServer(store).load(*names), stage.read(2), stage.read(2, ("id", "reference"))):
        assert read["reference"].to_pylist() == [None, None, "2", "3"]


def test_a_function_that_always_fails_ends_the_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "own_checks_z.py").write_text("def bad(i, a, r):\n    raise ValueError('no\\nway')\n")
    (tmp_path / "own_checks_y.py").write_text("def some(i, a, r):\n    assert a == '9'\n    return 0\n")
    store = folder(tmp_path, GIVEN)
    with pytest.raises(DataError) as caught:
        RunStoreServer(store).check_answers(configured({"import_path": "own_checks_z:bad"}), tmp_path, None)
    assert "4 × check bad: raised ValueError (no way)" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="3 × check some: raised AssertionError"):
        RunStoreServer(store).check_answers(configured({"import_path": "own_checks_y:some"}), tmp_path, 1)
