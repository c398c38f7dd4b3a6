"""The run's Budget as an actor: one message leases money for many calls.

It is not restarted: its state is in the journal, from which the same command reads it again.
"""

from __future__ import annotations

from typing import Any

import ray

from lion_ray.actors.base import BaseActor
from lion_ray.gateway.ledger import Budget


class RunLedger(BaseActor):
    """One run's money; see `gateway.ledger`."""

    def __init__(self, cap: float | None) -> None:
        self._budget = Budget(cap)

    def opened(self, proxy: str, spent_on_disk: float) -> None:
        self._budget.opened(proxy, spent_on_disk)

    def lease(self, proxy: str, wanted: float) -> float | None:
        return self._budget.lease(proxy, wanted)

    def report(self, proxy: str, spent: float, returned: float) -> None:
        self._budget.report(proxy, spent, returned)

    def spent(self) -> float:
        """US dollars spent by all attempts of the run, including what may have been billed."""
        return self._budget.spent


LedgerActor: Any = ray.remote(num_cpus=0, max_restarts=0)(RunLedger)
