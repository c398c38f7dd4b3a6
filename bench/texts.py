"""Instructions for benches: real ones from a file, synthetic ones, and variations of them.

Everything depends only on the seed.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from lion_ray.data.sources import rows_of

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = SHARED / "alpaca" / "alpaca_data.json.gz"
OTHERS = (SHARED / "self-instruct" / "user_oriented_instructions.jsonl", SHARED / "alpaca" / "seed_tasks.jsonl")


def instructions(path: Path) -> list[str]:
    """The `instruction` of every row of a file, including duplicates."""
    return [str(row.value["instruction"]) for row in rows_of(path.name, path.parent)]


def made(count: int, seed: int = 0) -> list[str]:
    """Synthetic texts of 4 to 30 words out of 21,000, whose frequencies follow Zipf's law as in real instructions."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(21_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))

    def word() -> str:
        return words[bisect.bisect(weights, rng.random() * weights[-1])]

    lengths = [min(30, max(4, round(rng.lognormvariate(2.4, 0.45)))) for _ in range(count)]
    return [" ".join(word() for _ in range(length)) for length in lengths]


def spliced(texts: list[str], seed: int = 0) -> Iterator[str]:
    """Yields endlessly the beginning of one text and the end of another."""
    rng = random.Random(seed)
    while True:
        first, second = rng.choice(texts).split(), rng.choice(texts).split()
        yield " ".join(first[: rng.randint(1, max(1, len(first)))] + second[rng.randint(0, len(second)) :])


def edited(texts: list[str], seed: int = 0) -> Iterator[str]:
    """Yields endlessly a text with up to 60 % of its words replaced, dropped or moved: many near duplicates."""
    rng = random.Random(seed)
    vocabulary = [word for text in rng.sample(texts, min(2000, len(texts))) for word in text.split()]
    while True:
        words = rng.choice(texts).split()
        for _ in range(round(len(words) * rng.uniform(0, 0.6))):
            at = rng.randrange(len(words))
            match rng.randrange(3):
                case 0:
                    words[at] = rng.choice(vocabulary)
                case 1 if len(words) > 1:
                    del words[at]
                case _:
                    words.insert(rng.randrange(len(words)), words.pop(at))
        yield " ".join(words)


def candidates(texts: list[str], others: list[str], count: int, seed: int = 1) -> list[str]:
    """`count` candidates to compare with `texts`: the others, and as many edited as spliced ones, shuffled."""
    chosen = others[:count]
    rest = count - len(chosen)
    chosen += itertools.islice(edited(texts, seed), rest // 2)
    chosen += itertools.islice(spliced(texts, seed), rest - rest // 2)
    random.Random(seed).shuffle(chosen)
    return chosen
