"""Passes API keys from the environment to the processes that send calls, and to no others.

Invariants:
- A key is read from the environment and kept in memory; it is never in a command line or a log.
- A driver that starts Ray itself first moves its keys from the environment, so that Ray's processes do not inherit
  them, to a file that only its user can read: in memory (/dev/shm) if possible, and only for the duration of the run.
  The next driver removes a killed driver's file.
- A process that sends calls reads that file if it is given one that exists, else its own environment.

This module knows nothing of endpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lion_ray.core.leftovers import scratch_folder

PREFIX = "lion-ray-keys-"
_FILE = "keys.json"
_IN_MEMORY = Path("/dev/shm")


@contextmanager
def set_aside(variables: Iterable[str]) -> Iterator[str | None]:
    """Move these variables from the environment to a file while the block runs; yields the file's path.

    Yields None if none of them is set. Afterwards the environment is restored and the file removed.
    """
    keys = {name: os.environ[name] for name in dict.fromkeys(variables) if os.environ.get(name)}
    if not keys:
        yield None
        return
    folder = scratch_folder(PREFIX, _parent())
    file = folder / _FILE
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        json.dump(keys, written)
    for name in keys:
        del os.environ[name]
    try:
        yield str(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.update({name: key for name, key in keys.items() if name not in os.environ})


def read_key(variable: str, file: str | None = None) -> str | None:
    """The key in a variable, from the driver's file if it is on this machine, else from the environment. Returns None
    if neither has it."""
    if file is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if key := json.loads(Path(file).read_text(encoding="utf-8")).get(variable):
                return str(key)
    return os.environ.get(variable) or None


def _parent() -> Path:
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
