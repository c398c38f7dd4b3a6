"""What benches are made of: texts that follow from their seed, goals, and the picture."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree as ET

from bench import goals as promised
from bench.gantt import Lane, gantt
from bench.novelty import brute_force
from bench.texts import candidates, edited, made, spliced
from lion_ray.similarity.novelty import NoveltyIndex


def test_goals_hold_or_not_or_were_not_measured() -> None:
    goals = [
        promised.at_most("a", 1.0, 1.0),
        promised.at_least("b", 1.0, 2.0),
        promised.at_least("c", None, 2.0, "no peer"),
    ]
    assert [goal.ok for goal in goals] == [True, False, None]
    assert not promised.all_ok(goals)
    assert promised.all_ok([goals[0], goals[2]])
    said = json.loads(promised.last_line({"x": 1}, goals, quick=True))
    assert (said["ok"], said["quick"], said["x"], said["goals"]["c"]["note"]) == (False, True, 1, "no peer")
    assert [line.split()[0] for line in promised.lines(goals)] == ["met", "MISSED", "not"]


def test_texts_follow_from_their_seed() -> None:
    texts = made(50)
    assert texts == made(50)
    assert texts != made(50, seed=1)
    assert candidates(texts, ["other"], 20) == candidates(texts, ["other"], 20)
    assert len(candidates(texts, ["other"], 20)) == 20
    for several in (edited(texts), spliced(texts)):
        assert len(set(itertools.islice(several, 30))) > 20


def test_the_benchs_brute_force_agrees_with_the_index() -> None:
    texts = made(150)
    asked = candidates(texts, [], 90)
    index, novel = NoveltyIndex(texts), []
    for text in asked:
        novel.append(index.is_novel(text))
        if novel[-1]:
            index.add(text)
    assert brute_force(texts, asked) == novel
    assert {True, False} == set(novel)


def test_a_picture_has_every_span_and_no_markup_of_a_name() -> None:
    lanes = [Lane("<script>", [(0.0, 1.0), (2.0, 4.0)]), Lane("engine", [(1.0, 3.0)], "resource", [0.5])]
    root = ET.fromstring(gantt([("on", lanes), ("off", [])]))
    bars = [node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("fill", "").startswith("#")]
    assert len(bars) == 3
    assert "<script>" in {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert float(bars[2].get("height", 0)) * 2 == float(bars[0].get("height", 0))
