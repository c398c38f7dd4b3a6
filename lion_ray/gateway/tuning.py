"""Settings for a process that only sends calls."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 50_000
"""New objects before Python's garbage collector runs on them."""


def collect_seldom() -> None:
    """Make Python's garbage collector run less often, and never on the objects that exist already.

    Each of hundreds of calls in flight holds about a hundred objects until its answer arrives. Scanning them after
    every 700 new objects took a fifth of a call's CPU time (bench/gateway.py). Cycles are still collected, so memory
    stays bounded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)
