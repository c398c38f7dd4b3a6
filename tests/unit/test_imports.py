"""The arrows between rooms point one way: what each room may not load, proven in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lion_ray

ROOT = Path(lion_ray.__file__).parent


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
        ("algorithm", {"ray", "torch", "vllm", "openai", "lion_ray.actors", "lion_ray.gateway.client"}),
        ("gateway", {"ray", "torch", "vllm", "lion_ray.actors"}),
        ("training", {"ray", "vllm", "openai", "lion_ray.actors", "lion_ray.gateway"}),
        ("inference", {"ray", "lion_ray.actors"}),
        ("evaluation", {"ray", "torch", "vllm", "transformers", "lion_ray.actors"}),
        # Those of its modules that a report reads.
        (
            " ".join(
                f"evaluation/{one}" for one in ("benchmarks", "scoring", "questions", "relative", "tables", "hub")
            ),
            {"ray", "torch", "vllm", "openai", "transformers", "lion_ray.gateway.client"},
        ),
        ("report", {"ray", "torch", "vllm", "openai", "transformers", "lion_ray.actors", "lion_ray.gateway.client"}),
        ("export", {"ray", "torch", "vllm", "openai", "transformers", "huggingface_hub", "lion_ray.actors"}),
        ("records", {"ray", "torch", "vllm", "openai", "transformers"}),
        ("store", {"ray", "torch", "vllm", "openai", "transformers"}),
        ("config", {"ray", "torch", "vllm", "openai", "transformers", "pyarrow"}),
        ("cli", {"ray", "torch", "vllm", "openai", "transformers", "pyarrow", "rich.progress"}),
    ],
)
def test_a_room_does_not_load(room: str, forbidden: set[str]) -> None:
    """`room`: one or several, apart by spaces."""
    names = [name for one in room.split() for name in modules(one)]
    code = f"import sys, importlib\nfor m in {names!r}: importlib.import_module(m)\nprint(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert not loaded & forbidden
