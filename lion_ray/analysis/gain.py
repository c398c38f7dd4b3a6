"""The gain between two checkpoints that were judged on the same instructions.

Invariant: the bootstrap is paired: a row is resampled for both checkpoints at once, so its difficulty cancels out and
the interval of the gain is narrower than two separate intervals suggest.

This module does not know files.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lion_ray.core.statistics import Estimate, percentiles, resampled_sums

Floats = npt.NDArray[np.float64]


def paired_gain(
    before: tuple[Floats, Floats],
    after: tuple[Floats, Floats],
    *,
    seed: int,
) -> Estimate | None:
    """The gain from `before` to `after`, with a percentile bootstrap over rows. Returns None without rows.

    Relative quality is the student's summed scores over the teacher's: 0.01 is one point. Each argument is (teacher's
    scores, student's scores), [rows]; row i is the same instruction in all four. The same arguments give the same
    interval on every machine.
    """
    rows = np.array([*before, *after], np.float64)
    if not rows.shape[1]:
        return None
    low, high = percentiles(_gain(resampled_sums(rows, seed)))
    return Estimate(float(_gain(rows.sum(axis=1))), low, high, rows.shape[1])


def _gain(sums: Floats) -> Floats:
    return np.asarray(sums[3] / sums[2] - sums[1] / sums[0])
