"""The format of a journal's checksummed lines: records of calls, and the header of a merged segment.

Invariants:
- A line is the CRC-32 of the JSON in 8 hex digits, a space, the JSON, a newline; the JSON holds no newline.
- A record's first field is the key and its last is the text. The fields between are short, so the key and the account
  are read without parsing the text.
- A line whose CRC does not match is neither a record nor a header.
- A line holds its format version, `v`; without it the version is 1. An intact line that this version does not
  understand, of another version or another tool, is foreign: it is kept, but never served. If a newer version wrote
  one, the journal is not opened for purchases (`Journal.open`).

This module knows nothing of files.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from lion_ray.gateway.calls import Account, Completion, TokenChoice
from lion_ray.gateway.journal.spending import Spent, Sums, from_json, to_json

VERSION = 1
"""Increase it if an older lion-ray would misread a line."""
_KEY_LENGTH = 64
_MOST = 2**63
_RECORD = b' {"key":"'
_HEADER = b' {"merged":'
# Quotes are escaped in JSON strings, so this matches only at the start of the field.
_TEXT = b',"text":"'
_FIELDS = (
    "endpoint",
    "cost_usd",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "finish_reason",
    "model",
    "seconds",
    "text",
)


class Head(NamedTuple):
    """A record's key (32 bytes), account and spending."""

    digest: bytes
    account: Account
    spent: Spent


class Foreign(NamedTuple):
    """An intact line that this version does not understand."""

    why: str
    newer: int = 0
    """Its version if a newer lion-ray wrote it, else 0."""


class Header(NamedTuple):
    """The first line of a merged segment: the files it replaces, and the spending in its sources, by source.

    The sums include all lines of the merged segment, and the lines that were dropped from it.
    """

    replaces: frozenset[str]
    sums: dict[str, Sums]


def digest_of(key: str) -> bytes | None:
    """A key's 32 bytes. Returns None if it is not 64 hex digits."""
    if len(key) != _KEY_LENGTH:
        return None
    try:
        return bytes.fromhex(key)
    except ValueError:
        return None


def encode_record(completion: Completion, account: Account) -> bytes:
    """A record's line, with its newline."""
    if digest_of(completion.key) is None:
        raise ValueError(f"a call's key must be {_KEY_LENGTH} hex digits, not {completion.key!r}")
    record: dict[str, Any] = {"key": completion.key, "v": VERSION}
    record |= {"run": account.run, "role": account.role, "stage": account.stage, "at": round(time.time(), 3)}
    if completion.logprobs is not None:
        record["logprobs"] = [tuple(choice) for choice in completion.logprobs]
    record |= {name: getattr(completion, name) for name in _FIELDS}
    return _line(orjson.dumps(record))


def head_of(completion: Completion, account: Account) -> Head:
    """The head that `decode_head` returns for the line of `encode_record`."""
    spent = Spent(1, completion.prompt_tokens, completion.completion_tokens, completion.cost_usd or 0.0)
    return Head(bytes.fromhex(completion.key), account, spent)


def decode_record(line: bytes) -> Completion | None:
    """The completion in a line without its newline. Returns None if the line is damaged or foreign."""
    if not is_intact(line) or not isinstance(decode_head(line), Head):
        return None
    try:
        record = orjson.loads(line[9:])
        if not isinstance(record["text"], str):
            return None
        return Completion(
            key=record["key"],
            replayed=True,
            logprobs=_choices(record["logprobs"]) if "logprobs" in record else None,
            **{name: record[name] for name in _FIELDS if name in record},
        )
    except (ValueError, TypeError, LookupError):
        return None


def _choices(listed: list[Any]) -> tuple[TokenChoice, ...]:
    return tuple(TokenChoice(offset, token, tuple(map(tuple, others))) for offset, token, others in listed)


def decode_head(line: bytes) -> Head | Foreign | None:
    """The head of an intact record's line. Returns None if it is not a record. Does not check the CRC."""
    if line[8 : 8 + len(_RECORD)] != _RECORD:
        return None
    text = line.find(_TEXT)
    if text < 0:
        return Foreign("a record without a text")
    try:
        head = orjson.loads(line[9:text] + b"}")
    except ValueError:
        return Foreign("not the fields of a record, in their order")
    if (version := head.get("v", 1)) != VERSION:
        return Foreign(f"of version {str(version)[:20]}", _newer(version))
    return _checked(head) or Foreign("not the fields of a record")


def _checked(head: dict[str, Any]) -> Head | None:
    """The head in a record's fields. Returns None if they are invalid."""
    names = [head.get(name, "") for name in ("run", "role", "stage")]
    tokens: list[Any] = [head.get(name) for name in ("prompt_tokens", "completion_tokens")]
    usd = head.get("cost_usd")
    digest = digest_of(head["key"]) if isinstance(head["key"], str) else None
    texts = [head.get(name) for name in ("endpoint", "model", "finish_reason")]
    if (
        digest is None
        or not all(isinstance(one, str) for one in (*names, *texts))
        or not all(type(one) is int and -_MOST <= one < _MOST for one in tokens)
        or not (usd is None or type(usd) in (int, float))
    ):
        return None
    return Head(digest, Account(*names), Spent(1, tokens[0], tokens[1], float(usd or 0.0)))


def encode_header(replaces: Iterable[str], sums: Mapping[str, Sums]) -> bytes:
    """A merged segment's first line, with its newline."""
    return _line(orjson.dumps({"merged": {"replaces": sorted(replaces), "sums": to_json(sums)}, "v": VERSION}))


def decode_header(line: bytes) -> Header | Foreign | None:
    """The header in an intact line. Returns None if it is not a header. Does not check the CRC."""
    if line[8 : 8 + len(_HEADER)] != _HEADER:
        return None
    try:
        found = orjson.loads(line[9:])
        if (version := found.get("v", 1)) != VERSION:
            return Foreign(f"a merged segment of version {str(version)[:20]}", _newer(version))
        merged = found["merged"]
        return Header(frozenset(map(as_name, merged["replaces"])), from_json(merged["sums"]))
    except (ValueError, TypeError, LookupError, AttributeError):
        return Foreign("not the header of a merged segment")


def _newer(version: object) -> int:
    return version if type(version) is int and VERSION < version < _MOST else 0


def as_name(value: object) -> str:
    """A segment's name from JSON. Raises TypeError if it is not text."""
    if not isinstance(value, str):
        raise TypeError("a segment's name must be text")
    return value


def is_intact(line: bytes) -> bool:
    """Whether the CRC of a line without its newline matches."""
    if len(line) < 10 or line[8:9] != b" ":
        return False
    try:
        expected = int(line[:8], 16)
    except ValueError:
        return False
    return zlib.crc32(memoryview(line)[9:]) == expected


def _line(data: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(data), data)
