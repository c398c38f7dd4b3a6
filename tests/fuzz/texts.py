"""Targets: models' texts (`discrimination.score_parser`, `core.thoughts`), and users' configurations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from lion_ray.config.file import load_config
from lion_ray.core.errors import ConfigError
from lion_ray.core.thoughts import closing_of, only_thoughts, without_thoughts
from lion_ray.discrimination.score_parser import parse_scores
from tests.fuzz.target import FOLDER, Draw, target

ROOT = Path(__file__).resolve().parents[2]
PIECES = (
    *("Score 1: ", "8", "6.5", " 7 9\n", "Assistant 1", "**", "\n", "/10", "first", "second", "[", "]", "[[8]]"),
    *("```json\n", "```\n", '{"score": ', "}", '"', "'", "> ", "| ", "seven", "rating", "tie", "0", "10", "not "),
    *("<think>", "</think>", "<|channel|>", "final", "<|message|>", "analysis", "<|end|>", "<blockquote>"),
    *(" out of ", "5/5", "$\\boxed{", "}", "\u2028", "：", "８", "½"),
)


def _written(data: bytes) -> str:
    """The bytes as text, or a text assembled from typical pieces of verdicts."""
    draw = Draw(data)
    if draw.below(2):
        return "".join(draw.choice(PIECES) if draw.below(5) else draw.text() for _ in range(draw.below(60)))
    return draw.rest().decode("utf-8", "replace")


def _verdicts() -> Iterable[bytes]:
    for text in (
        "8 6",
        "Score 1: 8\nScore 2: 6.5",
        '```json\n{"assistant 1": 8, "assistant 2": 6}\n```',
        "<think>8 6?</think>\n| Assistant 1 | 8/10 |\n| Assistant 2 | 6/10 |",
        "The first assistant gets seven out of ten, the second nine.",
        "[[8]] [[6]]",
    ):
        yield b"\0" + text.encode()
    yield b"\1" + bytes(range(250))


@target("verdicts", seeds=_verdicts)
def verdicts(data: bytes) -> None:
    found = parse_scores(_written(data))
    assert found is None or all(isinstance(one, float) and 0 <= one <= 10 and math.isfinite(one) for one in found)


def _thoughts() -> Iterable[bytes]:
    yield b"\0<think>so</think>8 6"
    yield b"\0<|channel|>analysis<|message|>so<|end|><|channel|>final<|message|>8 6"
    yield b"\1" + bytes(range(250))


@target("thoughts", seeds=_thoughts)
def thoughts(data: bytes) -> None:
    text = _written(data)
    answer = without_thoughts(text)
    assert len(answer) <= len(text)
    only_thoughts(text)
    closing_of(text)


def _configurations() -> Iterable[bytes]:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        yield b"\0" + path.read_bytes()
    yield b"\1\x12imitation.epochs=2" + (ROOT / "configs" / "demo.yaml").read_bytes()
    yield b"\0a: &a [*a]\nb: {? [1]: 2}\nc: 0x1F\nd: .inf\ne: 2026-01-01\nf: !!python/object:os.system x\n<<: *a\n"


@target("configuration", ConfigError, seeds=_configurations)
def configuration(data: bytes) -> None:
    draw = Draw(data)
    overrides = [draw.text() for _ in range(draw.below(3))]
    path = FOLDER.empty() / "run.yaml"
    path.write_bytes(draw.rest())
    load_config(path, overrides)
