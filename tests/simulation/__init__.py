"""A deterministic simulation of a run's spending and storage: see `world` for what is simulated and what is real."""
