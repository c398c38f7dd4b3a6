"""Where a model comes from, how it is prompted, and what its files hold. No Ray."""
