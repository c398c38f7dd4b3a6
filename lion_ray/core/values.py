"""Parses a text's last number, or the JSON value that it is. Pure.

Invariants:
- No text makes parsing raise. The result is None or `NOTHING` if it cannot be parsed: nested too deep, NaN, a lone
  surrogate, an extremely long number.

This module does not know why the values are compared.
"""

from __future__ import annotations

import decimal
import json
import re
from decimal import Decimal
from typing import Any

LONGEST_NUMBER = 1000
LONGEST_EXPONENT = 7
"""The most characters of a number and of its exponent; anything longer does not count as a number."""

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_NUMBER = re.compile(
    # Not within a word (H2O) or a longer number; a sign only if it cannot be a dash between two numbers (3-5).
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)(?:(?<![\w)\]])[-+−–])?(?:[$€£]\s?)?"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE]([-+]?[0-9]+))?"
    r"(\s?%|\s?percent\b)?"
)
EXACT = decimal.Context(prec=LONGEST_NUMBER, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
NOTHING = object()
"""Stands for a text that is not JSON; None stands for JSON's null."""


def last_number(text: str) -> tuple[Decimal, bool] | None:
    """The last number in a text, and whether it is a percentage."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    if last is None or len(last[1]) > LONGEST_NUMBER or len(last[2] or "") > LONGEST_EXPONENT:
        return None
    negative = last[0].lstrip()[:1] in ("-", "−", "–")
    digits = last[1].replace(",", "") + (f"e{last[2]}" if last[2] else "")
    value = EXACT.create_decimal(digits)
    # Not -value: that would round in Python's default context, or raise.
    return (value.copy_negate() if negative else value), last[3] is not None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def json_value(text: str) -> Any:
    """The JSON value of a text or of its single fenced block; `NOTHING` if it is not JSON."""
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    try:
        value = json.loads(fenced[1] if fenced else stripped, parse_constant=_no_constant)
        canonical(value)  # raises for 1e999 and for a lone surrogate, however it is escaped
    except (ValueError, RecursionError):
        return NOTHING
    return value


def canonical(value: Any) -> str:
    """A JSON value as its canonical text. Raises ValueError or RecursionError if it is not JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()  # raises for a lone surrogate
    return text


def agree(one: Any, other: Any) -> bool:
    """Whether two values of a field are equal, ignoring case and whitespace in texts; numbers compare by value."""
    if isinstance(one, str) and isinstance(other, str):
        return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
    return _equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    """JSON's equality: 1 equals 1.0, and true does not equal 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return bool(one == other)
