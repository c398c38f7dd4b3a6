"""Measure whether the student improved: benchmarks, judged comparisons, checks, calibration of the judge. No Ray."""
