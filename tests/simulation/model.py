"""The model against which the simulation is checked: invariants of a run's spending and storage under any faults.

It observes all processes and the endpoint from outside, and raises a Violation as soon as an invariant is broken:
- A returned answer survives any crash, with its text or that of another purchase of the same request, and is never
  another request's.
- A returned answer is not bought again: never by the same process, nor by another whose view of the journal is newer
  (`JOURNAL_REFRESH_S`).
- The endpoint's bills never exceed the cap by more than the bills of requests in flight when a process ended.
- The journal's sums are at least the cost of the returned answers, and at most the bills.
- A committed stage never changes; a visible manifest has all its parts.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
    """Whether it is in flight."""


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
    committed: dict[str, dict[str, Any]] = field(default_factory=dict)
    now: float = 0.0

    # --- calls

    def asked(self, process: Process, prompt: str) -> None:
        """A caller requests a prompt; the process may read the journal from now on."""
        self.asked_at.setdefault((process.name, prompt), self.now)

    def left(self, process: Process, prompt: str) -> None:
        """No caller in this process waits for this prompt any more."""
        self.asked_at.pop((process.name, prompt), None)

    def sent(self, process: Process, prompt: str) -> Purchase:
        kept = self.kept_at.get(prompt)
        if kept is not None:
            own = any(p.process is process and p.handed_out for p in self.purchases[prompt])
            asked = self.asked_at.get((process.name, prompt), self.now)
            if own or kept < asked - JOURNAL_REFRESH_S - 1e-9 or kept < process.began:
                raise Violation(
                    f"{process.name} buys {prompt!r} again, whose answer was returned {self.now - kept:.3f} s ago"
                )
        purchase = Purchase(prompt, process, len(self.purchases[prompt]))
        self.purchases[prompt].append(purchase)
        return purchase

    def bill(self, purchase: Purchase, prompt_tokens: int, completion_tokens: int) -> str:
        """The endpoint answers and bills; returns the answer."""
        purchase.usd = cost(self.prices, prompt_tokens, 0, completion_tokens)
        purchase.text = f"{purchase.prompt} / answer {purchase.number}"
        self.billed += purchase.usd
        if not purchase.process.alive:
            self.forgiven += purchase.usd
        self.check_cap()
        return purchase.text

    def heard(self, purchase: Purchase) -> None:
        """The client has received a response or an error."""
        purchase.out = False

    def handed_out(self, prompt: str, text: str, *, replayed: bool) -> None:
        known = [p for p in self.purchases[prompt] if p.text == text]
        if not known:
            raise Violation(f"{prompt!r} was answered with {text!r}, which was not bought for it")
        if not replayed and known[0].handed_out:
            raise Violation(f"{text!r} was returned twice as new")
        known[0].handed_out = True
        self.kept_at.setdefault(prompt, self.now)

    def ended(self, process: Process) -> None:
        """A process was killed. The run cannot know what it bought but had not stored."""
        for prompt, purchases in self.purchases.items():
            self.asked_at.pop((process.name, prompt), None)
            for purchase in purchases:
                if purchase.process is process and not purchase.handed_out:
                    self.forgiven += purchase.usd

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

    def check_spending(self, usd: float, when: str) -> None:
        """Check the spending in a newly opened journal."""
        least = sum(p.usd for purchases in self.purchases.values() for p in purchases if p.handed_out)
        if usd < least - ROUNDING_USD or usd > self.billed + ROUNDING_USD:
            raise Violation(
                f"{when}: the journal counts ${usd:.6f}; returned answers cost ${least:.6f}, and ${self.billed:.6f} "
                "was billed"
            )

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
