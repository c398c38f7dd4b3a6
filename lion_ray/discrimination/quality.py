"""Relative quality of a candidate against a reference, from a judge's scores. Pure arithmetic.

Invariants:
- A question counts in a setting if it has a readable score in each of the setting's orders; otherwise it is counted as
  unparsed and has no score. One order alone would carry the judge's position bias.
- Intervals are percentile bootstraps over questions, paired: a question's two scores are drawn together.
- The mean of the settings that were run (the paper's figure) is a mean of ratios, over the same draws of questions.

Sources: the paper, section 5.1; Setting 2 is FairEval's (arXiv 2305.17926). The paper does not say which answer comes
first in Setting 1; here it is the reference, as in the reviews that Vicuna's authors published (answer_gpt35 first).

This module does not know endpoints, prompts or files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lion_ray.core.statistics import percentiles, resampled_sums, sign_test
from lion_ray.discrimination.scores import Pair

REFERENCE_FIRST, CANDIDATE_FIRST = "reference_first", "candidate_first"
PAPER = {
    "LLaMA-7B": 58.8,
    "Alpaca-7B": 68.3,
    "WizardLM-7B": 88.0,
    "Vicuna-7B": 88.9,
    "Lion-7B": 93.8,
    "Vicuna-13B": 92.6,
    "Lion-13B": 98.4,
}
"""The paper's results: Vicuna-80, per cent of ChatGPT's score by GPT-4, mean of both settings."""


@dataclass(frozen=True, slots=True)
class RelativeQuality:
    """A candidate's summed score divided by the reference's, with a confidence interval."""

    ratio: float
    low: float
    high: float
    n: int
    """Number of rows."""


def relative_quality(
    teacher: Sequence[float] | npt.NDArray[np.float64], student: Sequence[float] | npt.NDArray[np.float64], *, seed: int
) -> RelativeQuality | None:
    """sum(student) / sum(teacher), with a percentile bootstrap over rows. Returns None without rows.

    Row i of both sequences is the same instruction. The same arguments give the same interval on every machine.
    Raises ValueError if the lengths differ or a reference score is not positive.
    """
    if len(teacher) != len(student):
        raise ValueError(f"{len(teacher)} reference scores for {len(student)} candidate scores")
    if not len(teacher):
        return None
    both = np.array([teacher, student], np.float64)
    if not (both[0] > 0).all():
        raise ValueError("a reference score is not positive")
    sums = resampled_sums(both, seed)
    return RelativeQuality(float(both[1].sum() / both[0].sum()), *percentiles(sums[1] / sums[0]), both.shape[1])


@dataclass(frozen=True, slots=True)
class Setting:
    """How a pair is judged."""

    number: int
    orders: tuple[str, ...]
    """Which answer comes first."""
    samples: int
    """Verdicts in each order."""
    temperature: float


def settings(which: str, samples: int, temperature: float) -> list[Setting]:
    """The paper's settings: ``1``, ``2`` or ``both``.

    Args:
        samples: of Setting 2, in each order; the paper and FairEval use 3.
        temperature: of Setting 1; Setting 2's is 1.
    """
    one = Setting(1, (REFERENCE_FIRST,), 1, temperature)
    two = Setting(2, (REFERENCE_FIRST, CANDIDATE_FIRST), samples, 1.0)
    return {"1": [one], "2": [two], "both": [one, two]}[which]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict of a judge on one question."""

    question: str
    """Its id."""
    setting: int
    order: str
    sample: int
    scores: Pair | None
    """(reference, candidate), each from 1 to 10, in either order of presentation; None if unreadable."""
    reason: str | None = None
    """Why there are no scores."""
    review: str = ""
    call: str = ""
    """The journal's key."""


@dataclass(frozen=True, slots=True)
class SettingResult:
    """A candidate's result in one setting."""

    setting: Setting
    quality: RelativeQuality | None
    unparsed: int
    """Questions with both answers that have no score here."""
    verdicts: int
    unread: int
    """Verdicts without readable scores, after all retries."""
    order_flips: int | None
    """Questions whose two orders have different winners; None with one order."""


@dataclass(frozen=True, slots=True)
class Relative:
    """A candidate's result against a reference."""

    settings: tuple[SettingResult, ...]
    quality: RelativeQuality | None
    """The mean of the settings."""
    by_category: dict[str, RelativeQuality | None]
    outcomes: dict[str, str]
    """The candidate's ``win``, ``tie`` or ``loss`` by question id, in the last setting that ran."""
    scores: dict[int, dict[str, Pair]]
    """By setting and question id: (reference, candidate)."""
    win_rate: tuple[float, float, float] | None
    """(wins + ties / 2) / questions, and its 95 % interval."""
    sign_p: float | None
    """Two-sided sign test of wins against losses, ties left out; None without either."""
    unparsed: int
    """Questions that lack a score in some setting."""

    def count(self, outcome: str) -> int:
        """The number of questions with this outcome."""
        return sum(one == outcome for one in self.outcomes.values())

    def to_json(self) -> dict[str, Any]:
        """Everything except the rows."""
        rate = None if self.win_rate is None else dict(zip(("rate", "low", "high"), self.win_rate, strict=True))
        return {
            "relative": as_json(self.quality),
            "settings": {str(one.setting.number): _setting_json(one) for one in self.settings},
            "by_category": {name: as_json(quality) for name, quality in self.by_category.items()},
            "wins": self.count("win"),
            "ties": self.count("tie"),
            "losses": self.count("loss"),
            "win_rate": rate,
            "sign_p": self.sign_p,
            "unparsed": self.unparsed,
        }


def summarise(
    verdicts: Iterable[Verdict], ran: Sequence[Setting], categories: Mapping[str, str], seed: int
) -> Relative:
    """Summarise the verdicts.

    Args:
        verdicts: one for each question, setting, order and sample.
        categories: the category of every judged question, by id; also gives the order of the questions.
    """
    by_slot: dict[int, dict[str, dict[str, list[Pair]]]] = {one.number: {} for one in ran}
    said: Counter[int] = Counter()
    unread: Counter[int] = Counter()
    for verdict in verdicts:
        said[verdict.setting] += 1
        unread[verdict.setting] += verdict.scores is None
        if verdict.scores is not None:
            row = by_slot[verdict.setting].setdefault(verdict.question, {})
            row.setdefault(verdict.order, []).append(verdict.scores)
    results, scores = [], {}
    for one in ran:
        means = {question: row_scores(by_slot[one.number].get(question, {}), one) for question in categories}
        known = {question: pair for question, pair in means.items() if pair is not None}
        scores[one.number] = known
        flips = None if len(one.orders) < 2 else sum(_flips(by_slot[one.number][question]) for question in known)
        quality = relative_quality(*_columns(known.values()), seed=seed)
        counts = (len(means) - len(known), said[one.number], unread[one.number])
        results.append(SettingResult(one, quality, *counts, flips))
    groups: dict[str, list[str]] = {}
    for question, category in categories.items():
        groups.setdefault(category, []).append(question)
    named = {name: members for name, members in groups.items() if name}
    outcomes = {question: _outcome(pair) for question, pair in scores[ran[-1].number].items()}
    return Relative(
        tuple(results),
        results[0].quality if len(ran) == 1 else mean_quality(list(scores.values()), list(categories), seed=seed),
        {name: mean_quality(list(scores.values()), members, seed=seed) for name, members in named.items()},
        outcomes,
        scores,
        _win_rate(list(outcomes.values()), seed),
        sign_test(*(sum(one == end for one in outcomes.values()) for end in ("win", "loss"))),
        sum(any(question not in known for known in scores.values()) for question in categories),
    )


def row_scores(row: Mapping[str, Sequence[Pair]], setting: Setting) -> Pair | None:
    """(reference, candidate) of one question: the mean over the orders of each order's mean over its readable samples.

    Each order has equal weight, however many of its verdicts could be read. Returns None if an order has none.
    """
    if any(not row.get(order) for order in setting.orders):
        return None
    means = [np.mean(row[order], axis=0) for order in setting.orders]
    reference, candidate = np.mean(means, axis=0)
    return float(reference), float(candidate)


def mean_quality(
    scores: Sequence[Mapping[str, Pair]], questions: Sequence[str], *, seed: int
) -> RelativeQuality | None:
    """The mean over the settings of sum(candidate) / sum(reference), with a 95 % bootstrap interval over questions.

    A question counts in the settings that have a score for it; `n` counts questions with a score in every setting.
    Returns None if a setting has no score at all.
    """
    grid = np.array([[known.get(question, (0.0, 0.0)) for question in questions] for known in scores], np.float64)
    if not len(questions) or not (grid[:, :, 0].sum(axis=1) > 0).all():
        return None
    sums = resampled_sums(np.concatenate([setting.T for setting in grid]), seed).reshape(len(grid), 2, -1)
    # A draw without any scored question in a setting has no ratio there.
    ratios = np.divide(sums[:, 1], sums[:, 0], out=np.full_like(sums[:, 0], np.nan), where=sums[:, 0] > 0).mean(axis=0)
    low, high = percentiles(ratios)
    ratio = float(np.mean(grid[:, :, 1].sum(axis=1) / grid[:, :, 0].sum(axis=1)))
    return RelativeQuality(ratio, low, high, int((grid[:, :, 0] > 0).all(axis=0).sum()))


def as_json(quality: RelativeQuality | None) -> dict[str, Any] | None:
    """``{ratio, low, high, n}``."""
    return None if quality is None else asdict(quality)


def _setting_json(one: SettingResult) -> dict[str, Any]:
    quality = as_json(one.quality) or {"ratio": None, "low": None, "high": None, "n": 0}
    return quality | {
        "orders": list(one.setting.orders),
        "samples": one.setting.samples,
        "temperature": one.setting.temperature,
        "unparsed": one.unparsed,
        "verdicts": one.verdicts,
        "unread_verdicts": one.unread,
        "order_flips": one.order_flips,
    }


def _columns(pairs: Iterable[Pair]) -> tuple[list[float], list[float]]:
    listed = list(pairs)
    return [reference for reference, _ in listed], [candidate for _, candidate in listed]


def _outcome(pair: Pair) -> str:
    reference, candidate = pair
    return "tie" if math.isclose(candidate, reference) else "win" if candidate > reference else "loss"


def _flips(row: Mapping[str, Sequence[Pair]]) -> bool:
    ahead = [float(np.mean([candidate - reference for reference, candidate in pairs])) for pairs in row.values()]
    return ahead[0] * ahead[1] < 0


def _win_rate(outcomes: Sequence[str], seed: int) -> tuple[float, float, float] | None:
    if not outcomes:
        return None
    worth = np.array([{"win": 1.0, "tie": 0.5, "loss": 0.0}[one] for one in outcomes])
    return float(worth.mean()), *percentiles(resampled_sums([worth], seed)[0] / len(worth))
