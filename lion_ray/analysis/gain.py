"""Whether a student got better between two checkpoints: the same instructions, judged both times.

Invariant: rows are resampled as pairs, so what makes an instruction hard for both checkpoints cancels out; the interval
is narrower than what two intervals side by side suggest, and it is the one that answers the question.

This module knows nothing of files.
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
    """The gain from `before` to `after`, with a percentile bootstrap over rows; None where there are none.

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
