"""Hostile names in every table and log line: nothing is markup, nothing is obeyed by a terminal, nothing raises."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import lion_ray
from lion_ray.analysis.examples import Example, ExampleAnswer
from lion_ray.cli.examples import print_examples
from lion_ray.cli.main import guarded
from lion_ray.core.errors import ConfigError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.progress import Progress
from lion_ray.core.terminal import Terminal, harmless, one_line, tell
from lion_ray.evaluation.benchmarks.recorded import SuiteScore, TaskScore, score_table
from lion_ray.evaluation.calibration.run import Report
from lion_ray.evaluation.calibration.table import report_tables
from lion_ray.evaluation.checks import check_notes, check_tables
from lion_ray.evaluation.pairwise.table import notes, relative_tables
from lion_ray.pipeline.plan import Plan, StagePlan, plan_table
from lion_ray.pipeline.results_table import results_table
from lion_ray.pipeline.status import Status

HOSTILE = "m[/x][bold]:smile:[link=file:///x]\x1b]52;c;eA==\x07\x1b[2J\x9b31m\r\x08\u202egnp.\ud83d"
SEEN = re.compile(r"m\[/x\]\[bold\]:smile:")
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(*things: Any) -> str:
    """What a terminal without colours is sent."""
    stream = io.StringIO()
    console = Terminal(file=stream, width=400, force_terminal=False)
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str))
    text = stream.getvalue()
    text.encode()
    assert not ACTS.search(text), "something acts"
    return text


def made(kind: Any) -> Any:
    """A value of a type with a hostile text wherever a text may be."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str or kind is Any:
        return HOSTILE
    if kind in (int, float, bool):
        return kind(1)
    if origin in (typing.Union, types.UnionType):
        return made(next(one for one in arguments if one is not type(None)))
    if origin is dict:
        return {made(arguments[0]): made(arguments[1])}
    if origin is tuple:
        listed = (arguments[0],) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
        return tuple(map(made, listed))
    if origin is list:
        return [made(arguments[0])]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        make: Any = kind
        return make(**{one.name: made(hints[one.name]) for one in dataclasses.fields(kind) if one.init})
    raise AssertionError(f"no value for {kind}")


QUALITY = {"ratio": 0.9, "low": 0.8, "high": 1.0, "n": 3, "value": 0.9, "rate": 0.5}
COST = {
    HOSTILE: dict.fromkeys(("calls", "bought", "failed", "prompt_tokens", "completion_tokens", "usd", "bought_usd"), 1)
}
NAMES = {"suite": HOSTILE, "target": HOSTILE, "reference": HOSTILE, "judge": HOSTILE, "cost": COST}
RELATIVE = NAMES | {
    "settings": {
        "1": QUALITY | {"orders": [HOSTILE], "samples": 1, "temperature": 0.2, "order_flips": 1, "unparsed": 0}
    },
    "relative": QUALITY,
    "paper": {HOSTILE: 90.0},
    "by_category": {HOSTILE: QUALITY},
    "win_rate": QUALITY,
    "sign_p": 0.5,
    "wins": 1,
    "ties": 1,
    "losses": 1,
    "unanswered": {"target": 1, "reference": 1},
    "unparsed": 1,
    "reasons": {HOSTILE: 1},
    "cut_off": {HOSTILE: 1},
    "questions": 1,
    "of": 2,
}
CHECKED = NAMES | {
    "checks": {
        "by_check": {HOSTILE: QUALITY},
        "mean": QUALITY,
        "unanswered": {HOSTILE: 1},
        "quarantined": {},
        "rows": 1,
    },
    "cut_off": 1,
    "of": 2,
}


def test_the_tables_of_an_evaluation() -> None:
    for text in (
        shown(*relative_tables(RELATIVE), *notes(RELATIVE)),
        shown(*check_tables(CHECKED), *check_notes(CHECKED)),
    ):
        assert len(SEEN.findall(text)) >= 4
    assert SEEN.search(shown(score_table(SuiteScore("bbh", HOSTILE, (TaskScore(HOSTILE, 1, 1, 1, 0),), ()))))


def test_the_tables_of_a_calibration() -> None:
    report = made(Report)
    report = dataclasses.replace(report, judge={"endpoint": HOSTILE, "prompt": HOSTILE, "model": HOSTILE})
    assert len(SEEN.findall(shown(report_tables(report)))) >= 3


def test_the_tables_of_a_run() -> None:
    result = IterationResult(1, warnings=[HOSTILE], quarantined={HOSTILE: 1}, judges={HOSTILE: 1}, stages={HOSTILE: {}})
    assert SEEN.search(shown(results_table([result])))
    spent = {"role": HOSTILE, "stage": HOSTILE, "iteration": 1, "usd": 1.0}
    spent |= dict.fromkeys(("calls", "prompt_tokens", "completion_tokens"), 1)
    stage = {"name": HOSTILE, "unit": HOSTILE, "done": 1, "total": 2, "seconds": 1.0}
    status = Status(HOSTILE, HOSTILE, 1, 1, [stage], [result], {}, HOSTILE, [spent], stopped=HOSTILE)
    text = shown(status.spending_table(), status.sentence(), *status.stage_lines(), result.sentence())
    assert len(SEEN.findall(text)) >= 5


def test_the_examples_of_a_run() -> None:
    said = ExampleAnswer(HOSTILE, HOSTILE, None, 0.5, {HOSTILE: 0.5})
    stream = io.StringIO()
    print_examples(
        Terminal(file=stream, width=400),
        [Example("id", HOSTILE, (said, said, dataclasses.replace(said, problem=HOSTILE)))],
    )
    assert len(SEEN.findall(stream.getvalue())) >= 5
    assert not ACTS.search(stream.getvalue())


def test_the_plan() -> None:
    hints = typing.get_type_hints(StagePlan)
    stage = StagePlan(**{one.name: made(hints[one.name]) for one in dataclasses.fields(StagePlan) if one.init})
    assert SEEN.search(shown(plan_table(Plan([stage], None, []))))


@pytest.mark.parametrize("terminal", [False, True])
async def test_log_lines_and_bars(terminal: bool) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    if terminal:
        stream = Bars()
        progress = Progress(stream)
    progress.say(f"said {HOSTILE}\n[  9:99] forged")
    with progress.stage(f"stage {HOSTILE}", 2, f"units {HOSTILE}") as stage:
        stage.advance(1, f"note {HOSTILE}")
        stage.waits_for = HOSTILE
        stage.update(2, HOSTILE)
        progress.meter(HOSTILE)
    progress.close()
    # In a terminal the bars' own colours and movements are escape sequences: only what was given is looked at.
    text = stream.getvalue()
    if terminal:
        assert "\x1b]52" not in text
        assert "\x9b" not in text
        assert "\x07" not in text
    else:
        assert not ACTS.search(text)
    assert SEEN.search(text)
    assert "\n[  9:99]" not in text, "a line that was not the program's"


class Bars(io.StringIO):
    """A terminal, as far as rich asks."""

    def isatty(self) -> bool:
        return True


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ConfigError(f"{HOSTILE}: not there")

    assert guarded(fails) == 2
    tell(HOSTILE)
    captured = capsys.readouterr()
    assert SEEN.search(captured.err)
    assert SEEN.search(captured.out)
    assert not ACTS.search(captured.err + captured.out)


def test_what_stays() -> None:
    assert harmless("a\tb\nc – 写 [x] 🐥") == "a\tb\nc – 写 [x] 🐥"
    assert harmless(7) == "7"
    assert one_line("a\r\nb") == "a ⏎ b"
    # Without it rich obeys: there is something to guard against.
    with pytest.raises(Exception, match="closing tag"):
        Console(file=io.StringIO()).print("m[/x]")


def test_nothing_prints_past_it() -> None:
    """Every module: print only of JSON, numbers and the program's own words; rich's console in `terminal` alone."""
    package = Path(lion_ray.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        if where in (
            "core/terminal.py",
            "models/machine.py",
            "config/__main__.py",
            "evaluation/benchmarks/lm_eval_tasks/__main__.py",
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                found += [
                    f"{where}: {one.name}"
                    for one in node.names
                    if one.name == "Console" and "cli/examples" not in where
                ]
            if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.markup"):
                found.append(f"{where}: {node.module}")
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"):
                continue
            words = [one for one in node.args if not isinstance(one, ast.Constant)]
            if not all(harmless_argument(one) for one in words):
                found.append(f"{where}:{node.lineno}: print")
    assert found == []


def harmless_argument(node: ast.expr) -> bool:
    """Whether an argument of print can hold no text from outside: JSON, or numbers that are formatted as such."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "dumps":
        return True
    if isinstance(node, ast.JoinedStr):
        return all(isinstance(one, ast.Constant) or is_number(one) for one in node.values)
    return isinstance(node, ast.Name) and node.id == "__version__"


def is_number(node: Any) -> bool:
    counted = (
        isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "count"
    )
    return counted or node.format_spec is not None
