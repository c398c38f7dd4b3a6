"""How a process that does nothing but send calls is set up."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 50_000
"""New objects before Python looks for unreachable cycles among them."""


def collect_seldom() -> None:
    """Have Python look for unreachable cycles less often, and never among what is there already.

    Hundreds of calls are under way at once, each some hundred objects that live until its answer is there, and looking
    through all of them after every 700 new ones took a fifth of a call's CPU time (bench/gateway.py). Cycles are still
    found, so memory stays bounded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 100)
