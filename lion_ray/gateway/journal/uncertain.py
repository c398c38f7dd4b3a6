"""What may have been billed without an answer: durable beside the journal, so that no later start spends it again.

Invariants:
- Each process writes one file of its own, replaced whole: readers see the old one or the new one, never a torn one.
- A sum in it never becomes smaller: whether a call was billed that timed out, nobody ever hears.
- A file that cannot be read is an error to whoever asks for sums: without it a budget would be spent twice.

This module knows nothing of why a call is uncertain, or of budgets.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.calls import Account
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder

FOLDER = "uncertain"
SUFFIX = ".json"
VERSION = 1


@dataclass(slots=True)
class Uncertain:
    """Calls of one account to one endpoint whose fate is not known."""

    account: Account
    endpoint: str
    calls: int
    usd: float
    """What they may have cost at most."""


class UncertainFile:
    """The sums of one process. Blocking: call `write` from a thread."""

    def __init__(self, folder: Folder) -> None:
        """`folder`: the journal's. Writes and makes nothing yet."""
        self._folder = folder.below(FOLDER)
        self.name = f"{time.time_ns():020d}-{secrets.token_hex(6)}{SUFFIX}"
        """Nobody else's."""
        self._sums: dict[tuple[Account, str], Uncertain] = {}
        self._made = False

    @property
    def sums(self) -> list[Uncertain]:
        return list(self._sums.values())

    @property
    def path(self) -> str:
        return self._folder.file(self.name)

    def add(self, account: Account, endpoint: str, usd: float) -> None:
        known = self._sums.setdefault((account, endpoint), Uncertain(account, endpoint, 0, 0.0))
        known.calls += 1
        known.usd += usd

    def encoded(self) -> bytes:
        rows = [[*_named(one.account), one.endpoint, one.calls, one.usd] for one in self._sums.values()]
        return orjson.dumps({"version": VERSION, "uncertain": rows})

    def write(self, data: bytes) -> None:
        """Make what `encoded` gave durable. Raises what the storage raises."""
        if not self._made:
            self._folder.make()
            self._made = True
        self._folder.write(self.name, data, durable=True)


def read_uncertain(folder: Folder, *, but: str = "") -> list[Uncertain]:
    """The sums of all processes that wrote into a journal's folder, but for the file of this name (blocking).

    Raises InfrastructureError where one of them cannot be read.
    """
    found: list[Uncertain] = []
    below = folder.below(FOLDER)
    try:
        for name in sorted(below.list()):
            # Hidden files are aside: they are being written.
            if name.endswith(SUFFIX) and not name.startswith(".") and name != but:
                with contextlib.suppress(FileNotFoundError):
                    found += _decoded(below.read(name, 0, 2**62), below.file(name))
    except STORAGE_ERRORS as cause:
        raise InfrastructureError(f"what may have been billed, in {below.path}, cannot be read: {cause}") from cause
    return found


def total(uncertain: Iterable[Uncertain]) -> float:
    """US dollars."""
    return sum(one.usd for one in uncertain)


def _decoded(data: bytes, path: str) -> list[Uncertain]:
    try:
        found: Any = orjson.loads(data)
        if found["version"] != VERSION:
            raise ValueError(f"of version {found['version']!r}, and this is {VERSION}")
        return [
            Uncertain(Account(str(run), str(role), str(stage)), str(endpoint), int(calls), max(0.0, float(usd)))
            for run, role, stage, endpoint, calls, usd in found["uncertain"]
        ]
    except (ValueError, TypeError, KeyError) as cause:
        raise InfrastructureError(
            f"{path} cannot be read ({cause}): it holds what may have been billed without an answer, and counts against"
            " budgets. Move it away to go on; then that does not count"
        ) from cause


def _named(account: Account) -> tuple[str, str, str]:
    return account.run, account.role, account.stage
