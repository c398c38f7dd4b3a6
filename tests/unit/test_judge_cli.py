"""`lion-ray judge calibrate` as a person runs it, against a stub of an endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stub_api import fetch_stats, stub_process
from tests.unit.test_calibration import make_run, written
from tests.warm import Outcome, lion

PAIRS = [
    {"instruction": f"Say {n}.", "first": f"good {n}", "second": f"poor {n}", "label": (1, 2, "tie")[n % 3]}
    for n in range(6)
]


def configure(folder: Path, base_url: str, **endpoint: Any) -> Path:
    path = folder / "c.yaml"
    judging = {"base_url": base_url, "model": "m", "api_key_env": None, "send_seed": True, "max_concurrency": 1}
    config = {
        "run_name": "r",
        "data": {"pool": "pool.jsonl"},
        "endpoints": {"other": {"model": "absent"}, "api": judging | endpoint},
        "referee": {"endpoint": "api", "prompt": "scores", "max_tokens": 16},
        "teacher": {"endpoint": "other"},
        "generator": {"endpoint": "other"},
        "student": {"model": "./student"},
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def calibrate(folder: Path, *words: str) -> Outcome:
    return lion("judge", "calibrate", *words, cwd=folder)


def test_labelled_pairs_are_asked_once_and_never_again(tmp_path: Path) -> None:
    written(tmp_path, *PAIRS)
    with stub_process("--lion") as base_url:
        configure(tmp_path, base_url, prices={"input": 1.0, "output": 10.0})
        command = ("c.yaml:api", "--pairs", "pairs.jsonl", "--out", "found.json")
        first = calibrate(tmp_path, *command, "--json")
        assert first.code == 0, first.err
        assert fetch_stats(base_url)["total"] == 6 * 2 * 2
        more = calibrate(tmp_path, *command, "--samples", "3", "--budget", "5")
        assert more.code == 0, more.err
        stats = fetch_stats(base_url)
        assert (stats["total"], stats["repeated"]) == (6 * 2 * 3, {})
    report = json.loads(first.out)
    found = report["labelled"]
    assert report["judge"]["endpoint"] == "api"
    assert report["rows"] is None
    assert (found["pairs"], found["replies"], found["verdicts"], found["unread_rate"]) == (6, 24, 12, 0)
    assert (found["calls_now"], found["agreement"]["n"]) == (24, 6)
    assert found["usd_now"] == pytest.approx(6 * 2 * found["usd_per_pair"])
    assert found["tau"]["configured"] == 1.0
    assert "Cohen's kappa" in more.out
    assert "recommended" in more.out
    assert json.loads((tmp_path / "found.json").read_text())["labelled"]["calls_now"] == 12, "those of the third sample"


def test_the_budget_ends_it_and_what_was_paid_for_is_kept(tmp_path: Path) -> None:
    written(tmp_path, *PAIRS)
    with stub_process("--lion") as base_url:
        configure(tmp_path, base_url, prices={"input": 1000.0, "output": 1000.0})
        ended = calibrate(tmp_path, "c.yaml:api", "--pairs", "pairs.jsonl", "--budget", "2")
        assert ended.code == 8
        assert "the budget of $2.00 is spent" in ended.message
        bought = fetch_stats(base_url)["completed"]
        assert 0 < bought < 24
        rest = calibrate(tmp_path, "c.yaml:api", "--pairs", "pairs.jsonl", "--json")
        assert fetch_stats(base_url)["completed"] == 24
    assert json.loads(rest.out)["labelled"]["calls_now"] == 24 - bought


def describe(folder: Path, base_url: str) -> None:
    """A run whose referee is the stub; its description also holds what this version does not know."""
    store = make_run(folder)
    endpoint = {"base_url": base_url, "model": "m", "api_key_env": None}
    config = {
        "run_name": "job",
        "journal": None,
        "seed": 0,
        "endpoints": {"api": endpoint},
        "referee": {"endpoint": "api", "prompt": "scores", "max_tokens": 16},
        "discrimination": {"tau": 1.5},
        "student": {"of_another_version": True},
    }
    store.write_json("run.json", {"config": config, "base_dir": str(folder)})


def test_what_a_run_recorded_is_read_without_a_call(tmp_path: Path) -> None:
    describe(tmp_path, "http://127.0.0.1:9/v1")
    done = calibrate(tmp_path, "--run", "./run", "--samples", "1", "--json", "--rows", "0")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["labelled"], report["rows"]) == (None, None)
    second = report["second_order"]
    assert [one["margin"] for one in second] == [0, 0.5, 1, 2, 3]
    # Three rows have both orders: d 4 (5, 3), -1 (-2, 0) and 1 (1, 1), in 7 calls; tau is 1.5.
    assert [one["rows"] for one in second] == [3] * 5
    assert second[0]["calls_saved"] == 3
    assert second[0]["calls_share"] == pytest.approx(3 / 7)
    assert second[0]["usd_saved"] == pytest.approx(0.1 + 0.1 + 0.1)
    assert [one["changed"] for one in second] == [0] * 5
    assert second[1]["asked_second"] == 1
    assert json.loads((tmp_path / "run" / "evaluations" / "judge.json").read_text()) == report


def test_a_runs_rows_are_judged_again_by_its_own_referee(tmp_path: Path) -> None:
    with stub_process("--lion") as base_url:
        describe(tmp_path, base_url)
        done = calibrate(tmp_path, "--run", "./run", "--json")
        assert done.code == 0, done.err
        # Five rows in two orders for the second sample, and the first sample's order that was never asked.
        assert fetch_stats(base_url)["total"] == 5 * 2 + 1
        again = calibrate(tmp_path, "--run", "./run", "--json")
        assert fetch_stats(base_url)["total"] == 11
    found = json.loads(done.out)["rows"]
    assert (found["pairs"], found["samples"], found["calls_now"]) == (5, 2, 11)
    # Of the recorded calls two could not be read for the row that is quarantined, and one for another.
    assert found["unread"] == {"verdict cut off": 2, "retried": 1}
    assert found["replies"] == 11 + 11
    assert found["tau"]["configured"] == 1.5
    assert json.loads(again.out)["rows"]["calls_now"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("c.yaml:absent", "--pairs", "pairs.jsonl"), "no endpoint is called 'absent' (there is other, api)"),
        (("c.yaml:api",), "--pairs FILE"),
        (("--pairs", "pairs.jsonl"), "name a judge"),
        (("nonsense", "--pairs", "pairs.jsonl"), "CONFIG.yaml:ENDPOINT"),
        (("c.yaml:api", "--pairs", "pairs.jsonl", "--budget", "1"), "endpoint api has no prices"),
        (("c.yaml:api", "--pairs", "pairs.jsonl", "--prompt", "nonsense"), "scores-turns"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    written(tmp_path, *PAIRS)
    configure(tmp_path, "http://127.0.0.1:9/v1")
    done = calibrate(tmp_path, *words)
    assert done.code == 2
    assert says in done.message
