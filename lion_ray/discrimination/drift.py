"""Canary pairs: a few questions with a good and a poor answer, asked anew in every iteration to see the judge drift.

Invariants:
- A pair is decided by anyone, and its answers are about as long as one another, so that length does not decide it.
- Each iteration's answers are other samples of the same questions, under the same template and temperature; that they
  differ at all is no drift. `drift` says how likely such a difference is from an unchanged judge.
- A verdict that could not be read is left out on both sides, never counted as a wrong one.

The test: for one pair in one order the gaps score(good) - score(poor) of two iterations come from one distribution, as
long as the judge is the same, so their difference is as likely to be negative as positive. Under all ways to give the
differences signs (Fisher's randomisation test; exact up to `EXACT` of them) `p_gap` is the share whose sum is as far
from zero as the one seen. It needs no assumption on the noise, and scores need not be normal. `p_agreement` is the sign
test of McNemar on the verdicts that were right before and are wrong now. At `ALPHA` each, an unchanged judge is called
adrift in at most one iteration of fifty.

This module knows nothing of iterations, calls or tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lion_ray.core.errors import ConfigError
from lion_ray.core.statistics import mcnemar
from lion_ray.data.sources import rows_of

ALPHA = 0.01
EXACT = 16
"""So many differences are tried with all signs; more with `DRAWN` random ones, always the same."""
DRAWN = 100_000

Gaps = Mapping[tuple[str, str], float]
"""score(good) - score(poor) by canary and order, where the judge gave both scores."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A question that anybody can decide."""

    instruction: str
    good: str
    poor: str


def load_canaries(name: str | None, count: int, base_dir: Path) -> list[Canary]:
    """The first `count` pairs of a user's .jsonl file, relative to `base_dir`, or of the built-in ones (None).

    Raises:
        ConfigError: the file cannot be read, a line is not a pair, or there are fewer than wanted.
    """
    if not count:
        return []
    folder = Path(str(files(__package__))) if name is None else base_dir
    found: dict[str, Canary] = {}
    for row in rows_of(name or "canaries.jsonl", folder):
        said = row.value if isinstance(row.value, dict) else {}
        texts = [text for key in _KEYS if isinstance(text := said.get(key), str) and text.strip()]
        if len(texts) < len(_KEYS):
            raise ConfigError(f"{row.where}: {row.problem or 'no canary pair'}; a line is {_FORM}")
        if texts[0] in found:
            raise ConfigError(f"{row.where}: this instruction is there twice; take one of them out")
        found[texts[0]] = Canary(*texts)
    if len(found) < count:
        where = name or "the built-in set"
        raise ConfigError(f"referee.canary_pairs: {count} are wanted and {where} has {len(found)}; lower it")
    return list(found.values())[:count]


_KEYS = ("instruction", "good", "poor")
_FORM = '{"instruction": ..., "good": ..., "poor": ...}, none of them empty'


@dataclass(frozen=True, slots=True)
class Drift:
    """Two iterations' canaries against one another; only the verdicts that both have."""

    n: int
    """Verdicts: a canary in one order is one."""
    changed: int
    """Of them with another gap."""
    right_before: int
    """Verdicts for the good answer."""
    right_now: int
    gap_before: float
    """Mean score(good) - score(poor)."""
    gap_now: float
    p_gap: float
    """How likely an unchanged judge moves the mean gap as far as this, in either direction."""
    p_agreement: float
    """How likely an unchanged judge turns as many right verdicts wrong."""

    @property
    def drifted(self) -> bool:
        return min(self.p_gap, self.p_agreement) < ALPHA

    def sentence(self) -> str:
        """What changed, for a log."""
        return (
            f"canary pairs: {self.right_before} → {self.right_now} of {self.n} verdicts for the good answer, mean gap "
            f"{self.gap_before:.2f} → {self.gap_now:.2f} "
            f"(an unchanged judge does this with p = {min(self.p_gap, self.p_agreement):.2g})"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"drifted": self.drifted}


def drift(before: Gaps, now: Gaps) -> Drift | None:
    """Whether the judge of `now` is that of `before`; None where they have no verdict in common."""
    both = sorted(before.keys() & now.keys())
    if not both:
        return None
    old, new = (np.array([gaps[key] for key in both]) for gaps in (before, now))
    was_right, is_right = old > 0, new > 0
    return Drift(
        n=len(both),
        changed=int((old != new).sum()),
        right_before=int(was_right.sum()),
        right_now=int(is_right.sum()),
        gap_before=float(old.mean()),
        gap_now=float(new.mean()),
        p_gap=sign_flip_p(new - old),
        p_agreement=mcnemar(lost=int((was_right & ~is_right).sum()), won=int((~was_right & is_right).sum())),
    )


def sign_flip_p(differences: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The share of all ways to sign `differences` whose sum is as far from zero as theirs; 1.0 where all are zero."""
    moved = differences[differences != 0]
    if len(moved) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1)
        at_least = 0
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(DRAWN, len(moved)))
        at_least = 1  # the one that was seen is one of them, so that p is never 0
    sums = np.abs(signs @ moved)
    # A little less than the sum itself, because signs in another order round differently.
    far = int((sums >= abs(moved.sum()) - 1e-9).sum()) + at_least
    return far / (len(signs) + at_least)
