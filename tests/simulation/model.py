"""The model against which the simulation is checked: invariants of a run's spending and storage under any faults.

It knows what was asked, sent, billed, kept and committed, as someone would who saw all processes and the endpoint from
outside, and raises a Violation as soon as the run contradicts one of its promises:
- What was handed out is there after any crash, with the text it was handed out with or that of another purchase of the
  same request, and is never another request's.
- What was handed out is not bought again: not by its own process ever, not by another whose view of the journal is
  newer (`JOURNAL_REFRESH_S`).
- What was bought in a batch is not bought again by the process that bought it, nor by one that began later; and what a
  batch has answered was handed out, or can be fetched: its record and its files are there.
- The endpoint's bills never exceed the cap by more than the bills of requests that were out when a process ended, and
  of batches whose answers it had not kept then.
- The journal's sums are no less than what was handed out cost, and no more than what was billed; an answer that several
  processes fetched from one batch may count for each. With what may have been billed, they are no less than all bills
  that a process could know of.
- A stage that was committed stays as it was; a manifest that is visible has all its parts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lion_ray.config import PricesConfig
from lion_ray.gateway.client import JOURNAL_REFRESH_S
from lion_ray.gateway.ledger import cost

if TYPE_CHECKING:
    from tests.simulation.world import Process

ROUNDING_USD = 1e-6


class Violation(AssertionError):  # noqa: N818 - the usual name for a broken invariant
    """An invariant is broken."""


@dataclass(eq=False)
class Purchase:
    """One request that was sent."""

    prompt: str
    process: Process
    number: int
    usd: float = 0.0
    """The endpoint's bill."""
    text: str | None = None
    handed_out: bool = False
    out: bool = True
    """The client has not heard of it yet."""
    batch: str = ""
    """The batch that it is in, if any."""
    at: float = 0.0
    undone: bool = False
    """Its batch ended without doing it: nothing was billed."""
    spoilt: bool = False
    """The batch gave no readable answer for what it billed."""
    forgiven: bool = False
    fetched_by: set[Process] = field(default_factory=set)
    """Processes that have its batch's output: each may journal it."""


@dataclass
class Model:
    """`cap` None: the run has no budget."""

    prices: PricesConfig
    cap: float | None
    purchases: dict[str, list[Purchase]] = field(default_factory=lambda: defaultdict(list))
    kept_at: dict[str, float] = field(default_factory=dict)
    """When an answer to each prompt was first returned."""
    billed: float = 0.0
    forgiven: float = 0.0
    """Bills that the run could not know: their process ended before it had stored the answer."""
    asked_at: dict[tuple[str, str], float] = field(default_factory=dict)
    asked_by_ended: dict[tuple[Process, str], float] = field(default_factory=dict)
    waiting: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Callers by process and prompt."""
    closed: set[Process] = field(default_factory=set)
    """Processes that fetch no batch any more."""
    committed: dict[str, dict[str, Any]] = field(default_factory=dict)
    now: float = 0.0
    refused_writes: int = 0
    """How often the disk has refused a write or a flush."""

    # --- calls

    def asked(self, process: Process, prompt: str) -> None:
        """A caller requests a prompt; the process may read the journal from now on."""
        self.asked_at.setdefault((process.name, prompt), self.now)
        self.waiting[process.name, prompt] += 1

    def left(self, process: Process, prompt: str) -> None:
        """A caller has its answer, or does not wait for it any more."""
        self.waiting[process.name, prompt] -= 1

    def closing(self, process: Process) -> None:
        """A process closes: nobody may fetch what is in its batches."""
        self.closed.add(process)
        for purchases in self.purchases.values():
            for one in purchases:
                if one.batch and one.process is process and not one.handed_out:
                    self.forgive(one)

    def sent(self, process: Process, prompt: str, batch: str = "") -> Purchase:
        kept = self.kept_at.get(prompt)
        if kept is not None:
            own = any(p.process is process and p.handed_out for p in self.purchases[prompt])
            # A batch gathers its calls, and creating it may take long; its request may arrive after its process has
            # ended.
            asked = self.asked_at.get((process.name, prompt), self.now)
            looked = self.asked_by_ended.get((process, prompt), asked) if batch else self.now
            if own or kept < looked - JOURNAL_REFRESH_S - 1e-9 or kept < process.began:
                raise Violation(
                    f"{process.name} buys {prompt!r} again, whose answer was returned {self.now - kept:.3f} s ago"
                )
        for known in self.purchases[prompt]:
            mine = known.process is process or process.began > known.at
            if kept is None and known.batch and mine and not (known.undone or known.spoilt or known.handed_out):
                raise Violation(f"{process.name} buys {prompt!r} again, which is in {known.batch} since {known.at:.3f}")
        purchase = Purchase(prompt, process, len(self.purchases[prompt]), batch=batch, at=self.now)
        self.purchases[prompt].append(purchase)
        return purchase

    def bill(self, purchase: Purchase, prompt_tokens: int, completion_tokens: int) -> str:
        """The endpoint does its work; returns the answer."""
        purchase.usd = cost(self.prices, prompt_tokens, 0, completion_tokens, batch=bool(purchase.batch))
        purchase.text = f"{purchase.prompt} / answer {purchase.number}"
        self.billed += purchase.usd
        if not purchase.process.alive or (purchase.batch and purchase.process in self.closed):
            self.forgive(purchase)
        self.check_cap()
        return purchase.text

    def forgive(self, purchase: Purchase) -> None:
        """Nobody can know of its bill."""
        if not purchase.forgiven and purchase.usd:
            purchase.forgiven = True
            self.forgiven += purchase.usd

    def heard(self, purchase: Purchase) -> None:
        """The client has received a response or an error."""
        purchase.out = False

    def handed_out(self, prompt: str, text: str, *, replayed: bool) -> None:
        known = [p for p in self.purchases[prompt] if p.text == text]
        if not known:
            raise Violation(f"{prompt!r} was answered with {text!r}, which was not bought for it")
        if not replayed and known[0].handed_out and not known[0].batch:
            raise Violation(f"{text!r} was handed out twice as bought")
        known[0].handed_out = True
        self.kept_at.setdefault(prompt, self.now)

    def ended(self, process: Process) -> None:
        """A process ended at once. What it bought and had not kept, nobody can know of."""
        for asked in [one for one in self.asked_at if one[0] == process.name]:
            self.asked_by_ended[process, asked[1]] = self.asked_at.pop(asked)
            del self.waiting[asked]
        for purchases in self.purchases.values():
            for purchase in purchases:
                if purchase.process is process and not purchase.handed_out:
                    self.forgive(purchase)

    def check_cap(self) -> None:
        if self.cap is not None and self.billed > self.cap + self.forgiven + ROUNDING_USD:
            raise Violation(
                f"the endpoint billed ${self.billed:.6f}; the cap is ${self.cap:.6f}, and ${self.forgiven:.6f} of it "
                "was unknowable"
            )

    def check_answers(self, answers: dict[str, str | None], opened_at: float, when: str) -> None:
        """Check the answers that a journal opened at that time returns for each prompt."""
        for prompt, text in answers.items():
            if text is None:
                if self.kept_at.get(prompt, math.inf) <= opened_at:
                    raise Violation(f"{when}: {prompt!r} was answered, but the journal has lost it")
            elif text not in (p.text for p in self.purchases[prompt]):
                raise Violation(f"{when}: the journal answers {prompt!r} with {text!r}, which was not bought for it")

    def check_spending(self, usd: float, at_most: float, when: str) -> None:
        """What a newly opened journal says was spent, without and with what may have been billed."""
        bought = [p for purchases in self.purchases.values() for p in purchases]
        least = sum(p.usd for p in bought if p.handed_out)
        # A batch's answer counts once for each process that fetched it. If the disk refused its record, it is stored
        # again, and both count if the refused one did reach the disk.
        most = self.billed + sum((len(p.fetched_by) - 1 + self.refused_writes) * p.usd for p in bought if p.fetched_by)
        if usd < least - ROUNDING_USD or usd > most + ROUNDING_USD:
            raise Violation(
                f"{when}: the journal counts ${usd:.6f}; returned answers cost ${least:.6f}, and ${self.billed:.6f} "
                "was billed"
            )
        if at_most < self.billed - self.forgiven - ROUNDING_USD:
            raise Violation(
                f"{when}: by the journal at most ${at_most:.6f} was billed, but it was ${self.billed:.6f}, and "
                f"${self.forgiven:.6f} of that nobody could know of"
            )

    def check_batches(
        self, journaled: Collection[str], in_records: Collection[str], holds: Callable[[Purchase], bool], when: str
    ) -> None:
        """What a batch has answered is in the journal, or can be fetched; `in_records`: the prompts of open records."""
        for prompt, purchases in self.purchases.items():
            for one in purchases:
                if not one.batch or one.text is None or one.spoilt or prompt in journaled:
                    continue
                if prompt not in in_records or not holds(one):
                    raise Violation(f"{when}: {one.batch} has answered {prompt!r}, and nobody can know that any more")

    # --- stages

    def commit(self, stage: str, manifest: dict[str, Any]) -> None:
        if stage in self.committed:
            raise Violation(f"stage {stage} was committed twice")
        self.committed[stage] = manifest

    def check_stage(self, stage: str, manifest: dict[str, Any] | None) -> None:
        """Check a stage's manifest as a starting driver sees it."""
        known = self.committed.get(stage)
        if manifest is None and known is not None:
            raise Violation(f"stage {stage} was committed, but its manifest is missing")
        if manifest is not None and known is not None and manifest["marks"] != known["marks"]:
            raise Violation(f"stage {stage} was committed as {known}, and is {manifest}")
