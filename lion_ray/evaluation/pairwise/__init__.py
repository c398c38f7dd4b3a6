"""Open questions answered by two models and compared by a judge."""
