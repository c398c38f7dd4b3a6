"""What a finished or running run's folder says about its data: lineage, diversity, gain, examples. Only reads."""
