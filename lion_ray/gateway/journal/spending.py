"""Sums of the cost of calls.

Invariants:
- A call of unknown price counts with its tokens and with a cost of 0.
- Sums are kept by the segment that a line was first written to. Merged segments hold their sources' sums under the
  sources' names, so a union counts each line once, however many copies of its segment exist.

This module knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lion_ray.gateway.calls import Account


@dataclass(slots=True)
class Spent:
    """Calls, tokens and US dollars."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    """Includes what may have been billed, if requested."""

    def add(self, other: Spent) -> None:
        self.calls += other.calls
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.usd += other.usd


Sums = dict[Account, Spent]


def add_to(sums: Sums, account: Account, spent: Spent) -> None:
    """Add to an account, which is created if it is new."""
    known = sums.get(account)
    if known is None:
        known = sums[account] = Spent()
    known.add(spent)


def union(sums_by_source: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """The sums of several files, each source once; of two sums for one source the later is used."""
    known: dict[str, Sums] = {}
    for sums in sums_by_source:
        known.update(sums)
    return known


def total(sums: Iterable[Sums]) -> Sums:
    """The total by account, in new objects."""
    added: Sums = {}
    for one in sums:
        for account, spent in one.items():
            add_to(added, account, spent)
    return added


def to_json(sums_by_source: Mapping[str, Sums]) -> dict[str, list[list[object]]]:
    """Sums as JSON: by source a list of [run, role, stage, calls, prompt, completion, usd]."""
    return {
        source: [
            [a.run, a.role, a.stage, s.calls, s.prompt_tokens, s.completion_tokens, s.usd] for a, s in sums.items()
        ]
        for source, sums in sums_by_source.items()
    }


def from_json(data: Mapping[str, list[list[object]]]) -> dict[str, Sums]:
    """The inverse of `to_json`. Raises TypeError, ValueError or AttributeError if the data is invalid."""
    for rows in data.values():
        for row in rows:
            if not all(isinstance(name, str) for name in row[:3]) or not all(type(n) in (int, float) for n in row[3:]):
                raise TypeError("names must be text, and the rest numbers")
    return {
        source: {Account(*row[:3]): Spent(*row[3:]) for row in rows}  # type: ignore[arg-type]
        for source, rows in data.items()
    }
