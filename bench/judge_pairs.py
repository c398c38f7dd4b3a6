"""Generates pairs of answers with a known better one, for `lion-ray judge calibrate`; not labelled by people.

`python bench/judge_pairs.py OUT.jsonl [--pairs 60] [--seed 0]` uses instructions and answers of the data bundle beside
the repository. In a quarter of the pairs each, the other answer is: one to another instruction, about as long; the
right one with its words in random order; the right one cut off after a third; the same after an empty phrase (a tie).
The better answer comes first in half of the pairs. The output depends only on the seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench.texts import SHARED
from lion_ray.data.sources import rows_of

SOURCE = SHARED / "alpaca" / "alpaca_sample_5000.jsonl"
WORDS = (12, 60)
"""Limits of an answer's length: long enough to be cut, short enough for a small judge."""
PHRASE = "Here is my answer. "
"""Neither better nor worse. Without it both orders would be the same prompt, and always a tie."""
KINDS = ("other", "shuffled", "cut", "same")


def answered(source: Path) -> list[tuple[str, str]]:
    """Instructions without an input, and their answers."""
    rows = (row.value for row in rows_of(source.name, source.parent))
    return [
        (row["instruction"], row["output"])
        for row in rows
        if not row["input"] and WORDS[0] <= len(row["output"].split()) <= WORDS[1]
    ]


def made(rows: list[tuple[str, str]], pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """The pairs, with the kinds in turn."""
    rng = random.Random(seed)
    chosen = rng.sample(rows, pairs)
    for number, ((instruction, answer), kind) in enumerate(zip(chosen, itertools.cycle(KINDS), strict=False)):
        other = _worse(kind, instruction, answer, rows, rng)
        first_is_better = number // len(KINDS) % 2 == 0
        first, second = (answer, other) if first_is_better else (other, answer)
        label: int | str = "tie" if kind == "same" else 1 if first_is_better else 2
        yield {
            "id": f"{kind}-{number}",
            "instruction": instruction,
            "first": first,
            "second": second,
            "label": label,
        }


def _worse(kind: str, instruction: str, answer: str, rows: list[tuple[str, str]], rng: random.Random) -> str:
    words = answer.split()
    if kind == "shuffled":
        return " ".join(rng.sample(words, len(words)))
    if kind == "cut":
        return " ".join(words[: max(1, len(words) // 3)])
    if kind == "other":
        others = [text for question, text in rows if question != instruction and text != answer]
        return min(rng.sample(others, 200), key=lambda text: abs(len(text) - len(answer)))
    return PHRASE + answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not SOURCE.exists():
        sys.exit(f"{SOURCE} is missing: put the data bundle beside the repository")
    lines = [json.dumps(pair, ensure_ascii=False) for pair in made(answered(SOURCE), given.pairs, given.seed)]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
