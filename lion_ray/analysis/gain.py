"""The gain between two checkpoints on the same instructions, judged both times.

Invariant: rows are resampled as pairs, so an instruction's difficulty for both checkpoints cancels out. The interval is
narrower than two separate intervals suggest, and it is the right one for the gain.

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
