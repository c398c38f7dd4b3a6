"""What a run has done and is doing, read from its folder alone.

Invariants:
- Needs no cluster and no configuration file: it works from any machine that can read the folder.
- Says "running" only of an attempt that said so itself lately.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from lion_ray.results import IterationResult, finished, results
from lion_ray.store import STALE_S, RunStore


@dataclass(frozen=True, slots=True)
class Status:
    root: str
    state: str
    """running | finished | stopped."""
    attempt: int
    iterations: int
    stages: list[dict[str, Any]]
    """What is under way: name, done, total, unit, seconds."""
    results: list[IterationResult]
    totals: dict[str, float]
    """Calls, tokens and cost over every committed stage."""

    def sentence(self) -> str:
        last = max((one.iteration for one in self.results), default=0)
        totals = self.totals
        return (
            f"{self.root}: {self.state}, attempt {self.attempt}; iteration {last} of {self.iterations + 1} (the last "
            f"is imitation alone); {totals['calls']:,.0f} calls, {totals['prompt_tokens']:,.0f} prompt and "
            f"{totals['completion_tokens']:,.0f} completion tokens"
        )

    def stage_lines(self) -> list[str]:
        return [f"{s['name']}: {s['done']} of {s['total']} {s['unit']}, {s['seconds']:.0f} s" for s in self.stages]

    def to_json(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "state": self.state,
            "attempt": self.attempt,
            "iterations": self.iterations,
            "stages": self.stages,
            "totals": self.totals,
            "results": [one.to_json() for one in self.results],
        }


def read_status(store: RunStore) -> Status:
    """The status of the run in `store`."""
    described = store.read_json("run.json")
    attempt = store.read_json("attempt.json") or {"attempt": 0, "ended": True, "alive": 0}
    iterations = described["config"]["iterations"]
    running = not attempt["ended"] and time.time() - attempt["alive"] < STALE_S
    state = (
        "running" if running else "finished" if finished(store, iterations) else "stopped (the same command resumes it)"
    )
    found = results(store)
    totals = {
        key: sum(stage.get(key, 0) for one in found for stage in one.stages.values())
        for key in ("calls", "prompt_tokens", "completion_tokens", "seconds")
    }
    progress = store.read_json("progress.json") or {"stages": []}
    return Status(
        root=store.root,
        state=state,
        attempt=attempt["attempt"],
        iterations=iterations,
        stages=progress["stages"] if running else [],
        results=found,
        totals=totals,
    )
