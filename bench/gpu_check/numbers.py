"""What a section reports: one JSON object a line on standard output, as soon as it is known."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    """Where a section runs. `tiny`: everything as small as it can be, for a test of the check itself on a CPU."""

    device: torch.device
    tiny: bool

    @classmethod
    def this(cls, *, tiny: bool) -> Machine:
        gpu = torch.cuda.is_available() and not tiny
        return cls(torch.device("cuda", 0) if gpu else torch.device("cpu"), tiny)

    @property
    def gpus(self) -> int:
        return torch.cuda.device_count() if self.device.type == "cuda" else 0

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float | None:
        """The most memory since `fresh`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None

    def fresh(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def number(name: str, value: float | None, **about: Any) -> None:
    """Report what was measured and nothing is promised of."""
    _put({"name": name, "value": _short(value), **{key: _short(one) for key, one in about.items()}})


def at_most(name: str, value: float, limit: float, **about: Any) -> None:
    """Report a number that is wrong if it is larger, or not a number."""
    number(name, value, ok=value <= limit, at_most=limit, **about)


def between(name: str, value: float, low: float, high: float) -> None:
    """Report a number that is wrong outside of these limits."""
    number(name, value, ok=low <= value <= high, at_least=low, at_most=high)


def failed(name: str, error: BaseException) -> None:
    """Report that something could not be measured."""
    line = str(error).strip().split("\n")[0][:300]
    _put({"name": name, "value": None, "ok": False, "error": f"{type(error).__name__}: {line}"})


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """How far tensors are from others, of the others' size."""
    off = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    return math.sqrt(off / sum(float(one.double().square().sum()) for one in expected.values()))


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _put(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
