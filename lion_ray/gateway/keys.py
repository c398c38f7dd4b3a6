"""API keys on their way from the environment to those who send calls, and to nobody else.

Invariants:
- A key is read from the environment, and kept in memory; it is in no command line and in no log.
- A driver that starts Ray itself takes its keys out of the environment before that, so that none of Ray's processes
  inherits them, and lays them into a file that only its user can read: in memory (/dev/shm) where there is such a file
  system, with the life of the run. What a killed driver left is removed by the next one.
- Whoever sends calls looks into that file, where it is told of one that is there; else into its own environment.

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
    """While the block runs these variables are not in the environment, but in a file, whose path is given.

    None where none of them is set. Afterwards the environment is as it was, and the file gone.
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
    """The key that a variable holds: in the file of the driver's, where that is on this machine, else in the
    environment. None where it is in neither."""
    if file is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if key := json.loads(Path(file).read_text(encoding="utf-8")).get(variable):
                return str(key)
    return os.environ.get(variable) or None


def _parent() -> Path:
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
