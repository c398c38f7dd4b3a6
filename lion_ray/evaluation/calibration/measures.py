"""Measures of a judge from its replies: agreement, flips, bias, noise, cost.

Invariants:
- A verdict is the mean of both orders, as in a run. A pair without scores in both orders has no verdict.
- Each call is made once and unreadable replies are not retried, so the failure rate is the judge's own.

Terms: d = score(answer 1) - score(answer 2); in a run's rows, answer 1 is the teacher's. The sign of a verdict's d is
the winner, and d = 0 is a tie: with integer scores, either both answers get the same score, or the orders contradict
each other by the same amount (FastChat counts any such contradiction as a tie).

This module makes no calls: `run` does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lion_ray.core.records import ORDERS
from lion_ray.core.statistics import Estimate, agreement, estimate, kappa, mean, pooled_sd, spearman
from lion_ray.discrimination.scores import Pair, combine
from lion_ray.evaluation.calibration.cases import Case
from lion_ray.evaluation.calibration.threshold import TauAdvice, advise


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one call."""

    case: str
    order: str
    """One of ORDERS; empty if unknown, for a run's unreadable reply that was retried."""
    sample: int
    scores: Pair | None
    """Of answer 1 and answer 2, in either order."""
    failure: str = ""
    weighted: bool = False
    prompt_tokens: float = 0
    completion_tokens: float = 0
    cost_usd: float | None = None
    replayed: bool = True
    """Whether it came from the journal or the run, without a new call."""


@dataclass(frozen=True, slots=True)
class Measures:
    """A judge's measures on some pairs. Rates are 0 to 1; None if the data is insufficient."""

    pairs: int
    samples: int
    replies: int
    unread: dict[str, int]
    """Counts of replies without readable scores, by reason."""
    unread_rate: float | None
    verdicts: int
    """Samples of pairs with scores in both orders."""
    weighted: int
    """Replies whose scores were weighted by log-probabilities."""
    agreement: Estimate | None
    """With the labels, over three classes."""
    kappa: Estimate | None
    agreement_decided: Estimate | None
    """Agreement without ties on either side."""
    confusion: dict[str, dict[str, int]]
    """Verdicts by label, then by the judge's winner."""
    flips: int
    flip_rate: Estimate | None
    """The share of verdicts whose two orders have different winners."""
    position_bias: Estimate | None
    """Mean score of the answer shown first, minus the other's; both orders of each verdict, so quality cancels."""
    ties: int
    tie_rate: Estimate | None
    sd_one_order: float | None
    """Test-retest noise: the standard deviation of d for one pair in one order."""
    sd_both_orders: float | None
    """The same for the mean of both orders."""
    length_correlation: float | None
    """Spearman correlation of d with the difference of the answers' lengths in characters."""
    histogram: dict[int, int]
    """Counts of scores, rounded to integers."""
    prompt_tokens_per_pair: float | None
    """Per verdict, that is for both orders."""
    completion_tokens_per_pair: float | None
    usd_per_pair: float | None
    usd_now: float | None
    """The cost of new calls."""
    calls_now: int
    tau: TauAdvice | None = field(default=None)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One sample of one pair, with scores in both orders."""

    case: Case
    teacher_first: Pair
    student_first: Pair

    @property
    def d(self) -> float:
        means = combine(self.teacher_first, self.student_first)
        assert means is not None
        return means[0] - means[1]

    @property
    def in_order(self) -> tuple[float, float]:
        """d in each order."""
        return self.teacher_first[0] - self.teacher_first[1], self.student_first[0] - self.student_first[1]

    @property
    def flips(self) -> bool:
        one, other = self.in_order
        return one * other < 0

    @property
    def favours_first(self) -> float:
        """The score of the answer shown first minus the other's; mean of both orders."""
        one, other = self.in_order
        return (one - other) / 2


def winner(d: float) -> str:
    """1, 2 or tie, from the difference of the scores."""
    return "tie" if d == 0 else "1" if d > 0 else "2"


def measure(
    cases: Sequence[Case], replies: Sequence[Reply], *, alpha: float, tau: float | None, seed: int = 0
) -> Measures:
    """Measure a judge by its replies about `cases`. `tau`: the configured threshold."""
    verdicts = _verdicts(cases, replies)
    grouped = list(verdicts.values())
    everything = [verdict for group in grouped for verdict in group]
    labelled = [
        [(verdict.case.label, winner(verdict.d)) for verdict in group if verdict.case.label] for group in grouped
    ]
    read = [reply for reply in replies if reply.scores is not None]
    unread = Counter(reply.failure for reply in replies if reply.scores is None)
    new = [reply for reply in replies if not reply.replayed]
    judgements = len({(reply.case, reply.sample) for reply in replies})

    def of_verdicts(figure: str) -> Estimate | None:
        return estimate([[float(getattr(v, figure)) for v in group] for group in grouped], mean, seed=seed)

    def per_pair(name: str) -> float | None:
        values = [getattr(reply, name) for reply in replies]
        return None if None in values or not judgements else math.fsum(values) / judgements

    by_case = [[v.d for v in group] for group in grouped]
    sd = pooled_sd(by_case)
    averages = [(group[0].case, math.fsum(v.d for v in group) / len(group)) for group in grouped if group]
    return Measures(
        pairs=len(cases),
        samples=len({reply.sample for reply in replies}),
        replies=len(replies),
        unread=dict(unread.most_common()),
        unread_rate=unread.total() / len(replies) if replies else None,
        verdicts=len(everything),
        weighted=sum(reply.weighted for reply in read),
        agreement=estimate(labelled, agreement, seed=seed),
        kappa=estimate(labelled, kappa, seed=seed),
        agreement_decided=estimate(
            [[pair for pair in group if "tie" not in pair] for group in labelled], agreement, seed=seed
        ),
        confusion=_confusion(pair for group in labelled for pair in group),
        flips=sum(verdict.flips for verdict in everything),
        flip_rate=of_verdicts("flips"),
        position_bias=of_verdicts("favours_first"),
        ties=sum(verdict.d == 0 for verdict in everything),
        tie_rate=estimate([[float(v.d == 0) for v in group] for group in grouped], mean, seed=seed),
        sd_one_order=pooled_sd(_by_order(read)),
        sd_both_orders=sd,
        length_correlation=spearman([case.longer for case, _ in averages], [d for _, d in averages]),
        histogram=dict(sorted(Counter(round(score) for reply in read for score in reply.scores or ()).items())),
        prompt_tokens_per_pair=per_pair("prompt_tokens"),
        completion_tokens_per_pair=per_pair("completion_tokens"),
        usd_per_pair=per_pair("cost_usd"),
        usd_now=None if any(r.cost_usd is None for r in new) else math.fsum(r.cost_usd or 0.0 for r in new),
        calls_now=len(new),
        tau=None if sd is None else advise(by_case, sd, alpha=alpha, configured=tau),
    )


def _verdicts(cases: Sequence[Case], replies: Sequence[Reply]) -> dict[str, list[_Verdict]]:
    """Each case's verdicts: one for each sample with scores in both orders."""
    scores: dict[tuple[str, int], dict[str, Pair]] = defaultdict(dict)
    for reply in replies:
        if reply.scores is not None:
            scores[reply.case, reply.sample][reply.order] = reply.scores
    known = {case.id: case for case in cases}
    found: dict[str, list[_Verdict]] = {case.id: [] for case in cases}
    for (case, _), orders in sorted(scores.items()):
        if orders.keys() >= set(ORDERS):
            found[case].append(_Verdict(known[case], orders["teacher_first"], orders["student_first"]))
    return found


def _by_order(read: Sequence[Reply]) -> list[list[float]]:
    """The samples' d, grouped by case and order."""
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    for reply in read:
        if reply.scores is not None:
            grouped[reply.case, reply.order].append(reply.scores[0] - reply.scores[1])
    return list(grouped.values())


def _confusion(pairs: Iterator[tuple[str | None, str]]) -> dict[str, dict[str, int]]:
    counted: Mapping[tuple[str | None, str], int] = Counter(pairs)
    names = ("1", "2", "tie")
    return {label: {won: counted.get((label, won), 0) for won in names} for label in names} if counted else {}
