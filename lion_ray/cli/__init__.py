"""The command line: commands, their options and their output. Other packages do the work."""

from lion_ray.cli.main import app, guarded, main

__all__ = ["app", "guarded", "main"]
