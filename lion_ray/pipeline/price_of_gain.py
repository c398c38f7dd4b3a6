"""The cost per point of held-out score gained from one student to the next.

Invariants:
- A student's cost is that of its own training rows, and of the discrimination and generation in the previous iteration,
  which made the rows. Measurement is not included.
- Without a gain the cost per point is None, not a negative number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lion_ray.core.iteration_result import IterationResult
from lion_ray.pipeline.stage import Phase
from lion_ray.pipeline.stages import PIPELINE

PAID = {stage.name: stage.phase for stage in PIPELINE if stage.actor in ("teacher", "referee", "generator", "rewarder")}
"""The stages that make calls, with their phases."""
ANSWERS = "teacher answers the Train Pool"


@dataclass(frozen=True, slots=True)
class PriceOfGain:
    """A student's gain over the previous one, and its cost."""

    measure: str
    """checks, or quality (relative, on the held-out set) if there are no checks."""
    points: float
    """The gain; 100 points are the whole scale of the checks, or the teacher's own quality."""
    usd: float | None
    """US dollars for calls; None if a price is unknown."""
    teacher_tokens: int
    """Completion tokens of the teacher's answers in the Train Pool."""

    @property
    def usd_per_point(self) -> float | None:
        return None if self.usd is None or self.points <= 0 else self.usd / self.points

    @property
    def tokens_per_point(self) -> float | None:
        return None if self.points <= 0 else self.teacher_tokens / self.points

    def to_json(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "points": self.points,
            "usd": self.usd,
            "teacher_tokens": self.teacher_tokens,
            "usd_per_point": self.usd_per_point,
            "teacher_tokens_per_point": self.tokens_per_point,
        }


def price_of_gain(before: IterationResult, after: IterationResult) -> PriceOfGain | None:
    """From one iteration's student to the next one's. Returns None if no measure was taken of both."""
    found = [
        (measure, 100 * (last - first))
        for measure, value in (("checks", _checked), ("quality", _judged))
        if (first := value(before)) is not None and (last := value(after)) is not None
    ]
    if not found:
        return None
    measure, points = found[0]
    paid = [
        numbers
        for result, phases in (
            (before, (Phase.DISCRIMINATION, Phase.GENERATION)),
            (after, (Phase.DATA, Phase.IMITATION)),
        )
        for name, numbers in result.stages.items()
        if PAID.get(name) in phases
    ]
    known = all("cost_usd" in numbers for numbers in paid)
    return PriceOfGain(
        measure,
        points,
        sum(numbers["cost_usd"] for numbers in paid) if known else None,
        int(after.stages.get(ANSWERS, {}).get("completion_tokens", 0)),
    )


def _checked(result: IterationResult) -> float | None:
    mean = (result.checks or {}).get("mean")
    return None if mean is None else float(mean["value"])


def _judged(result: IterationResult) -> float | None:
    return None if result.quality_heldout is None else float(result.quality_heldout["ratio"])
