"""Canary pairs: questions with a good and a poor answer, re-judged in every iteration to detect judge drift.

Invariants:
- A pair is easy to decide, and its two answers have about the same length, so that length does not decide it.
- Each iteration samples new verdicts on the same questions, with the same template and temperature, so some difference
  is expected. `drift` computes how likely a difference is if the judge has not changed.
- A verdict that could not be read is left out on both sides and never counted as wrong.

The test: for one pair in one order, the gaps score(good) - score(poor) of two iterations come from one distribution if
the judge is unchanged, so their difference is equally likely to be negative or positive. Over all sign assignments of
the differences (Fisher's randomisation test; exact up to `EXACT` of them), `p_gap` is the share whose sum is as far
from zero as the observed sum. This assumes nothing about the noise; scores need not be normal. `p_agreement` is
McNemar's sign test on the verdicts that were right before and are wrong now. At `ALPHA` each, an unchanged judge is
reported as drifted in at most one iteration of fifty.

This module does not know iterations, calls or tables.
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
"""Up to this many differences, all sign assignments are tried; above it, `DRAWN` random ones from a fixed seed."""
DRAWN = 100_000

Gaps = Mapping[tuple[str, str], float]
"""score(good) - score(poor) by canary and order, if the judge gave both scores."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A question with an obviously better answer."""

    instruction: str
    good: str
    poor: str


def load_canaries(name: str | None, count: int, base_dir: Path) -> list[Canary]:
    """The first `count` pairs of a user's .jsonl file, relative to `base_dir`, or of the built-in set (None).

    Raises:
        ConfigError: the file cannot be read, a line is not a pair, or there are fewer than `count` pairs.
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
            raise ConfigError(f"{row.where}: this instruction appears twice; remove one of them")
        found[texts[0]] = Canary(*texts)
    if len(found) < count:
        where = name or "the built-in set"
        raise ConfigError(f"referee.canary_pairs is {count}, but {where} has {len(found)} pairs; lower it")
    return list(found.values())[:count]


_KEYS = ("instruction", "good", "poor")
_FORM = '{"instruction": ..., "good": ..., "poor": ...}, none of them empty'


@dataclass(frozen=True, slots=True)
class Drift:
    """Comparison of two iterations' canary verdicts, restricted to those that both have."""

    n: int
    """Verdicts compared; a canary in one order is one verdict."""
    changed: int
    """Verdicts with a different gap."""
    right_before: int
    """Verdicts for the good answer."""
    right_now: int
    gap_before: float
    """Mean score(good) - score(poor)."""
    gap_now: float
    p_gap: float
    """Probability that an unchanged judge moves the mean gap at least this far, in either direction."""
    p_agreement: float
    """Probability that an unchanged judge turns at least as many right verdicts wrong."""

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
    """Compare the judge's verdicts `now` with those `before`. Returns None if they have no verdict in common."""
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
    """The share of sign assignments whose sum is at least as far from zero as observed; 1.0 if all are zero."""
    moved = differences[differences != 0]
    if len(moved) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1)
        at_least = 0
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(DRAWN, len(moved)))
        at_least = 1  # count the observed assignment too, so that p is never 0
    sums = np.abs(signs @ moved)
    # A small tolerance, because another order of signs rounds differently.
    far = int((sums >= abs(moved.sum()) - 1e-9).sum()) + at_least
    return far / (len(signs) + at_least)
