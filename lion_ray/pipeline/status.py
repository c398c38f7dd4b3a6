"""A run's status, read from its folder alone.

Invariants:
- It needs no cluster and no configuration file: it works on any machine that can read the folder.
- The state is "running" only if the attempt's heartbeat is recent.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from lion_ray.core import layout
from lion_ray.core.attempts import STALE_S
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.iteration_result import IterationResult
from lion_ray.core.shapes import PROGRESS, check
from lion_ray.core.store import RunStore
from lion_ray.gateway.journal.folder import Folder
from lion_ray.gateway.journal.inspection import survey
from lion_ray.gateway.journal.uncertain import read_uncertain
from lion_ray.pipeline.early_stop import read_stop
from lion_ray.pipeline.results import finished, results
from lion_ray.pipeline.stages import named

AHEAD_S = 600.0
"""A heartbeat further in the future than this is ignored, in seconds."""


@dataclass(frozen=True, slots=True)
class Status:
    root: str
    state: str
    """running | finished | stopped."""
    attempt: int
    iterations: int
    stages: list[dict[str, Any]]
    """Running stages: name, done, total, unit, seconds."""
    results: list[IterationResult]
    totals: dict[str, float]
    """Calls, tokens and seconds over every committed stage."""
    meter: str
    """The endpoints' recent activity; empty if the run is not running."""
    spending: list[dict[str, Any]]
    """By role, stage and iteration: paid calls, their tokens and US dollars, from the journal."""
    uncertain: list[dict[str, Any]] = field(default_factory=list)
    """By role, stage, iteration and endpoint: calls that may have been billed without an answer, with their maximum
    cost in US dollars; not included in `spending`."""
    problems: list[str] = field(default_factory=list)
    """Errors of files that could not be read."""
    stopped: str | None = None
    """Why the run ended before its last iteration; None if it did not."""

    def sentence(self) -> str:
        last = max((one.iteration for one in self.results), default=0)
        calls, prompt, completion = self.used()
        return (
            f"{self.root}: {self.state}, attempt {self.attempt}; iteration {last} of {self.iterations + 1} (the last "
            f"is imitation alone); {calls:,.0f} {'paid ' if self.spending else ''}calls, {prompt:,.0f} prompt and "
            f"{completion:,.0f} completion tokens"
            + self._uncertain()
            + (f"; ended early: {self.stopped}" if self.stopped else "")
        )

    def used(self) -> tuple[float, float, float]:
        """Calls, prompt tokens and completion tokens: the paid ones if the journal has any, else those of finished
        stages."""
        if self.spending:
            return self._sum("calls"), self._sum("prompt_tokens"), self._sum("completion_tokens")
        return self.totals["calls"], self.totals["prompt_tokens"], self.totals["completion_tokens"]

    def _uncertain(self) -> str:
        usd = sum(one["usd"] for one in self.uncertain)
        return f"; uncertain: ${usd:,.4f} that may have been billed without an answer" if self.uncertain else ""

    def stage_lines(self) -> list[str]:
        lines = [self.meter] if self.meter else []
        lines += [f"warning: {problem}" for problem in self.problems]
        return lines + [
            f"{s['name']}: {s['done']} of {s['total']} {s['unit']}, {s['seconds']:.0f} s" for s in self.stages
        ]

    def spending_table(self) -> Table:
        """The paid calls as a table for the terminal."""
        table = Table(title="Paid calls", caption="from the journal; calls answered from the journal are not included")
        more = ("uncertain US $",) if self.uncertain else ()
        for heading in ("role", "iteration", "stage", "calls", "prompt tokens", "completion tokens", "US $", *more):
            table.add_column(heading, justify="left" if heading in ("role", "stage") else "right")
        doubts: dict[tuple[str, str], float] = {}
        for one in self.uncertain:
            key = (one["role"], one["stage"])
            doubts[key] = doubts.get(key, 0.0) + one["usd"]
        for s in self.spending:
            numbers = (f"{s[name]:,}" for name in ("calls", "prompt_tokens", "completion_tokens"))
            doubt = [f"{doubts.pop((s['role'], s['stage']), 0.0):,.4f}"] if more else []
            table.add_row(s["role"], str(s["iteration"]), named(s["stage"]), *numbers, f"{s['usd']:,.2f}", *doubt)
        for (role, stage), usd in doubts.items():
            table.add_row(role, str(layout.iteration_of(stage)), named(stage), "0", "0", "0", "0.00", f"{usd:,.4f}")
        table.add_section()
        sums = [*(f"{one:,.0f}" for one in self.used()), f"{self._sum('usd'):,.2f}"]
        uncertain = [f"{sum(one['usd'] for one in self.uncertain):,.4f}"] if more else []
        table.add_row("", "", "total", *sums, *uncertain)
        return table

    def _sum(self, name: str) -> float:
        return float(sum(one[name] for one in self.spending))

    def to_json(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "state": self.state,
            "attempt": self.attempt,
            "iterations": self.iterations,
            "stages": self.stages,
            "totals": self.totals,
            "meter": self.meter,
            "spending": self.spending,
            "uncertain": self.uncertain,
            "problems": self.problems,
            "stopped": self.stopped,
            "results": [one.to_json() for one in self.results],
        }


def read_status(store: RunStore) -> Status:
    """The status of the run in `store`."""
    described = store.described()
    attempt = store.attempt() or {"attempt": 0, "ended": True, "alive": 0}
    iterations = described["config"]["iterations"]
    # The driver's clock may be ahead of this machine's; the state is only displayed.
    running = not attempt["ended"] and -AHEAD_S < time.time() - attempt["alive"] < STALE_S
    state = (
        "running" if running else "finished" if finished(store, iterations) else "stopped (the same command resumes it)"
    )
    found = results(store)
    totals = {
        key: sum(stage.get(key, 0) for one in found for stage in one.stages.values())
        for key in ("calls", "prompt_tokens", "completion_tokens", "seconds")
    }
    seen = store.read_record(layout.PROGRESS)
    progress = {"stages": []} if seen is None else check(seen, PROGRESS)
    problems: list[str] = []
    try:
        uncertain = read_doubts(described["config"], store)
    except InfrastructureError as error:
        uncertain, problems = [], [error.message]
    return Status(
        root=store.root,
        state=state,
        attempt=attempt["attempt"],
        iterations=iterations,
        stages=progress["stages"] if running else [],
        results=found,
        totals=totals,
        meter=progress.get("meter", "") if running else "",
        spending=read_spending(described["config"], store),
        uncertain=uncertain,
        problems=problems,
        stopped=(read_stop(store) or {}).get("reason"),
    )


def read_spending(config: dict[str, Any], store: RunStore) -> list[dict[str, Any]]:
    """A run's paid calls by role and stage, from its journal."""
    folder = Folder.at(store.journal(config["journal"]))
    try:
        sums = survey(folder).sums
    except InfrastructureError:
        return []  # before its first call a run has no journal
    found = [
        {"role": account.role, "iteration": layout.iteration_of(account.stage), "stage": account.stage} | asdict(spent)
        for account, spent in sums.items()
        if account.run == config["run_name"]
    ]
    return sorted(found, key=lambda one: (one["iteration"], one["role"], one["stage"]))


def read_doubts(config: dict[str, Any], store: RunStore) -> list[dict[str, Any]]:
    """Calls that may have been billed without an answer, by role, stage and endpoint.

    Raises InfrastructureError if they cannot be read.
    """
    sums: dict[tuple[str, str, str], list[float]] = {}
    for one in read_uncertain(Folder.at(store.journal(config["journal"]))):
        if one.account.run == config["run_name"]:
            known = sums.setdefault((one.account.role, one.account.stage, one.endpoint), [0, 0.0])
            known[0] += one.calls
            known[1] += one.usd
    found = [
        {
            "role": role,
            "iteration": layout.iteration_of(stage),
            "stage": stage,
            "endpoint": name,
            "calls": calls,
            "usd": usd,
        }
        for (role, stage, name), (calls, usd) in sums.items()
    ]
    return sorted(found, key=lambda one: (one["iteration"], one["role"], one["stage"], one["endpoint"]))
