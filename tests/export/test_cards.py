"""The cards: what they say is so, what is unknown is called unknown, and no text breaks out of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from lion_ray.core.store import RunStore
from lion_ray.export.data_card import data_card
from lion_ray.export.dataset import Written
from lion_ray.export.facts import licence_fields
from lion_ray.export.markdown import escape, fenced, table
from lion_ray.export.model_card import adapter_card, model_card
from lion_ray.export.source import Source
from tests.export.runs import HOSTILE, make_run


def page(text: str) -> str:
    """As a reader's Markdown has it, HTML passed on: what is not escaped would work."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.fixture(scope="module")
def data(exported: Path) -> str:
    return (exported / "data" / "README.md").read_text()


@pytest.fixture(scope="module")
def model(exported: Path) -> str:
    return (exported / "model" / "README.md").read_text()


def test_the_data_card_counts_what_is_there(data: str) -> None:
    assert "| `answers` | `train` | 8 |" in data
    assert "| `answers` | `left_out` | 1 |" in data
    assert "5 of the user's instructions and 3 generated" in data
    assert re.search(r"^\| 1 \| 5 \| – \| – \| 4 \| 2 \|", data, re.M), "seeds trained on, and hard and easy as judged"
    assert re.search(r"^\| 2 \| – \| 1 \| 2 \|", data, re.M)
    assert re.search(r"^\| the user's instructions \| duplicates \| 4 \|", data, re.M)
    assert re.search(r"^\| the user's instructions \| near an evaluation question \| 2 \|", data, re.M)
    assert re.search(r"^\| fine-tuning \| answer cut off \| 1 \|", data, re.M)
    assert "started 2027-01-15, ended 2027-01-16" in data


def test_what_is_unknown_is_called_unknown(data: str, model: str) -> None:
    assert DatasetCard(data).data.to_dict()["license"] == "unknown"
    assert "Their licence is unknown." in data
    assert "Their origin is unknown." in data
    assert ModelCard(model).data.to_dict()["license"] == "unknown"
    assert "The base model's licence is unknown." in model
    assert "terms of use of a teacher's provider may limit" in data
    assert "terms of use of a teacher's provider may limit" in model


def test_what_the_owner_says_is_in_the_card(run: RunStore) -> None:
    source = Source.open(run, licence="CC-BY-4.0", origin=f"a survey {HOSTILE}")
    written = Written(files={"answers": {"train": ["answers/train-1.parquet"]}})
    card = data_card(source, written)
    head = DatasetCard(card).data.to_dict()
    assert (head["license"], head["license_name"]) == ("other", "cc-by-4.0-and-teacher-terms")
    assert "Their licence: CC-BY-4.0." in card
    assert "<script>" not in page(card.split("---", 2)[2])
    assert "a survey &lt;/td&gt;&lt;script&gt;" in page(card)


def test_the_run_s_own_word_on_its_data(base: Path, tmp_path: Path) -> None:
    data = {"pool": "p.jsonl", "licence": "MIT", "source": "our support desk"}
    source = Source.open(make_run(str(tmp_path / "r"), base, data=data))
    assert (source.licence, source.origin) == ("MIT", "our support desk")


def test_the_model_card_tells_what_was_gained(model: str) -> None:
    assert "| loss on the teacher's answers (nats per token) | 2.500 | 1.750 |" in model
    assert "| relative quality | 50.0% (25.0% to 75.0%) | 50.0% (25.0% to 75.0%) |" in model
    assert "The judge is the teacher itself" in model
    assert "shows neither a gain nor a loss" in model
    assert "8 answers" in model
    assert "teacher-1 (at api.example.com)" in model
    assert "arxiv.org/abs/2305.12870" in model


def test_a_measure_that_was_not_taken(run: RunStore) -> None:
    source = Source.open(run)
    blank = [replace(one, quality_heldout=None, loss_before=None, loss_after=None) for one in source.results]
    object.__setattr__(source, "results", blank)
    card = model_card(source)
    assert "| relative quality | not measured | not measured |" in card
    assert "| loss on the teacher's answers (nats per token) | not measured | not measured |" in card
    assert "0.0%" not in card


def test_nothing_private_leaves(exported: Path) -> None:
    for path in exported.rglob("*"):
        if path.is_file() and path.suffix in (".md", ".json", ".jinja", ""):
            text = path.read_text()
            for secret in ("/home", "ada-example", "secret-folder", "user:pass", "key=k", "8443", str(exported.parent)):
                assert secret not in text, f"{secret} in {path.name}"


def test_no_text_of_a_run_breaks_a_card(data: str, model: str) -> None:
    for card in (data, model):
        shown = page(card.split("---", 2)[2])
        assert "<script>" not in shown
        assert 'href="javascript' not in shown
        assert len(re.findall("<h1>", shown)) == 1
    reason = "<td>refused: &lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; | ``` [x](javascript:y) {{ 7 * 7 }}"
    assert reason in page(data), "told as it is, in one cell"


def test_a_prompt_file_of_the_user_s_is_shown_or_said_to_be_gone(base: Path, tmp_path: Path) -> None:
    source = Source.open(make_run(str(tmp_path / "r"), base, teacher={"endpoint": "api", "prompt": "gone.yaml"}))
    assert "**Teacher**: `gone.yaml`\n\nThe template is not on the machine" in data_card(source, Written())
    (base.parent / "own.yaml").write_text(
        "description: d\nmessages:\n- {role: user, content: '```</pre> {{ instruction }}'}\n"
    )
    source = Source.open(make_run(str(tmp_path / "s"), base, teacher={"endpoint": "api", "prompt": "own.yaml"}))
    card = data_card(source, Written())
    assert "````jinja\n[user]\n```</pre> {{ instruction }}\n````" in card


def test_a_run_of_an_older_version(run: RunStore) -> None:
    """Keys that are not there yet, and keys that are not there any more."""
    source = Source.open(run)
    config = json.loads(json.dumps(source.described["config"]))
    for section, key in (("data", "decontaminate"), ("data", "licence"), ("data", "source"), ("teacher", "fallbacks")):
        del config[section][key]
    config["student"]["engines"] = 1
    older = replace(source, described={"config": config})
    for card in (data_card(older, Written()), model_card(older), adapter_card(older, 8)):
        assert "unknown" in card


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        (None, {"license": "unknown"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Gemma Terms of Use", {"license": "other", "license_name": "gemma-terms-of-use", "license_link": "README.md"}),
    ],
)
def test_a_licence_as_the_hub_calls_it(licence: str | None, fields: dict[str, Any]) -> None:
    assert licence_fields(licence) == fields


@pytest.mark.parametrize("text", [HOSTILE, "# no heading", "a_b*c*", "![x](http://y/z.png)", "http://x.example", "$x$"])
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    shown = page(f"Before {escape(text)} after.")
    plain = (
        " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )
    assert shown == f"<p>Before {plain} after.</p>\n"


def test_a_table_has_as_many_cells_as_it_should() -> None:
    shown = page(table(("a", "b"), [(HOSTILE, 1234567), (None, "x\ny")]))
    assert shown.count("<td>") == 4
    assert "<td>1,234,567</td>" in shown
    assert "<td>–</td>" in shown


def test_a_fence_holds() -> None:
    text = "```\n</code>\n````\n"
    shown = page(fenced(text) + "\n\nafter")
    assert shown.count("<pre>") == 1
    assert shown.endswith("<p>after</p>\n")
