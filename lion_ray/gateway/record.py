"""A journal's record: one line that proves itself.

Invariants:
- A line is the CRC-32 of the JSON in 8 hex digits, a space, the JSON, a newline; the JSON holds no newline.
- The JSON's first field is the key, so a line's key is found by position, without parsing.
- A line whose CRC does not fit is no record.

This module knows nothing of files.
"""

from __future__ import annotations

import time
import zlib
from typing import Any

import orjson

from lion_ray.gateway.calls import Completion

_KEY_LENGTH = 64
_PREFIX = b' {"key":"'
_FIELDS = (
    "text",
    "finish_reason",
    "model",
    "endpoint",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "seconds",
    "cost_usd",
)


def encode_record(completion: Completion, role: str) -> bytes:
    """A record's line, with its newline."""
    if len(completion.key) != _KEY_LENGTH or not completion.key.isascii():
        raise ValueError(f"a call's key is {_KEY_LENGTH} hex digits, not {completion.key!r}")
    record: dict[str, Any] = {"key": completion.key}
    record |= {name: getattr(completion, name) for name in _FIELDS}
    record |= {"role": role, "at": round(time.time(), 3)}
    data = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def decode_record(line: bytes) -> Completion | None:
    """The completion in a line without its newline; None where the line is damaged."""
    if key_of_record(line) is None:
        return None
    record = orjson.loads(line[9:])
    return Completion(key=record["key"], replayed=True, **{name: record[name] for name in _FIELDS if name in record})


def key_of_record(line: bytes) -> str | None:
    """The key of a line whose CRC fits, found by position, as parsing 100,000 answers would take seconds."""
    if len(line) < 9 + len(_PREFIX) + _KEY_LENGTH or line[8:17] != _PREFIX:
        return None
    try:
        expected = int(line[:8], 16)
    except ValueError:
        return None
    if zlib.crc32(line[9:]) != expected:
        return None
    return line[17 : 17 + _KEY_LENGTH].decode("ascii", "replace")
