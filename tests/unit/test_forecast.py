"""Times on this machine: what is forecast before a run, and how it is corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lion_ray.config import RunConfig
from lion_ray.core import layout
from lion_ray.core.store import RunStore
from lion_ray.models import machine
from lion_ray.models.machine import Speeds
from lion_ray.pipeline import local_times
from lion_ray.pipeline.forecast import Forecast, opening_lines
from lion_ray.pipeline.local_times import LocalTimes, in_words, left_s, planned_s
from lion_ray.pipeline.plan import StagePlan, make_plan, plan_table, share_done
from tests.unit.test_plan import configured

ZEN3 = Speeds(
    "a CPU",
    2,
    ("float32",),
    {"float32": 97.0, "bfloat16": 17.0, "float16": 20.0, "int8": 300.0},
    {1: 6.0, 16: 40.0, 64: 90.0, 256: 120.0},
)


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for module in (machine, local_times):
        monkeypatch.setattr(module, "speeds", lambda: ZEN3)
    monkeypatch.setattr("lion_ray.inference.server.speeds", lambda: ZEN3)


def served(folder: Path, **changes: Any) -> RunConfig:
    config = configured(folder, serve={"model": "teacher-1.5b", **changes.pop("serve", {})}, api_key_env=None)
    student = config.student.model_copy(update={"model": "student-0.1b", "use_gpu": False})
    imitation = config.imitation.model_copy(update={"use_gpu": False, **changes.pop("imitation", {})})
    return config.model_copy(update={"student": student, "imitation": imitation, **changes})


def test_every_stage_of_a_local_run_has_a_time(tmp_path: Path) -> None:
    plan = make_plan(served(tmp_path), tmp_path)
    times = {stage.stage: stage.local_s for stage in plan.stages if stage.rows}
    assert all(seconds is not None and seconds > 0 for seconds in times.values()), times
    assert plan.local_s == pytest.approx(local_times.START_S + sum(stage.local_s or 0 for stage in plan.stages))
    assert "minutes here (about)" in [column.header for column in plan_table(plan).columns]
    assert any("on this machine" in note for note in plan.notes)
    assert not any("limits" in note for note in plan.notes), "a server of one's own has none"


def test_served_calls_by_hand(tmp_path: Path) -> None:
    config = served(tmp_path, serve={"max_num_seqs": 64})
    plan = make_plan(config, tmp_path)
    teacher = next(
        stage for stage in plan.stages if stage.iteration == 1 and stage.stage == "teacher answers the Train Pool"
    )
    # 100 instructions of 5 tokens; the frame of 60 is read once; 100 answers of 160 tokens, 64 at a time.
    rate = machine._LAYERS_EFFICIENCY * 1e9 / 3e9
    assert teacher.local_s == pytest.approx((100 * 5 + 60) / (rate * 120) + 100 * 160 / (rate * 90))


def test_an_emulated_type_takes_as_much_longer(tmp_path: Path) -> None:
    times = (
        LocalTimes.here(served(tmp_path), tmp_path),
        LocalTimes.here(served(tmp_path, imitation={"precision": "bf16"}), tmp_path),
    )
    fits = [(one.fit(18_000) or 0) - local_times.FIT_START_S for one in times if one]
    assert fits[1] == pytest.approx(fits[0] * 97 / 17)
    assert times[0] is not None
    assert times[0].slow_types() == []
    assert times[1] is not None
    (line,) = times[1].slow_types()
    assert line.startswith("imitation.precision: on this CPU, bfloat16 is 5.7 times slower than float32")


def test_what_this_machine_does_not_compute_is_not_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = configured(tmp_path)
    on_gpus = remote.model_copy(
        update={
            "student": remote.student.model_copy(update={"use_gpu": True}),
            "imitation": remote.imitation.model_copy(update={"use_gpu": True}),
        }
    )
    plan = make_plan(on_gpus, tmp_path)
    assert plan.local_s is None
    assert {stage.local_s for stage in plan.stages} == {None}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert make_plan(served(tmp_path), tmp_path).local_s is None


def test_the_frame_of_ones_own_template_is_measured(tmp_path: Path) -> None:
    content = "Rules. " * 100 + "{{ instruction }}"
    (tmp_path / "mine.yaml").write_text(
        f"description: mine\nmessages:\n  - role: user\n    content: '{content}'\n", encoding="utf-8"
    )
    config = configured(tmp_path)
    own = config.model_copy(update={"teacher": config.teacher.model_copy(update={"prompt": "mine.yaml"})})
    built_in, mine = (
        next(stage for stage in make_plan(one, tmp_path).stages if stage.iteration == 1).prompt_tokens
        for one in (config, own)
    )
    assert mine - built_in == 100 * (700 // 4 - 60)


def test_what_is_left_follows_what_was_seen() -> None:
    assert left_s(planned=600, done=0, elapsed=0) == 600
    assert left_s(planned=600, done=300, elapsed=300) == pytest.approx(300)
    # Twice as slow as forecast: what is left is nearly doubled, the more the more was seen.
    assert 300 < left_s(600, 300, 600) < 600
    assert left_s(6000, 3000, 6000) / 3000 > left_s(600, 300, 600) / 300
    assert left_s(600, 700, 900) == 0


def test_a_run_corrects_its_forecast(tmp_path: Path) -> None:
    config = served(tmp_path).model_copy(update={"shard_rows": 25})
    plan = make_plan(config, tmp_path)
    assert plan.local_s is not None
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    now = [1000.0]
    first = Forecast(plan, store, config, clock=lambda: now[0])
    assert first.left_s() == pytest.approx(plan.local_s)
    answers = next(stage for stage in plan.stages if stage.folder == "answers-0")
    now[0] += local_times.START_S + 3 * (answers.local_s or 0)
    store.stage("answers-0").commit({"rows": 100, "parts": 4})
    rest = plan.local_s - local_times.START_S - (answers.local_s or 0)
    assert rest < (first.left_s() or 0) < 3 * rest, "three times as slow as forecast, and what was forecast counts too"
    # Another attempt finds that done: it neither waits for it nor learns from it.
    again = Forecast(plan, store, config, clock=lambda: now[0])
    assert again.left_s() == pytest.approx(plan.local_s - (answers.local_s or 0))


def test_what_a_run_says_before_it_starts(tmp_path: Path) -> None:
    quick, slow = served(tmp_path), served(tmp_path, serve={"model": "teacher-400b", "dtype": "bfloat16"})
    for config, warned in ((quick, 0), (slow, 2)):
        plan = make_plan(config, tmp_path)
        times = LocalTimes.here(config, tmp_path)
        assert times is not None
        assert plan.local_s is not None
        lines = opening_lines(plan, plan.local_s, times)
        assert "on this machine" in lines[0]
        assert len(lines) == 1 + warned
        assert all(line.startswith("warning: ") for line in lines[1:])
    assert "judging the Cache Pool alone takes" in lines[1]
    assert "endpoints.default.serve.dtype: on this CPU, bfloat16 is 5.7 times slower" in lines[2]


def test_planned_seconds_add_up() -> None:
    def stage(seconds: float | None, local: float | None) -> StagePlan:
        return StagePlan(1, "a stage", "a-stage", 1, seconds=seconds, local_s=local)

    assert planned_s([stage(None, None), stage(30.0, None)]) is None
    assert planned_s([stage(None, 10.0), stage(30.0, 20.0), stage(5.0, None)]) == local_times.START_S + 10 + 30 + 5


def test_times_in_words() -> None:
    assert [in_words(one) for one in (40, 720, 9000)] == ["about 40 s", "about 12 min", "about 2.5 h"]


def test_each_step_of_on_policy_rounds_counts_as_done(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        served(tmp_path).model_dump() | {"on_policy": {"reward": {"type": "discriminator"}, "rounds": 2}}
    )
    rounds = next(stage for stage in make_plan(config, tmp_path).stages if stage.folder == layout.rounds(1))
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    shares = [share_done(rounds, store, config)]
    for number in (1, 2):
        for folder in (layout.round_samples, layout.round_rewards, layout.round_checkpoint):
            store.stage(folder(1, number)).commit({})
            shares.append(share_done(rounds, store, config))
    assert shares == pytest.approx([n / 6 for n in range(7)])
