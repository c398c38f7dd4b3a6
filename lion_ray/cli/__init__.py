"""The command line: verbs, their options and what is printed. What a verb does is elsewhere."""

from lion_ray.cli.main import app, guarded, main

__all__ = ["app", "guarded", "main"]
