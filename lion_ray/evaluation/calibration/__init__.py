"""Measure a judge's reliability on labelled pairs and on a run's own rows."""
