"""Read-only analysis of a finished or running run's data: lineage, diversity, gain, examples."""
