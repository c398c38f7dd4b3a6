"""Diversity of an iteration's new instructions, among each other and compared with earlier ones.

Invariants:
- distinct-n falls with the number of rows, so every pool is measured on a sample of the same size. The result contains
  the size.
- The sample is the rows with the smallest ids. Ids are hashes of the texts, so the choice is random, and the same on
  every machine.
- Nearest neighbours are searched among all earlier rows, not only the sample.

Similarity is ROUGE-L F, as in the generator's filter (`similarity.novelty`). This module does not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lion_ray.analysis.lineage import committed_pools, read_pools
from lion_ray.core.store import RunStore
from lion_ray.similarity.novelty import NoveltyIndex
from lion_ray.similarity.rouge import tokens

SAMPLE = 500
"""Maximum rows measured per pool. A row takes 3 ms against 52,000 known texts on one core."""
ORDERS = (1, 2, 3)
_CHUNK = 50_000
"""Known texts per comparison: each takes 512 bytes in every array of `NoveltyIndex.scores`."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Diversity:
    """The diversity of one pool's new rows."""

    pool: int
    """0: the user's instructions; k: generated in iteration k."""
    rows: int
    sample: int
    """Number of rows measured."""
    distinct: dict[int, float]
    """Share of distinct token n-grams by n, 0 to 1 (Li et al., arXiv 1510.03055)."""
    nearest_before: float | None
    """Mean ROUGE-L F of the nearest text in earlier pools, 0 to 1; None for the first pool."""
    nearest_own: float | None
    """The same within the sample; None for a single row."""


def read_diversity(store: RunStore, sample: int = SAMPLE) -> list[Diversity]:
    """The diversity of each committed pool that has rows, the user's first."""
    pools = {pool: read_pools(store, [pool], ("id", "text")) for pool in committed_pools(store)}
    pools = {pool: rows for pool, rows in pools.items() if rows.num_rows}
    size = min([sample, *(rows.num_rows for rows in pools.values())])
    before: list[NoveltyIndex] = []
    found = []
    for pool, rows in pools.items():
        chosen = _sample(rows, size)
        nearest_before = nearest(chosen, before)
        nearest_own = nearest(chosen, indexes(chosen), exclude_self=True)
        found.append(
            Diversity(
                pool=pool,
                rows=rows.num_rows,
                sample=size,
                distinct={n: distinct(chosen, n) for n in ORDERS},
                nearest_before=None if nearest_before is None else float(nearest_before.mean()),
                nearest_own=None if nearest_own is None else float(nearest_own.mean()),
            )
        )
        if pool != max(pools):
            before += indexes(rows["text"].to_pylist())
    return found


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of distinct n-grams in these texts, 0 to 1; 0.0 if there are none."""
    split = [tokens(text) for text in texts]
    grams = [tuple(words[start : start + n]) for words in split for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def indexes(texts: Sequence[str]) -> list[NoveltyIndex]:
    """Indexes of known texts to compare with, in their order."""
    starts = range(0, len(texts), _CHUNK)
    # With a threshold of 1, an index does not build what only `is_novel` needs.
    return [NoveltyIndex(texts[start : start + _CHUNK], threshold=1.0) for start in starts]


def nearest(texts: Sequence[str], known: Sequence[NoveltyIndex], *, exclude_self: bool = False) -> Floats | None:
    """Each text's highest ROUGE-L F with a known one, [texts]. Returns None if there is nothing to compare with.

    `exclude_self`: `known` indexes the same texts in the same order, and no text is compared with itself.
    """
    if sum(map(len, known)) < 1 + exclude_self or not texts:
        return None
    best = np.zeros(len(texts))
    first = 0
    for index in known:
        row = 0
        for block in index.scores(texts):
            rows = np.arange(row, row + len(block))
            if exclude_self:
                own_column = rows - first
                in_block = (own_column >= 0) & (own_column < block.shape[1])
                block[np.flatnonzero(in_block), own_column[in_block]] = 0.0
            best[rows] = np.maximum(best[rows], block.max(axis=1))
            row += len(block)
        first += len(index)
    return best


def _sample(rows: pa.Table, size: int) -> list[str]:
    chosen = rows.take(pa.compute.sort_indices(rows["id"])[:size]) if rows.num_rows > size else rows
    texts: list[str] = chosen["text"].to_pylist()
    return texts
