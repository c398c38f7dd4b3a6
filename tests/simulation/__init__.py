"""A deterministic simulation of a run's money and storage: see `world` for what is simulated and what is real."""
