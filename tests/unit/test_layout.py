"""A run's paths are made in one module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lion_ray
from lion_ray.core import layout

ROOT = Path(lion_ray.__file__).parent
NAMES = {
    layout.RUN,
    layout.PROGRESS,
    layout.STOPPED,
    layout.QUESTIONS,
    layout.QUARANTINE,
    layout.CONTAMINATED,
    layout.TRAINING,
}
"""Files that only a run's folder has; others (manifest.json, report.html) also stand for something else."""
BEGINNING = re.compile(r"(pool|answers|iteration)-(\d.*)?$|(pool|answers)-heldout")
NOT_A_RUN_S = {"imitation/training/state.py": {layout.PROGRESS}}
"""A file within a checkpoint of a fit."""


def texts_of(file: Path) -> list[tuple[int, str]]:
    """Every text in a file that is neither a docstring nor part of a sentence."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_path_of_a_run_is_made_elsewhere(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    if name == "core/layout.py":
        return
    allowed = NOT_A_RUN_S.get(name, set())
    own = [
        f"line {line}: {text!r}"
        for line, text in texts_of(file)
        if (text in NAMES - allowed) or (BEGINNING.match(text) and " " not in text)
    ]
    assert own == [], f"{name}: use core.layout"


def test_the_test_would_see_one(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text('"""pool-0 in prose."""\nname = f"iteration-{k}/verdicts"\nother = "pool-heldout"\n')
    texts = [text for _, text in texts_of(file)]
    assert [bool(BEGINNING.match(text)) for text in texts if text != "/verdicts"] == [True, True]


@pytest.mark.parametrize(
    ("stage", "iteration"),
    [("answers-0", 1), ("answers-3", 4), ("pool-2", 2), ("iteration-2/verdicts", 2), ("answers-heldout", 0), ("x", 0)],
)
def test_whose_stage_it_is(stage: str, iteration: int) -> None:
    assert layout.iteration_of(stage) == iteration


def test_parts_go_beyond_five_digits() -> None:
    for index in (0, 7, 99_999, 100_000, 1_234_567):
        assert layout.part_index(layout.part("s", index).removeprefix("s/")) == index
    assert layout.part_index("part-00001.parquet.tmp") is None
