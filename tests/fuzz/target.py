"""Fuzz targets: functions of bytes that must return or raise one of their declared errors.

Invariants:
- A target depends only on its input: not on the clock, random numbers or earlier inputs.
- An error shown to the user is one line (for a configuration: one per mistake).

This module does not import atheris, so the targets run without it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lion_ray.core.errors import ConfigError, LionError

TARGETS: dict[str, Target] = {}
"""All targets, once `tests.fuzz.targets` is imported."""


class NotOneLineError(AssertionError):
    """A user's error has several lines."""


@dataclass(frozen=True)
class Target:
    """A parser, its expected errors, and seed inputs."""

    name: str
    parse: Callable[[bytes], object]
    expected: tuple[type[BaseException], ...]
    seeds: Callable[[], Iterable[bytes]]

    def __call__(self, data: bytes) -> None:
        try:
            self.parse(data)
        except self.expected as error:
            if isinstance(error, LionError):
                _check_message(error)


def target(
    name: str, *expected: type[BaseException], seeds: Callable[[], Iterable[bytes]]
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register a function of bytes as a target."""

    def register(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
        TARGETS[name] = Target(name, parse, expected, seeds)
        return parse

    return register


def _check_message(error: LionError) -> None:
    # Control characters are escaped only when the message is printed (`core.terminal`).
    if "\n" in str(error) and not isinstance(error, ConfigError):
        raise NotOneLineError(f"{type(error).__name__}: {str(error)[:300]!r}") from error


class Folder:
    """An in-memory folder for parsers of files, emptied at each use."""

    def __init__(self) -> None:
        self._made: tempfile.TemporaryDirectory[str] | None = None

    def empty(self) -> Path:
        if self._made is None:
            memory = Path("/dev/shm")
            self._made = tempfile.TemporaryDirectory(prefix="lion-ray-fuzz-", dir=memory if memory.is_dir() else None)
        folder = Path(self._made.name)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return folder


FOLDER = Folder()


class Draw:
    """Draws values from the fuzzer's bytes, so that each changed byte changes a value; then the smallest values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def rest(self) -> bytes:
        """The remaining bytes."""
        data, self._at = self._data[self._at :], len(self._data)
        return data

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1 (at most 255)."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % bound

    def bytes(self) -> bytes:
        """Up to 63 bytes or, rarely, all remaining ones."""
        length = self.below(256)
        if length == 255:
            return self.rest()
        data = self._data[self._at : self._at + length % 64]
        self._at += len(data)
        return data

    def text(self) -> str:
        return self.bytes().decode("utf-8", "replace")

    def choice(self, values: tuple[Any, ...]) -> Any:
        return values[self.below(len(values))]

    def json(self, names: tuple[str, ...], depth: int = 5) -> Any:
        """A JSON value whose objects have mostly these keys."""
        match self.below(9 if depth else 6):
            case 0:
                return None
            case 1:
                return self.text()
            case 2:
                return self.choice((0, 1, -1, 200, 429, 2**31, 2**63 - 1, 2**64, -(2**63), 10**30))
            case 3:
                return self.choice((0.0, 0.5, -1.0, 1e308, -1e308, 5e-324, 1e16))
            case 4:
                return self.below(2) == 0
            case 5:
                return self.choice(names)
            case 6:
                return [self.json(names, depth - 1) for _ in range(self.below(4))]
        return {
            self.choice(names) if self.below(8) else self.text(): self.json(names, depth - 1)
            for _ in range(self.below(8))
        }
