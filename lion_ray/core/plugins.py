"""A user's own code, found by its import path.

Invariants:
- Whatever the code raises becomes a one-line error that names its configuration key.
- The code is imported only where it is needed; nothing in a run's folder names code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lion_ray.core.errors import ConfigError


def load_attribute(import_path: str, base_dir: Path, key: str) -> Any:
    """Import `package.module:name`; the folder of the configuration file is searched before Python's own path.

    Raises ConfigError if it cannot be imported; `key` is the configuration key that holds the path.
    """
    module, _, name = import_path.partition(":")
    beside = str(base_dir)
    sys.path.insert(0, beside)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code may raise anything
        raise ConfigError(f"{key}: {import_path} cannot be imported ({in_one_line(error)}); correct it") from None
    finally:
        if beside in sys.path:
            sys.path.remove(beside)
    return found


def make(import_path: str, options: Mapping[str, Any], base_dir: Path, key: str, *methods: str) -> Any:
    """An object of the user's own class, made with `options`.

    Raises ConfigError if it cannot be imported or made, or lacks one of `methods`.
    """
    made_by = load_attribute(import_path, base_dir, key)
    if not callable(made_by):
        raise ConfigError(f"{key}: {import_path} is not a class; name one, or a function that makes the object")
    try:
        made = made_by(**options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code may raise anything
        raise ConfigError(
            f"{key}: {import_path} cannot be made with its options ({in_one_line(error)}); correct them"
        ) from None
    missing = [name for name in methods if not callable(getattr(made, name, None))]
    if missing:
        raise ConfigError(f"{key}: {import_path} has no method {missing[0]}; docs/extending.md says what it needs")
    return made


def call_user_code(what: Callable[..., Any], *arguments: Any, key: str) -> Any:
    """Call the user's own method and return its result. Raises ConfigError if it raises."""
    try:
        return what(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code may raise anything
        raise ConfigError(f"{key}: it raised {in_one_line(error)}; correct it, and run the same command") from None


def in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
