"""A slot of the pool for one student engine, and how much work an engine gets at once."""

from __future__ import annotations

import asyncio
import math
from typing import Any

BATCHES_AHEAD = 3
"""Batches of rows in flight at each engine besides the oldest shard: a shard ends with its longest answer, and its
short answers leave free slots in the batch long before."""
MAX_SHARDS_PER_ENGINE = 64
"""Maximum shards in flight; an actor accepts 100 concurrent calls."""


def shards_per_engine(max_num_seqs: int, shard_rows: int) -> int:
    """How many shards to keep in flight at an engine, so that its batch stays full."""
    return min(MAX_SHARDS_PER_ENGINE, 1 + math.ceil(BATCHES_AHEAD * max_num_seqs / shard_rows))


class Slot:
    """A slot of the pool for one engine; the actor may be replaced, the slot stays."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.actor: Any = None
        self.placed = False
        """The actor is scheduled on a node."""
        self.ready = False
        """The engine accepts shards."""
        self.booting: asyncio.Task[None] | None = None
        self.ending = False
        self.shards = 0
        """Shards in flight."""
        self.taken = 0
        """Shards ever assigned."""

    @property
    def used(self) -> bool:
        return self.actor is not None or self.booting is not None

    @property
    def stays(self) -> bool:
        return self.used and not self.ending
