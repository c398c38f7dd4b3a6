"""Prints the reference of all keys: ``python -m lion_ray.config > docs/configuration.md``."""

from lion_ray.config.keys import reference

print(reference(), end="")
