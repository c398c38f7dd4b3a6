"""How far a judge can be trusted, measured on labelled pairs and on a run's own rows."""
