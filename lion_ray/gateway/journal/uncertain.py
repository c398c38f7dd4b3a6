"""Costs that may have been billed without an answer, durably recorded beside the journal for later starts' budgets.

Invariants:
- Each process writes its own file, replaced atomically: a reader never sees a torn one.
- A sum never decreases: whether a call that timed out was billed is never known.
- A file that cannot be read is an error for every reader of sums: without it a budget could be exceeded.

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

from lion_ray.core.errors import InfrastructureError, one_line
from lion_ray.core.storage import explain
from lion_ray.gateway.calls import Account
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder

FOLDER = "uncertain"
SUFFIX = ".json"
VERSION = 1


@dataclass(slots=True)
class Uncertain:
    """Calls of one account to one endpoint with an unknown outcome."""

    account: Account
    endpoint: str
    calls: int
    usd: float
    """The most that they may have cost."""


class UncertainFile:
    """The sums of one process. Blocking: call `write` from a thread."""

    def __init__(self, folder: Folder) -> None:
        """`folder`: the journal's. Writes and creates nothing yet."""
        self._folder = folder.below(FOLDER)
        self.name = f"{time.time_ns():020d}-{secrets.token_hex(6)}{SUFFIX}"
        """A unique file name."""
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
        """Durably write the result of `encoded`. Raises the storage's errors."""
        if not self._made:
            self._folder.make()
            self._made = True
        self._folder.write(self.name, data, durable=True)


def read_uncertain(folder: Folder, *, but: str = "") -> list[Uncertain]:
    """The sums of all processes in a journal's folder, except the file named `but` (blocking).

    Raises InfrastructureError if one of them cannot be read.
    """
    found: list[Uncertain] = []
    below = folder.below(FOLDER)
    try:
        for name in sorted(below.list()):
            # Hidden files are temporary: they are being written.
            if name.endswith(SUFFIX) and not name.startswith(".") and name != but:
                with contextlib.suppress(FileNotFoundError):
                    found += _decoded(below.read(name, 0, 2**62), below.file(name))
    except STORAGE_ERRORS as cause:
        raise InfrastructureError(
            f"what may have been billed, in {below.path}, cannot be read: {explain(cause)}"
        ) from cause
    return found


def total(uncertain: Iterable[Uncertain]) -> float:
    """The sum in US dollars."""
    return sum(one.usd for one in uncertain)


def _decoded(data: bytes, path: str) -> list[Uncertain]:
    try:
        found: Any = orjson.loads(data)
        if found["version"] != VERSION:
            raise ValueError(f"of version {found['version']!r}, but this lion-ray knows {VERSION}")
        return [
            Uncertain(Account(str(run), str(role), str(stage)), str(endpoint), int(calls), max(0.0, float(usd)))
            for run, role, stage, endpoint, calls, usd in found["uncertain"]
        ]
    except (ValueError, TypeError, KeyError) as cause:
        raise InfrastructureError(
            f"{path} cannot be read ({one_line(cause)}): it holds costs that may have been billed without an answer "
            "and count against budgets. Move it away to continue; then they do not count"
        ) from cause


def _named(account: Account) -> tuple[str, str, str]:
    return account.run, account.role, account.stage
