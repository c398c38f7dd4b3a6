"""docs/architecture.md names what is there, and its walk of a row stays short."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_BORDERS = 15
"""Pairs of rooms between which a row passes on its way from a file to a batch and back to a new row."""


def exists(name: str) -> bool:
    """Whether a dotted name is a room, a module, or what a module defines."""
    parts = name.split(".")
    path = ROOT / "lion_ray" / "/".join(parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    return (
        module.is_file() and re.search(rf"^(def|class|async def) {parts[-1]}\b", module.read_text(), re.M) is not None
    )


def dotted(text: str) -> list[str]:
    return re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text)


@pytest.mark.parametrize("name", sorted({name for name in dotted(PAGE) if not name.endswith((".py", ".md"))}))
def test_what_the_page_names_is_there(name: str) -> None:
    assert exists(name), f"lion_ray.{name}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+[\w.*-]+)`", PAGE))))
def test_paths_of_the_page_are_there(path: str) -> None:
    places = (ROOT, ROOT / "lion_ray")
    assert any(next(place.glob(path.rstrip("/")), None) is not None for place in places), path


def test_a_row_s_walk_crosses_few_borders() -> None:
    walk = PAGE.partition("## The path of a row")[2].partition("\n## ")[0]
    rooms = [name.split(".")[0] for step in re.findall(r"^\d+\. .*(?:\n   .*)*", walk, re.M) for name in dotted(step)]
    borders = {frozenset(pair) for pair in itertools.pairwise(rooms) if len(set(pair)) > 1}
    assert 8 < len(borders) <= MOST_BORDERS, sorted(map(sorted, borders))
    print(f"{len(borders)} borders, {sum(a != b for a, b in itertools.pairwise(rooms))} crossings")
