"""The training bench's own arithmetic: what was asked for, rows, medians, goals."""

from __future__ import annotations

import json

import pytest

from bench import training
from bench.training import OURS, PACKED, PADDED


def one_round(tokens_per_s, loss=1.0, **more):
    fields = {"tokens_per_s": tokens_per_s, "seconds": 1.0, "labelled": tokens_per_s / 2, "heldout_loss": loss}
    return fields | {"peak_mb": 100, "fill": 1.0, "steps": 3, "threads": 2, **more}


def ways(**rounds):
    names = {"ours": OURS, "padded": PADDED, "packed": PACKED}
    return {names[name]: training.summed_up(of) for name, of in rounds.items()}


def test_a_quick_run_is_one_round_of_a_tiny_model():
    given = training.arguments(["--quick"], gpu=False)
    assert (given.model, given.rounds) == ("random:10m", 1)


def test_a_full_run_has_three_rounds_of_the_bundled_model_or_on_a_gpu_of_a_large_one():
    assert (given := training.arguments([], gpu=False)).model == training.MODEL
    assert given.rounds == 3
    assert training.arguments([], gpu=True).model == "random:1b"


def test_the_large_model_is_refused_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        training.arguments(["--model", "random:1b"], gpu=False)
    assert "needs a GPU" in capsys.readouterr().err


def test_rows_are_made_where_there_is_no_file_and_are_the_same_every_time(tmp_path):
    rows = training.texts(5, tmp_path / "none.json")
    assert len(rows) == 5
    assert all(row["instruction"] and row["answer"] for row in rows)
    assert rows == training.texts(5, tmp_path / "none.json")


def test_an_input_is_part_of_the_instruction_and_a_row_without_an_answer_is_none(tmp_path):
    path = tmp_path / "rows.json"
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Go.", "input": "", "output": ""},
    ]
    path.write_text(json.dumps(rows))
    assert training.texts(5, path) == [{"instruction": "Add.\n\n1 and 2", "answer": "3"}]


def test_times_is_the_median_of_rounds_that_ran_side_by_side():
    # The machine was half as fast in the second round; that is no difference between the ways.
    found = ways(
        ours=[one_round(300), one_round(150), one_round(330)], padded=[one_round(100), one_round(50), one_round(110)]
    )
    assert training.times(found, PADDED) == 3.0
    assert training.times(found, PACKED) is None


def test_every_goal_holds_or_is_missed_by_what_was_measured():
    found = ways(ours=[one_round(230, 1.01)], padded=[one_round(100, 1.0)], packed=[one_round(200)])
    assert [goal.ok for goal in training.judged(found)] == [True, True, True]
    found = ways(ours=[one_round(229, 1.011)], padded=[one_round(100, 1.0)], packed=[one_round(230)])
    assert [goal.ok for goal in training.judged(found)] == [False, False, False]


def test_a_peer_that_did_not_run_leaves_its_goal_unmeasured_with_a_reason():
    found = ways(ours=[one_round(300)], padded=[one_round(100)], packed=[{"reason": "no such package"}])
    goal = training.judged(found)[1]
    assert (goal.ok, goal.note) == (None, "no such package")


def test_utilisation_counts_six_operations_for_each_parameter_and_token():
    assert training.utilisation(1_000_000, 100, 1.2e9) == 0.5
