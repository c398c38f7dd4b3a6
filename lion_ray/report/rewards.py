"""Figures on on-policy rounds and win rates: the reward beside what measures independently of it."""

from __future__ import annotations

from typing import Any

from lion_ray.pipeline.reward_alarm import independent, reward
from lion_ray.report import charts
from lion_ray.report.blocks import Figure, Table
from lion_ray.report.charts import Point, Series
from lion_ray.report.facts import Facts
from lion_ray.report.words import count, decimal, whole_percent


def rewards(facts: Facts) -> list[Figure]:
    """The reward and the independent figure by iteration; empty without on-policy rounds."""
    if not any(one.rewards for one in facts.results):
        return []
    last = max(one.iteration for one in facts.results)
    given = [Point(one.iteration, reward(one)) for one in facts.results]
    measured = [Point(one.iteration, found[1]) if (found := independent(one)) else None for one in facts.results]
    names = [found[0] for one in facts.results if (found := independent(one))]
    rows = [
        (
            f"{one.iteration}, {number}",
            decimal(each["reward"]),
            f"{each['answers_learned']:,} of {each['answers']:,}",
            f"{each['criteria_untelling']:,} of {each['criteria']:,}" if each["criteria"] else count(None),
            decimal(each.get("engine_gap_mean")),
        )
        for one in facts.results
        for number, each in enumerate(one.rewards or (), 1)
    ]
    return [
        Figure(
            "Reward, and what measures independently of it",
            charts.lines(
                "rewards",
                "Mean reward in the last on-policy round, and the independent figure, by iteration",
                "0 to 1",
                [
                    Series("reward", "s4", given),
                    Series(names[0] if names else "independent figure", "s1", [one for one in measured if one]),
                ],
                decimal,
                last,
            ),
            Table(
                (
                    "iteration, round",
                    "mean reward",
                    "answers learned from",
                    "criteria that told nothing",
                    "engine against trainer, nats",
                ),
                rows,
                text_columns=1,
            ),
            "If the reward rises and the independent figure does not, the student may be learning to please what "
            "rewards it; the run then warns.",
        )
    ]


def win_rates(facts: Facts) -> list[Figure]:
    """The student against the teacher on the held-out set; empty if nothing was judged there."""
    judged = [one for one in facts.results if one.win_rate]
    if not judged:
        return []
    last = max(one.iteration for one in facts.results)
    plain = [Point(one.iteration, *_parts((one.win_rate or {}).get("rate"))) for one in judged]
    equal = [Point(one.iteration, *_parts((one.win_rate or {}).get("length_controlled"))) for one in judged]
    rows = [
        (
            str(one.iteration),
            f"{rate['wins']} / {rate['ties']} / {rate['losses']}",
            _share(rate["rate"]),
            _share(rate["length_controlled"]),
            _share(rate.get("wins_corrected")),
            _share(rate.get("losses_corrected")),
        )
        for one in judged
        if (rate := one.win_rate)
    ]
    return [
        Figure(
            "Win rate against the teacher",
            charts.lines(
                "wins",
                "Win rate by iteration",
                "share of held-out rows, ties half",
                [Series("win rate", "s1", plain), Series("at equal length", "s2", equal)],
                whole_percent,
                last,
            ),
            Table(
                (
                    "iteration",
                    "wins / ties / losses",
                    "win rate",
                    "at equal length",
                    "truly better",
                    "truly worse",
                ),
                rows,
                text_columns=1,
            ),
            "At equal length: by a logistic regression on the difference of the answers' lengths. Truly better and "
            "worse: corrected for the judge's errors on labelled pairs, if lion-ray judge calibrate has measured them.",
        )
    ]


def _parts(found: dict[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found["value"], found["low"], found["high"])


def _share(found: dict[str, Any] | None) -> str:
    if found is None:
        return count(None)
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"
