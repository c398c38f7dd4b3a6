"""The arrows between rooms point one way: what each room may not load, proven in a process that loaded nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lion_ray
from tests import warm

ROOT = Path(lion_ray.__file__).parent
HEAVY = {"ray", "torch", "vllm", "openai", "transformers"}
SENDING = {"lion_ray.gateway.client"}
LIGHT = ("numpy", "pydantic", "yaml", "jinja2")
"""What any room may load: imported once, in the process from which each room's is forked."""
FLOORS = (
    ("core",),
    ("config",),
    ("prompts", "similarity", "data", "models", "gateway", "tracking"),
    ("inference", "imitation", "discrimination", "generation"),
    ("evaluation", "analysis"),
    ("actors",),
    ("pipeline",),
    ("report", "export"),
    ("cli", "testing"),
)
"""The rooms, from the ground up: a room imports from its own floor or from those below."""


def modules(room: str) -> list[str]:
    files = sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
    return [
        ".".join(("lion_ray", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for file in files
        if file.name != "__main__.py"
    ]


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("prompts similarity data discrimination generation", {"ray", "torch", "vllm", "openai", *SENDING}),
        ("gateway", {"ray", "torch", "vllm"}),
        ("gateway/client gateway/batch actors/teacher actors/referee actors/generator", {"openai"}),
        ("models", {"ray", "torch", "vllm", "openai", *SENDING}),
        ("imitation", {"ray", "vllm", "openai", "lion_ray.gateway"}),
        ("inference", {"ray"}),
        ("tracking", {*HEAVY, *SENDING, "pyarrow", "tensorboard", "wandb", "mlflow"}),
        ("api", {*HEAVY, "pyarrow", "rich"}),
        ("evaluation", {"ray", "torch", "vllm", "transformers"}),
        # What a report reads.
        ("evaluation/benchmarks/protocol evaluation/benchmarks/recorded evaluation/benchmarks/hub", {*HEAVY, *SENDING}),
        ("evaluation/pairwise/table analysis discrimination/quality", {*HEAVY, *SENDING}),
        ("report", {*HEAVY, *SENDING}),
        ("export", {*HEAVY, "huggingface_hub"}),
        ("core", HEAVY),
        ("config", {*HEAVY, "pyarrow"}),
        ("cli", {*HEAVY, "pyarrow", "rich.progress"}),
    ],
)
def test_a_room_does_not_load(room: str, forbidden: set[str]) -> None:
    """`room`: one or several, apart by spaces."""
    names = [name for one in room.split() for name in modules(one)]
    ended = warm.run("tests.loaded", *names, imported=LIGHT if "pyarrow" in forbidden else (*LIGHT, "pyarrow.compute"))
    assert ended.code == 0, ended.err
    assert not set(ended.out.split()) & forbidden


def imports_of(file: Path) -> set[str]:
    """The rooms whose modules a file imports, wherever in the file; what only a type checker reads is left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {parts[1] for name in found if (parts := name.split("."))[0] == "lion_ray" and len(parts) > 1}


def test_every_room_has_a_floor() -> None:
    assert {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))} == set(sum(FLOORS, ()))


@pytest.mark.parametrize("room", sum(FLOORS, ()))
def test_imports_go_down(room: str) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upwards = {
        f"{file.relative_to(ROOT)} imports {other}"
        for file in (ROOT / room).rglob("*.py")
        for other in imports_of(file)
        if floor.get(other, -1) > floor[room]
    }
    assert upwards == set()


def test_only_the_command_line_stands_on_the_api() -> None:
    files = [file for file in ROOT.rglob("*.py") if file.parent.name != "cli" and file.parent != ROOT]
    users = [file for file in files if re.search(r"lion_ray\.api\b|from lion_ray import .*\bapi\b", file.read_text())]
    assert users == []
