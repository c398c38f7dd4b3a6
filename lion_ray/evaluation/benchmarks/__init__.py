"""Multiple-choice benchmarks, by the paper's protocol."""
