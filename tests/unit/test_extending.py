"""docs/extending.md and the doors that it describes: its examples as they stand there, and contracts of all parts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from lion_ray.actors.run_store import kept, summary
from lion_ray.config import RunConfig
from lion_ray.config.file import load_config
from lion_ray.config.plugins import LengthFilterConfig, PatternFilterConfig, imports_of
from lion_ray.core.errors import ConfigError
from lion_ray.core.records import ANSWER, INSTRUCTION, OWN_VERDICT, VERDICT, table
from lion_ray.discrimination import split
from lion_ray.discrimination.judge import load_judge
from lion_ray.gateway.calls import Completion
from lion_ray.imitation.filters import CutOff, Empty, Length, Pattern, load_filters
from lion_ray.pipeline.preflight import check_plugins
from lion_ray.prompts.source import TemplateSource
from lion_ray.testing import PromptSourceContract, RowFilterContract

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"
CONFIG = {
    "run_name": "small",
    "data": {"pool": "pool.jsonl"},
    "endpoints": {"default": {"model": "m"}},
    "student": {"model": "./student"},
}


def examples() -> dict[str, str]:
    """The page's Python files, by their names."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return dict(blocks)


def example_config() -> dict[str, Any]:
    """The page's YAML, put together."""
    found: dict[str, Any] = {}
    for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL):
        for section, keys in yaml.safe_load(block).items():
            found.setdefault(section, {}).update(keys)
    return found


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with the page's files."""
    for name, code in examples().items():
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_page_s_examples_fulfil_their_contracts(beside: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(beside), str(beside)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=beside)
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout


def test_the_page_s_configuration_names_parts_that_are_there(beside: Path) -> None:
    written = CONFIG | example_config()
    (beside / "run.yaml").write_text(yaml.safe_dump(written))
    loaded = load_config(beside / "run.yaml", [])
    assert {path.partition(":")[0] + ".py" for _, path in imports_of(loaded.config)} == set(examples()) - {
        "test_my_parts.py"
    }
    check_plugins(loaded.config, beside)


@pytest.mark.parametrize(
    ("where", "part", "said"),
    [
        ("teacher.source", {"import_path": "my_prompts:Nobody"}, "my_prompts:Nobody cannot be imported"),
        ("teacher.source", {"import_path": "my_judge:WhichIsBetter"}, "has no method messages"),
        ("referee.judge", {"import_path": "my_judge:WhichIsBetter", "options": {"x": 1}}, "cannot be made with its"),
        ("imitation.objective", {"import_path": "my_filter:NoApologies"}, "has no method loss"),
        ("imitation.filters", [{"import_path": "my_judge:WORDS"}], "is not a class"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_line_with_its_key(beside: Path, where: str, part: Any, said: str) -> None:
    section, _, key = where.partition(".")
    config = RunConfig.model_validate(CONFIG | {section: {key: part}})
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        check_plugins(config, beside)
    assert where in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"imitation": {"objective": {"type": "cross_entropi"}}}, "did you mean cross_entropy?"),
        (
            {"imitation": {"objective": {"factor": 2}}},
            "imitation.objective: type: missing; add it, one of cross_entropy",
        ),
        ({"imitation": {"objective": "cross_entropy"}}, "wanted a section with a type, one of cross_entropy"),
        ({"imitation": {"filters": [{"type": "lenght"}]}}, "did you mean length?"),
        ({"imitation": {"filters": [{"type": "length", "max_word": 3}]}}, "did you mean max_words?"),
        ({"referee": {"judge": {"import_path": "no colon"}}}, "wanted package.module:name"),
    ],
)
def test_a_mistake_in_the_choice_of_a_part_is_told(tmp_path: Path, section: Any, said: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG | section))
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(tmp_path / "run.yaml", [])


# -- contracts of what is built in -------------------------------------------------------------------------------------


class TestEmpty(RowFilterContract):
    def make(self) -> Empty:
        return Empty()


class TestCutOff(RowFilterContract):
    def make(self) -> CutOff:
        return CutOff()


class TestLength(RowFilterContract):
    def make(self) -> Length:
        return Length(LengthFilterConfig(type="length", min_words=2, max_words=100))


class TestPattern(RowFilterContract):
    def make(self) -> Pattern:
        return Pattern(PatternFilterConfig(type="pattern", pattern="Satz|10 10"))


class TestTemplate(PromptSourceContract):
    def make(self) -> TemplateSource:
        return TemplateSource("answer", Path())


# -- filtered is no failure -------------------------------------------------------------------------------------------


def rows(*answers: tuple[str, str, str]) -> tuple[pa.Table, pa.Table]:
    """(text, status, reason) of each answer, as tables of instructions and answers."""
    asked = ({"id": f"{n}", "text": f"Question {n}", "source": "seed", "iteration": 0} for n in range(len(answers)))
    given = (
        {"id": f"{n}", "text": text, "status": status, "reason": reason or None}
        for n, (text, status, reason) in enumerate(answers)
    )
    return table(asked, INSTRUCTION), table(given, ANSWER)


def test_filtered_rows_are_counted_apart_from_those_that_failed() -> None:
    filters = load_filters([LengthFilterConfig(type="length", min_words=2)], Path())
    found = kept(filters, *rows(("a b c", "ok", ""), ("a", "ok", ""), ("", "quarantined", "timed out (3 s)")))
    assert found["status"].to_pylist() == ["ok", "filtered", "quarantined"]
    assert found["reason"].to_pylist() == [None, "fewer than 2 words", "timed out (3 s)"]
    told = summary(found)
    assert told["quarantined"] == {"timed out": 1}
    assert told["filtered"] == {"fewer than 2 words": 1}


class Speechless:
    def reason(self, row: object) -> object:
        return 3


class Raising:
    def reason(self, row: object) -> str | None:
        raise ValueError("no\nsuch row")


@pytest.mark.parametrize(("name", "said"), [("Speechless", "returned int"), ("Raising", "ValueError: no such row")])
def test_a_filter_that_misbehaves_is_told_by_its_key(name: str, said: str) -> None:
    config = RunConfig.model_validate(CONFIG | {"imitation": {"filters": [{"import_path": f"{__name__}:{name}"}]}})
    filters = load_filters(config.imitation.filters, Path())
    with pytest.raises(ConfigError, match=rf"imitation\.filters\.0\.import_path: .*{said}"):
        kept(filters, *rows(("a", "ok", "")))


# -- a verdict that is not two numbers ---------------------------------------------------------------------------------


def completion(text: str) -> Completion:
    return Completion(
        key=f"key-{text}", text=text, finish_reason="stop", model="judge", endpoint="e", prompt_tokens=5,
        completion_tokens=2, cost_usd=0.25, logprobs=None,
    )  # fmt: skip


def verdict_of(beside: Path, *replies: str, **config: Any) -> dict[str, Any]:
    """What comes of a row when the page's judge is replied to so, one after another."""
    settings = RunConfig.model_validate(
        CONFIG | {"referee": {"judge": {"import_path": "my_judge:WhichIsBetter"}, **config}}
    ).referee
    judge = load_judge(settings, structured=False, base_dir=beside, seed=1)
    answer = {"id": "1", "text": "an answer", "status": "ok", "reason": None, "version": "v"}
    row = judge.open({"id": "1", "text": "a task"}, answer, answer)
    keys = []
    given = iter(replies)
    while wanted := row.wanted():
        for name in wanted:
            keys.append(row.call(name, "s").ordinal)
            row.take(name, completion(next(given)))
    assert keys == sorted(set(keys)), "asked again it is another question"
    verdict = row.verdict()
    table([verdict], OWN_VERDICT)
    return verdict


def test_a_judge_of_ones_own_gives_a_gap_and_a_detail(beside: Path) -> None:
    verdict = verdict_of(beside, "First")
    assert (verdict["status"], verdict["gap"], verdict["hard"]) == ("ok", 2.0, None)
    assert verdict["detail"] == '{"word": "first"}'
    assert verdict["teacher_score"] is None
    assert (verdict["cost_usd"], verdict["calls"], verdict["model"]) == (0.25, ["key-First"], "judge")


def test_a_reply_that_cannot_be_read_is_asked_again_and_then_quarantined(beside: Path) -> None:
    assert verdict_of(beside, "hm", "second")["gap"] == -2.0
    failed = verdict_of(beside, "hm", "hm", parse_retries=1)
    assert (failed["status"], failed["reason"]) == ("quarantined", "no word that was asked for")
    assert failed["cost_usd"] == 0.5, "both replies were paid for"


def test_rows_are_split_by_the_gap_unless_the_judge_says_so_itself() -> None:
    verdicts = table(
        [
            {"id": "a", "status": "ok", "gap": 2.0},
            {"id": "b", "status": "ok", "gap": 0.5},
            {"id": "c", "status": "ok", "gap": 0.5, "hard": True},
            {"id": "d", "status": "ok", "gap": 9.0, "hard": False},
            {"id": "e", "status": "ok", "teacher_score": 9.0, "student_score": 2.0},
        ],
        OWN_VERDICT,
    )
    assert split.lags(verdicts, 1.0).tolist() == [True, False, True, False, True]
    quality = split.quality(verdicts, seed=0, stage="s")
    assert quality is not None
    assert quality["ratio"] == pytest.approx(2 / 9), "of the rows with scores alone"
    assert split.quality(verdicts.slice(0, 4), seed=0, stage="s") is None


def test_without_a_judge_of_ones_own_verdicts_are_what_they_were() -> None:
    verdicts = table([{"id": "a", "status": "ok", "teacher_score": 5.0, "student_score": 4.0}], VERDICT)
    assert split.lags(verdicts, 1.0).tolist() == [True]
    assert split.order_flips(verdicts) == {"order_flips": 0, "both_orders": 0}
