"""The examples at the end of a run: which rows they are, and that the terminal shows them as text alone."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from lion_ray.analysis.examples import CHARACTERS, COUNT, LINES, read_examples, shortened
from lion_ray.cli.examples import print_examples
from lion_ray.core.records import QUARANTINED, derive_seed, table
from tests.run_folder import RunFolder, plain

EVIL = "[bold red]x[/] :smile: [link=http://x]y[/link] \x1b[31m\x1b]8;;http://x\x07\x9b5m \u202egnp \x00\r\n"


def test_which_rows_they_are_does_not_depend_on_answers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", heldout=9).begin()
    assert read_examples(folder.store) == [], "there is no after yet"
    folder.iterate(1)
    found = read_examples(folder.store)
    ids = [row["id"] for row in folder.read_pool("heldout")]
    assert [one.id for one in found] == sorted(ids, key=lambda one: derive_seed("examples", 0, one))[:COUNT]
    assert [said.who for said in found[0].answers] == ["base model", "student after iteration 1", "teacher"]
    place = ids.index(found[0].id)
    assert found[0].instruction == plain("instruction", 1000 + place)
    wanted = [plain("student", place), plain("student", place), plain("answer", place)]
    assert [said.text for said in found[0].answers] == wanted
    assert all(said.score is None and not said.by_check for said in found[0].answers)
    folder.iterate(2)
    assert [one.id for one in read_examples(folder.store)] == [one.id for one in found]
    assert read_examples(folder.store)[0].answers[1].who == "student after iteration 2"


def test_checks_stand_beside_the_answers(tmp_path: Path) -> None:
    config = {"evaluation": {"checks": [{"type": "contains", "text": "answer"}, {"type": "json"}]}}
    folder = RunFolder(tmp_path / "run", config=config).finish()
    for example in read_examples(folder.store):
        base, after, teacher = example.answers
        assert teacher.by_check == {"contains": 1.0, "json": 0.0}
        assert teacher.score == 0.5
        assert base.score in (0.0, 0.5)
        assert after.score is not None


def test_an_answer_that_failed_is_shown_as_such(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", heldout=3).begin().iterate(1)
    stage = folder.store.stage("iteration-1/heldout/student")
    rows = [
        row | {"status": QUARANTINED, "reason": "prompt too long", "text": ""} for row in stage.read_part(0).to_pylist()
    ]
    stage.write_part(0, table(rows, stage.read_part(0).schema))
    for example in read_examples(folder.store):
        assert (example.answers[1].problem, example.answers[1].text) == ("prompt too long", "")
    assert "no answer: prompt too long" in printed(folder)


def test_a_run_without_held_out_answers_has_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", heldout=0)
    assert read_examples(folder.store) == []
    assert printed(folder) == ""


def printed(folder: RunFolder) -> str:
    stream = io.StringIO()
    print_examples(Console(file=stream, width=180, highlight=False, force_terminal=True), read_examples(folder.store))
    return stream.getvalue()


def test_the_terminal_obeys_nothing_that_was_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", say=lambda what, number: f"{what} {number} {EVIL}").finish()
    shown = printed(folder)
    assert "[bold red]x[/] :smile:" in re.sub(r"\s+", " ", shown)
    own = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", own), "only rich's own colours are left"
    assert "31m" in own, "it is there, as text"
    assert "\x1b[31m" not in shown


def test_texts_are_cut() -> None:
    assert shortened("short\n") == "short"
    long = shortened("word " * 1000)
    assert len(long) < CHARACTERS + 40
    assert long.endswith("more characters)")
    assert shortened("\n".join("abcdefghij")).count("\n") == LINES - 1
