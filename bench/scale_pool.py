"""The pools that `bench/scale.py` and its parts take, and a run's configuration for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench.stub_run import stub_config
from lion_ray.config import RunConfig

NEW_SHARE = 0.06
"""New instructions in an iteration, as a share of the pool: somewhat less than the paper's 6,000 to 52,000."""
HELDOUT = 64


def config(folder: Path, rows: int) -> RunConfig:
    """One iteration on a pool of `rows` rows."""
    new = max(2, round(NEW_SHARE * rows))
    return stub_config(folder, f"scale-{rows}", "http://127.0.0.1:1/v1", heldout=HELDOUT, new=new)


def write_pool(path: Path, rows: int) -> None:
    """Write `rows` different instructions of 10 words, hardly any two of them similar."""
    rng = random.Random(0)
    words = [f"term{number}" for number in range(20_000)]
    with path.open("w") as file:
        for number in range(rows):
            text = " ".join([f"Explain item {number}:", *rng.choices(words, k=8)])
            file.write(json.dumps({"instruction": text}) + "\n")
