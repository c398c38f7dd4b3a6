"""Share a batch among the processes of a fit by tokens.

Invariants:
- Every sample is in exactly one share, and the shares depend on the samples and their number alone, so every process
  computes the same ones.
- Shares are of samples, not of packed rows: as long as a batch has as many samples as there are processes, none idles,
  also where the samples would fit into fewer rows.

This module does not know models or devices.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from lion_ray.imitation.training.data import Batch, Sample, collate, pack
from lion_ray.imitation.training.model import World

Shares = list[list[list[Sample]]]
"""The packed rows of each process."""


def share_out(samples: Sequence[Sample], max_length: int, processes: int) -> Shares:
    """Packed rows of at most `max_length` tokens for each process; the largest share of tokens is kept small.

    Longest sample first, each to the process with the fewest tokens so far: at most a third more than the best.
    """
    shares: list[list[Sample]] = [[] for _ in range(processes)]
    least = [(0, number) for number in range(processes)]
    for sample in sorted(samples, key=lambda one: -one.size):
        tokens, number = least[0]
        shares[number].append(sample)
        heapq.heapreplace(least, (tokens + sample.size, number))
    return [pack(share, max_length) for share in shares]


def micro_batches(shares: Shares, micro_batch_rows: int, world: World) -> Iterator[Batch]:
    """The batches of this process; the same number on every process, so some may be without samples."""
    mine = shares[world.rank]
    for start in range(0, max(len(rows) for rows in shares), micro_batch_rows):
        yield collate(mine[start : start + micro_batch_rows])
