"""The report: whatever state a run is in, and whatever its models said."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from lion_ray.analysis.lineage import read_lineage
from lion_ray.core.store import RunStore
from lion_ray.core.terminal import harmless
from lion_ray.evaluation.benchmarks.protocol import PAPER
from lion_ray.pipeline.results import results as read_results
from lion_ray.report import render, write_report
from lion_ray.report.page import scores_in_order
from lion_ray.report.words import duration, without_secrets
from tests.run_folder import RunFolder, plain
from tests.warm import lion

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "h1", "h2", "h3",
    "p", "a", "dl", "dt", "dd", "div", "span", "bdi", "pre", "details", "summary", "figure", "figcaption", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "svg", "desc", "text", "line", "path", "circle", "rect", "polygon",
}  # fmt: skip
"""Everything that the page is made of."""
VOID = {"meta"}


class Page(HTMLParser):
    """The page as a browser sees its elements: names, attributes, and the texts in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_whole(page: str) -> Page:
    """What is true of every report; returns it parsed."""
    parsed = Page(page)
    assert {name for name, _ in parsed.elements} <= ALLOWED
    for name, attributes in parsed.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src", "srcset", "action")], (
            name
        )
        assert (attributes.get("href") or "#").startswith("#"), "a link leads nowhere outside"
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in parsed.of("svg"):
        title, description = (svg["aria-labelledby"] or "").split()
        assert title in ids
        assert description in ids
        assert svg["role"] == "img"
    policy = next(one["content"] for one in parsed.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[\w+/=]+'; base-uri 'none'; form-action 'none'", policy)
    assert "url(" not in page
    assert "@import" not in page
    assert "\x00" not in page
    assert parsed.text.count("nan") == 0
    return parsed


def charts(page: Page) -> set[str]:
    return {(one["aria-labelledby"] or "").split()[0].removesuffix("-title") for one in page.of("svg")}


def test_a_run_that_has_done_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    page = check_whole(render(folder.store))
    assert "small" in page.text
    assert "No stage is finished yet." in page.text
    assert "Nothing is judged yet." in page.text
    assert charts(page) == set()
    assert "$0" not in page.text, "what is not known is not 0"
    assert not re.search(r"(relative quality|held-out loss|spent|calls|tokens|active time) 0", page.text)


def test_a_run_that_has_begun(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    page = check_whole(render(folder.store))
    assert charts(page) == {"quality", "wins", "distinct", "near", "time", "time-narrow"}
    assert "later ones are not judged yet" in page.text
    assert "This run is not finished;" in page.text


def test_a_run_that_was_killed_within_a_stage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    folder.fit(1)
    folder.judge(1, "", ["0"])
    # The parts are there, the manifest that commits them is not.
    folder.store.delete("iteration-1/verdicts/manifest.json")
    page = check_whole(render(folder.store))
    assert "scatter-1" not in charts(page)
    assert "2.000 → 1.500" in page.text


def test_a_finished_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", iterations=2).finish()
    write_report(folder.store)
    text = folder.store.read_bytes("report.html").decode()
    page = check_whole(text)
    expected = {"loss", "quality", "wins", "sides", "distinct", "near", "time", "time-narrow"}
    expected |= {f"{kind}-{iteration}" for kind in ("scatter", "judged", "written") for iteration in (1, 2)}
    assert charts(page) == expected
    assert "2.000 → 1.250" in page.text, "held-out loss, before and after"
    calls = len({key for _, key in folder._bought})
    assert f"paid calls {calls:,}" in page.text
    assert f"${calls * 0.001:.2f}" in page.text
    assert "finished; iteration 3 of 3" in page.text
    assert "too similar" in page.text
    assert "Judged on the same 6 held-out instructions" in page.text
    assert "verdict without readable scores" in page.text
    # The widest gap of the last judged iteration: rows 0, 5, 10 and 15 grow, the others shrink.
    assert plain("answer", 4) in page.text
    assert plain("review", 5) in page.text
    assert "gap by iteration" in page.text
    assert "default-src" in text
    assert len(text) < 400_000


def test_what_was_drawn_is_there_as_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").finish()
    rows = [one for table in re.findall(r"<tbody>(.*?)</tbody>", render(folder.store), re.S) for one in [table]]
    cells = [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for table in rows for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
    ]
    assert ["1", "1.500"] in cells, "the loss after iteration 1"
    verdicts = folder.store.stage("iteration-1/verdicts").manifest() or {}
    assert ["your instructions", "hard", str(verdicts["hard"])] in cells
    assert ["your instructions", "easy", str(verdicts["easy"])] in cells
    assert ["your instructions", "without a verdict", "1"] in cells


def test_prices_that_are_not_configured_are_not_0(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", config={"endpoints": {"default": {"model": "m"}}}).begin()
    page = check_whole(render(folder.store))
    assert "no endpoint has prices configured" in page.text
    assert "$" not in page.text


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg><script>alert(2)</script>",
    "</style><style>*{display:none}</style>",
    "</title></desc></pre></details>",
    "{{7*7}}{% raw %}${7*7}",
    "\x00\x01\x1b[31m\x7f\x85",
    "abc \u202e\u2066 gnp.exe \u2069 \u200f",
    "javascript:alert(3)//' onload='x",
    "&lt;b&gt; &#60;script&#62; <!-- ]]> <![CDATA[",
)


def evil(what: str, number: int) -> str:
    text = f"{EVIL[number % len(EVIL)]} {what} {number} " + "".join(EVIL)
    return text + "A" * 100_000 if (what, number) == ("answer", 4) else text


def test_what_models_said_stays_text(tmp_path: Path) -> None:
    config = {
        # What a configuration may say too; a run's name may hold less.
        "student": {"model": EVIL[1]},
        "endpoints": {EVIL[0]: {"model": EVIL[2], "base_url": "https://api.example/v1"}},
        "teacher": {"endpoint": EVIL[0], "prompt": EVIL[3]},
        "referee": {"endpoint": EVIL[0]},
        "generator": {"endpoint": EVIL[0]},
    }
    folder = RunFolder(tmp_path / "run", say=evil, config=config | CHECKS).finish()
    described = folder.store.read_json("run.json")
    described["config"]["run_name"] = EVIL[1] + EVIL[4]
    # As an older lion-ray let it be.
    described["config"]["endpoints"][EVIL[0]]["base_url"] = "https://user:hunter2@api.example/v1"
    described["versions"] = {EVIL[0]: EVIL[1]}
    folder.store.write_json("run.json", described)
    folder.store.write_json("stopped.json", {"iteration": 9, "reason": EVIL[3]})
    quality = {"ratio": 0.9, "low": 0.8, "high": 1.0, "n": 80}
    relative = {"suite": EVIL[1], "target": EVIL[0], "relative": quality, "judge": EVIL[2]}
    folder.store.write_json("evaluations/a.json", relative | {"by_category": {EVIL[n]: quality for n in range(10)}})
    folder.store.write_json("evaluations/b.json", {"suite": EVIL[3], EVIL[0]: [EVIL[1], {EVIL[2]: EVIL[4]}]})
    folder.store.write_bytes(f"evaluations/{EVIL[5][:7]}.json", b"{")
    text = render(folder.store)
    page = check_whole(text)
    assert "<script" not in text.lower()
    assert "onerror=alert(1)" in page.text, "it is there, as text"
    assert "{{7*7}}" in page.text
    assert "49" not in re.findall(r"\d+", page.text.split("Hardest rows")[1].split("Configuration")[0])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f]", text)
    assert "⟨RLO⟩" in page.text
    assert "hunter2" not in text
    assert "of 100," in page.text, "the long answer is cut, and the page says so"
    assert "A" * 10_000 not in text
    assert len(page.of("style")) == 1


def test_evaluations_stand_beside_the_papers_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").finish()
    task = {"task": "navigate", "questions": 250, "answered": 250, "right": 100, "unparsed": 3, "accuracy": 0.4}
    scored = {"suite": "bbh", "extraction": "published", "tasks": [task], "missing": ["snarks"], "mean": 0.4}
    about = {"target": "iteration-3", "made_at": "2026-01-01T00:00:00Z"}
    folder.store.write_json("evaluations/bbh.json", about | scored | {"whole": False, "paper": PAPER["bbh"]})
    quality = {"ratio": 0.9123, "low": 0.85, "high": 0.97, "n": 80}
    vicuna = {"suite": "vicuna80", "relative": quality, "wins": 10, "ties": 20, "losses": 50, "unparsed": 2}
    vicuna |= {"by_category": {"math": quality | {"n": 3}}, "settings": {"orders": 2}}
    folder.store.write_json("evaluations/vicuna.json", about | vicuna)
    folder.store.write_json("evaluations/other.json", about | {"suite": "mine", "score": 7, "nested": {"a": [1, 2]}})
    folder.store.write_json(
        "evaluations/odd.json", {"tasks": [1, "x", None], "mean": "high", "relative": {"ratio": True}}
    )
    folder.store.write_json("evaluations/list.json", [1])
    page = check_whole(render(folder.store))
    assert "Lion-7B (paper)" in page.text
    assert "40.0%" in page.text
    assert "Not every question was answered" in page.text
    assert "91.2% [85.0%, 97.0%], n = 80" in page.text
    assert "93.8%" in page.text
    assert "math" in page.text
    assert '{"a": [1, 2]}' in page.text
    assert "evaluations/list.json: not a JSON object" in page.text


def test_what_is_known_of_the_judge(tmp_path: Path) -> None:
    """Its canaries, its calibration, and rows that rest on one order."""
    folder = RunFolder(tmp_path / "run").finish()
    found = {"rows": 8, "quarantined": {}, "parts": 1, "verdicts": 16, "right": 12, "mean_gap": 2.5}
    says = "<b>the judge has drifted</b>"
    folder.store.stage("iteration-1/canaries").commit(found)
    folder.store.stage("iteration-2/canaries").commit(found | {"against": 1, "drift": {"drifted": True, "says": says}})
    kappa = {"value": 0.38, "low": 0.24, "high": 0.51, "n": 60}
    labelled = {"pairs": 60, "kappa": kappa, "sd_both_orders": 2.5, "tau": {"recommended": 4.0}, "agreement": None}
    made = {"made_at": "2026-11-23T10:00:00+00:00", "judge": {}, "rows": None, "labelled": labelled}
    folder.store.write_json("evaluations/judge.json", made)
    page = check_whole(render(folder.store))
    assert "12 (75.0%) +2.50" in page.text
    assert f"Warning, iteration 2: the judge has changed since iteration 1. {says}" in page.text
    assert "Calibration of 2026-11-23" in page.text
    assert "Cohen's kappa 0.38 [0.24, 0.51]" in page.text
    assert "recommended τ, by noise 4.00" in page.text
    assert "agreement with the labels –" in page.text
    assert 'id="benchmarks"' not in render(folder.store), "a calibration is none"
    stage = folder.store.stage("iteration-1/verdicts")
    verdicts = stage.read_part(0)
    one_order = pa.nulls(verdicts.num_rows, verdicts.schema.field("student_first").type)
    place = verdicts.schema.get_field_index("student_first")
    stage.write_part(0, verdicts.set_column(place, "student_first", one_order))
    check_whole(render(folder.store))


CHECKS = {"evaluation": {"checks": [{"type": "contains", "text": "answer"}, {"type": "json"}, {"type": "exact"}]}}


def test_checks_are_drawn_with_the_teacher_and_as_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", config=CHECKS).finish()
    text = render(folder.store)
    page = check_whole(text)
    assert charts(page) >= {"checks", "check-0", "check-1", "check-2"}
    # Of six rows one says the word with the base model, and four at the end; a word is one check of three.
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    cells = [[re.sub(r"<[^>]*>", "", one) for one in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]
    (last,) = [row for row in cells if row[:1] == ["3"] and len(row) == 9 and row[-1] == "6 of 6"]
    assert last[1].startswith("0.22 [")
    assert last[2].startswith("0.67 [")
    assert last[3] == last[4] == "0.00 [0.00, 0.00]"
    assert last[5].startswith("+0.06 [")
    assert last[6].startswith("+0.17 [")
    assert last[7].startswith("67% [")
    (teacher,) = [row for row in cells if row[:1] == ["teacher"] and len(row) == 9]
    assert teacher[1].startswith("0.33 [")
    assert "dashed line, teacher: 0.33" in page.text, "the figure's description says it too"
    assert "checks, held-out" in page.text
    assert re.search(r"0\.22 \[0\.\d\d, 0\.\d\d\], 67%", page.text), "the first table has the teacher's share"
    assert 'id="checks-section"' not in render(RunFolder(tmp_path / "other").begin().store)


def test_examples_of_before_and_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", config=CHECKS).begin()
    assert 'id="examples"' not in render(folder.store), "there is no after yet"
    folder.iterate(1)
    section = check_whole(render(folder.store)).text.split("Before and after")[2].split("Hardest rows")[0]
    assert "3 held-out instructions, chosen by a hash of the run's seed" in section
    assert section.count("base model") == section.count("student after iteration 1") == 3
    assert "checks: contains 1.00, json 0.00, exact 0.00" in section


def test_a_run_of_the_version_before_references(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin().iterate(1)
    for pool in ("heldout", "0"):
        stage = folder.store.stage(f"pool-{pool}")
        for part in range((stage.manifest() or {})["parts"]):
            stage.write_part(part, stage.read_part(part).drop_columns(["reference"]))
    # It goes on with this version: later parts have the column.
    folder.iterate(2)
    page = check_whole(render(folder.store))
    assert "Before and after" in page.text
    assert read_lineage(folder.store).rows.num_rows == 12 + 4 + 4


def test_without_evaluations_there_is_no_such_section(tmp_path: Path) -> None:
    assert 'id="benchmarks"' not in render(RunFolder(tmp_path / "run").begin().store)


def test_an_older_run_that_did_not_write_down_when_stages_began(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    stage = folder.store.stage("answers-0")
    manifest = stage.manifest() or {}
    del manifest["began"]
    stage.commit(manifest)
    page = check_whole(render(folder.store))
    assert "Stages without a recorded start: 1 · teacher answers the Train Pool (10 min)" in page.text
    assert "sum over the stages" in page.text


def test_the_command(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "small").begin()
    command = ("report", str(folder.root))
    done = lion(*command)
    assert (done.code, done.out.strip()) == (0, str(folder.root / "report.html")), done.err
    check_whole((folder.root / "report.html").read_text())
    other = tmp_path / "out.html"
    assert lion(*command, "--out", str(other)).code == 0
    check_whole(other.read_text())
    done = lion(*command, "--out", str(tmp_path / "no" / "x.html"))
    assert done.code == 6
    assert "could not be written" in done.message


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").begin()
    folder.store.write_bytes("answers-0/manifest.json", b"{")
    done = lion("report", str(folder.root))
    assert done.code == 6
    assert re.fullmatch(r"lion-ray: .*answers-0/manifest\.json: damaged .*not JSON: .*\n", done.err)


def test_an_order_that_was_not_asked_is_not_called_unreadable() -> None:
    assert scores_in_order([9.0, 2.5], "9 2.5") == "teacher 9, student 2.5"
    assert scores_in_order(None, "Both are fine.") == "no readable scores"
    assert scores_in_order(None, None) == scores_in_order(None, "") == "not asked in this order"


def test_texts_that_act_are_shown() -> None:
    assert harmless("a\x00b\r\nc\rd") == "a␀b\nc␍d"
    assert harmless("\u202eabc") == "⟨RLO⟩abc"
    assert harmless("half \ud800 of one").encode()
    assert harmless("مرحبا 你好 👩‍👩‍👧 é\tx\n") == "مرحبا 你好 👩‍👩‍👧 é\tx\n"


def test_addresses_lose_their_passwords() -> None:
    assert without_secrets({"a": ["s3://key:secret@bucket/x", 1, None]}) == {"a": ["s3://…@bucket/x", 1, None]}
    assert without_secrets("mail me@example.org") == "mail me@example.org"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (18720, "5 h 12 min"), (183600, "2 d 3 h")],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_json_of_a_config_is_read_back(tmp_path: Path) -> None:
    import yaml

    folder = RunFolder(tmp_path / "run")
    page = Page(render(folder.store))
    written = next(words for words in page.words if words.startswith("run_name:"))
    assert yaml.safe_load(written) == json.loads(RunStore(str(folder.root)).read_bytes("run.json"))["config"]


def test_rewards_and_win_rates_are_shown_with_the_alarm(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "rounds", iterations=1).finish()
    for iteration, reward in ((1, 0.4), (2, 0.9)):
        run.rounds(iteration, (reward - 0.1, reward))
    write_report(run.store)
    page = unescape(Path(run.store.path("report.html")).read_text())
    assert "Win rate against the teacher" in page
    assert "Reward, and what measures independently of it" in page
    assert "12 of 40" in page
    results = read_results(run.store)
    assert results[2].win_rate is not None
    assert results[2].win_rate["rate"]["n"] == 6
    assert results[2].gain_heldout is not None
    # The run's student gains as it goes: without the alarm's reason, no alarm.
    assert not any("please the verifier" in warning for one in results for warning in one.warnings)


def test_a_calibrated_judge_s_errors_are_taken_out_of_the_win_rate(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "calibrated", iterations=0).finish()
    confusion = {"1": {"1": 45, "2": 5, "tie": 0}, "2": {"1": 5, "2": 45, "tie": 0}, "tie": {"1": 0, "2": 0, "tie": 0}}
    run.store.write_json("evaluations/judge.json", {"labelled": {"confusion": confusion}})
    (result,) = [one for one in read_results(run.store) if one.iteration == 1]
    assert result.win_rate is not None
    rows = result.win_rate["rate"]["n"]
    expected = min(1.0, max(0.0, (result.win_rate["losses"] / rows - 0.1) / 0.8))
    assert result.win_rate["losses_corrected"]["value"] == pytest.approx(expected)
