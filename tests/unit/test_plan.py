"""What a run is said to cost, against sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.config.file import LoadedConfig
from lion_ray.config.run import BudgetConfig
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import RunStore
from lion_ray.gateway.stats import Latencies, Stats, meter_line
from lion_ray.pipeline.plan import make_plan, plan_table, what_is_left
from lion_ray.pipeline.preflight import check_references


def configured(folder: Path, **endpoint: Any) -> RunConfig:
    rows = "\n".join(json.dumps({"instruction": f"Question number {n:04d}?"}) for n in range(100))  # 21 characters
    (folder / "pool.jsonl").write_text(rows)
    return RunConfig.model_validate(
        {
            "run_name": "r",
            "iterations": 1,
            "data": {"pool": "pool.jsonl"},
            "endpoints": {"default": {"model": "m"} | endpoint},
            "student": {"model": "absent-7b"},
            "generation": {"hard": 10, "easy": 10},
        }
    )


def test_money_about_and_at_most(tmp_path: Path) -> None:
    plan = make_plan(configured(tmp_path, prices={"input": 1.0, "output": 10.0}), tmp_path)
    teacher = next(
        stage for stage in plan.stages if stage.iteration == 1 and stage.stage == "teacher answers the Train Pool"
    )
    # 5 tokens an instruction at four characters a token, 60 for the frame, 160 for a usual answer, 1024 at most.
    assert teacher.usd == pytest.approx(100 * (65 * 1.0 + 160 * 10.0) / 1e6)
    assert teacher.usd_worst == pytest.approx(100 * (65 * 1.0 + 1024 * 10.0) / 1e6)
    judging = next(stage for stage in plan.stages if stage.stage == "judging the Cache Pool")
    assert judging.calls == 200
    assert judging.usd == pytest.approx(200 * ((5 + 200 + 160 + 160) * 1.0 + 150 * 10.0) / 1e6)
    assert judging.usd_worst == pytest.approx(200 * ((5 + 200 + 1024 + 1024) * 1.0 + 512 * 10.0) / 1e6)
    totals = plan.to_json()["totals"]
    assert totals["usd"] == pytest.approx(sum(stage.usd or 0 for stage in plan.stages))
    assert "at most $" in [column.header for column in plan_table(plan).columns]


def test_the_worst_case_and_the_cap_say_what_they_assume(tmp_path: Path) -> None:
    priced = configured(tmp_path, prices={"input": 1.0, "output": 10.0})
    worst = "'at most $' assumes the configured prices, that no answer takes more tokens than max_tokens"
    notes = make_plan(priced, tmp_path).notes
    assert any(note.startswith(worst) for note in notes)
    assert not any("the cap" in note for note in notes)
    capped = priced.model_copy(update={"budget": BudgetConfig(usd=40)})
    cap = "the cap of $40.00 applies to the usage that endpoints report"
    assert any(cap in note for note in make_plan(capped, tmp_path).notes)
    free = make_plan(configured(tmp_path), tmp_path).notes
    assert not any("at most $' assumes" in note for note in free)


def test_without_iterations_the_pool_is_imitated_alone(tmp_path: Path) -> None:
    config = configured(tmp_path).model_copy(update={"iterations": 0})
    planned = {(stage.iteration, stage.stage) for stage in make_plan(config, tmp_path).stages if stage.iteration}
    assert planned == {(1, "teacher answers the Train Pool"), (1, "fine-tuning")}


def test_a_batch_costs_its_share(tmp_path: Path) -> None:
    prices = {"prices": {"input": 1.0, "output": 10.0, "batch": 0.5}}
    live = configured(tmp_path, **prices)
    batch = live.model_copy(update={"teacher": live.teacher.model_copy(update={"mode": "batch"})})
    costs = [make_plan(config, tmp_path).stages[1].usd for config in (live, batch)]
    assert costs[0] == pytest.approx(2 * (costs[1] or 0))


def test_time_at_the_limits(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 50, "tokens_per_minute": 1e9}
    plan = make_plan(configured(tmp_path, limits=limits), tmp_path)
    teacher = next(
        stage for stage in plan.stages if stage.iteration == 1 and stage.stage == "teacher answers the Train Pool"
    )
    assert teacher.seconds == pytest.approx(120)
    assert plan.to_json()["totals"]["usd"] is None
    assert any("no endpoint has prices" in note for note in plan.notes)


def test_what_is_left_counts_what_is_there(tmp_path: Path) -> None:
    config = configured(tmp_path, prices={"input": 1.0, "output": 10.0}).model_copy(update={"shard_rows": 25})
    plan = make_plan(config, tmp_path)
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    everything, worst = what_is_left(plan, store, config)
    assert everything == pytest.approx(plan.to_json()["totals"]["usd"])
    assert worst == pytest.approx(plan.to_json()["totals"]["usd_worst"])
    teacher = next(stage for stage in plan.stages if stage.folder == "answers-0")
    store.write_bytes(store.stage("answers-0").part_name(0), b"rows")
    quarter, _ = what_is_left(plan, store, config)
    assert quarter == pytest.approx((everything or 0) - (teacher.usd or 0) / 4)
    store.stage("answers-0").commit({"rows": 100, "parts": 4})
    rest, _ = what_is_left(plan, store, config)
    assert rest == pytest.approx((everything or 0) - (teacher.usd or 0))


def test_a_budget_needs_prices(tmp_path: Path) -> None:
    config = configured(tmp_path).model_dump()
    with pytest.raises(ValueError, match=r"endpoints\.default\.prices is missing"):
        RunConfig.model_validate(config | {"budget": {"usd": 5}})


def test_the_meter_adds_an_endpoints_proxies() -> None:
    one = Stats(sent_per_minute=300, allowed_per_minute=3000.0, in_flight=4, waiting=10, latency_p50_s=0.8)
    two = Stats(sent_per_minute=310, allowed_per_minute=3000.0, in_flight=5, paused_s=12)
    line = meter_line({"openai": [one, two], "judge": [Stats(down_s=30)]}, 12.349, 50.0)
    assert line == (
        "openai: 610 of 6,000 requests/min, 9 in flight, 10 waiting, 0.8 s median, rate limit: pausing 12 s · "
        "judge: 0 requests/min, DOWN for 30 s, probing · $12.35 of $50.00 spent"
    )
    assert "spent" not in meter_line({"openai": [one]}, 0.0, None)


def test_latencies_are_quantiles() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    for n in range(1, 101):
        latencies.add(n / 100)
    assert latencies.quantile(0.5) == pytest.approx(0.51)
    assert latencies.quantile(0.95) == pytest.approx(0.96)


def test_the_watch_on_the_judge_is_planned_and_priced(tmp_path: Path) -> None:
    config = configured(tmp_path, prices={"input": 1.0, "output": 10.0})
    watching = [stage for stage in make_plan(config, tmp_path).stages if stage.stage == "canary pairs"]
    assert [(stage.iteration, stage.folder, stage.calls) for stage in watching] == [(1, "iteration-1/canaries", 16)]
    # A frame of 200 tokens and short texts, 150 for a verdict; all texts are known, so only verdicts may be longer.
    assert watching[0].usd == pytest.approx(16 * (230 * 1.0 + 150 * 10.0) / 1e6, rel=0.03)
    assert watching[0].usd_worst == pytest.approx((watching[0].usd or 0) + 16 * (512 - 150) * 10.0 / 1e6)
    none = config.model_copy(update={"referee": config.referee.model_copy(update={"canary_pairs": 0})})
    assert not [stage for stage in make_plan(none, tmp_path).stages if stage.stage == "canary pairs"]


def test_the_students_held_out_answers_for_the_checks_are_planned(tmp_path: Path) -> None:
    config = configured(tmp_path).model_dump(mode="json")
    config |= {"data": {"pool": "pool.jsonl", "heldout": 10}, "evaluation": {"checks": [{"type": "json"}]}}
    for when in ("every", "ends", "never"):
        made = RunConfig.model_validate(config | {"discrimination": {"judge_heldout": when}})
        plan = make_plan(made, tmp_path)
        answers = [stage for stage in plan.stages if stage.stage == "student answers held-out"]
        assert [(one.iteration, one.rows, one.calls) for one in answers] == [(0, 10, 0), (1, 10, 0), (2, 10, 0)]
        heldout = [stage.student_tokens for stage in plan.stages if "heldout" in stage.folder]
        assert sum(heldout) == 3 * 10 * made.student.max_tokens, "what is judged as well is answered once"
        assert any("the checks (json) score every held-out answer" in note for note in plan.notes)


def test_held_out_rows_that_no_check_can_score(tmp_path: Path) -> None:
    config = configured(tmp_path).model_dump(mode="json")
    (tmp_path / "held.jsonl").write_text(
        '{"instruction": "One?", "reference": "1"}\n\n{"instruction": "Two?"}\n'
        '{"instruction": "Three?", "reference": " "}\n'
    )
    config |= {"data": {"pool": "pool.jsonl", "heldout": "held.jsonl"}}
    checked = RunConfig.model_validate(config | {"evaluation": {"checks": [{"type": "json"}, {"type": "exact"}]}})
    said = (
        "evaluation.checks: 2 of 3 held-out rows cannot be scored, the first at held.jsonl:3 (check exact: no "
        "reference); they are left out of the checks' scores"
    )
    assert said in make_plan(checked, tmp_path).notes
    assert check_references(LoadedConfig(checked, tmp_path, "x.yaml")) == [said]
    none = RunConfig.model_validate(
        config | {"evaluation": {"checks": [{"type": "number"}]}, "data": {"pool": "pool.jsonl", "heldout": 5}}
    )
    with pytest.raises(
        ConfigError, match=r"5 of 5 held-out rows cannot be scored, the first at pool\.jsonl:\d+ \(check"
    ):
        check_references(LoadedConfig(none, tmp_path, "x.yaml"))


def test_near_threshold_is_not_promised_to_save_anything(tmp_path: Path) -> None:
    config = configured(tmp_path)
    near = config.model_copy(update={"referee": config.referee.model_copy(update={"second_order": "near_threshold"})})
    plans = [make_plan(one, tmp_path) for one in (config, near)]
    assert plans[0].to_json()["totals"] == plans[1].to_json()["totals"]
    assert any("near_threshold" in note for note in plans[1].notes)


def test_workers_without_a_sample_are_warned_of(tmp_path: Path) -> None:
    config = configured(tmp_path).model_dump(mode="json")

    def warned(batch: int, workers: int) -> list[str]:
        imitation = config["imitation"] | {"batch_size": batch, "workers": workers}
        notes = make_plan(RunConfig.model_validate(config | {"imitation": imitation}), tmp_path).notes
        return [note for note in notes if note.startswith("imitation.batch_size")]

    assert warned(128, 128) == []
    assert warned(8, 10) == [
        "imitation.batch_size: 8 samples cannot keep 10 workers busy, so 2 would idle in every step; raise it to 10 or "
        "more, or set imitation.workers to 8 or fewer"
    ]
