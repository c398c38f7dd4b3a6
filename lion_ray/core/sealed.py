"""Sealed files: Parquet and JSON with a checksum of the whole file, and hashes of files.

Invariants:
- A sealed Parquet file is an ordinary one. Its pages carry Parquet's own CRC-32. An entry in its footer holds the
  CRC-32 of the whole file, computed with zeros in that place, so that any changed bit is detected.
- A sealed JSON object has one more field, the CRC-32 of the others in a canonical form.
- A file without a seal (from older versions or other tools) is read unchecked, except pages that have a checksum.
- Checksums detect accidents, not forgery.

This module does not know where files are.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lion_ray.core.errors import DamagedError

SEAL = "crc32"
_PARQUET_KEY = b"lion-ray-crc32"
# In Thrift's compact protocol: a string field, 8 bytes long. See parquet.thrift, KeyValue.
_MARK = _PARQUET_KEY + b"\x18\x08"
_EMPTY = b"0" * 8
_BLOCK = 2**20


class Record(dict[str, Any]):
    """A JSON object of a file. Raises DamagedError with the file's path for a missing field."""

    path = ""

    def __missing__(self, key: str) -> Any:
        raise DamagedError(self.path, f"it has no {key!r}")


def to_parquet(table: pa.Table) -> bytes:
    """A sealed Parquet file."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_PARQUET_KEY.decode(): _EMPTY.decode()})
    data = bytearray(sink.getvalue())
    at = data.rfind(_MARK) + len(_MARK)
    data[at : at + 8] = b"%08x" % zlib.crc32(data)
    return bytes(data)


def from_parquet(
    data: pa.Buffer, path: str, columns: Sequence[str] | None = None, *, optional: bool = False
) -> pa.Table:
    """The table in a Parquet file, or only `columns`; with `optional`, those of them that the file has.

    Raises:
        DamagedError: the file differs from what was written, is not Parquet, or lacks a column.
    """
    whole = memoryview(data)
    # The footer is at the end of the file; a file of an older version has no mark there.
    tail = bytes(whole[max(0, len(whole) - _footer_bytes(whole)) :])
    at = tail.rfind(_MARK)
    if at >= 0:
        at += len(whole) - len(tail) + len(_MARK)
        found = zlib.crc32(whole[at + 8 :], zlib.crc32(_EMPTY, zlib.crc32(whole[:at])))
        if b"%08x" % found != bytes(whole[at : at + 8]):
            raise DamagedError(path, "its checksum does not match")
    try:
        # Not `pq.read_table`, which takes a millisecond more for each file.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        raise DamagedError(path, f"not readable Parquet ({_line(error)})") from None
    if (
        columns is not None
        and not optional
        and (missing := [name for name in columns if name not in table.column_names])
    ):
        raise DamagedError(path, f"it has no column {missing[0]!r}")
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _PARQUET_KEY}
    return table.replace_schema_metadata(metadata or None)


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum."""
    return {**value, SEAL: _crc(json.loads(json.dumps(value)))}


def from_json(data: bytes, path: str) -> Any:
    """The value in a JSON file, its objects as Records and without the seal.

    Raises:
        DamagedError: it is not JSON, or differs from what was written.
    """

    def record(pairs: list[tuple[str, Any]]) -> Record:
        made = Record(pairs)
        made.path = path
        return made

    try:
        value = json.loads(data, object_pairs_hook=record)
        if isinstance(value, Record) and isinstance(value.get(SEAL), str) and value.pop(SEAL) != _crc(value):
            raise DamagedError(path, "its checksum does not match")
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"not JSON: {_line(error)}") from None
    return value


def sha256(stream: IO[bytes]) -> tuple[int, str]:
    """A file's size in bytes, and its SHA-256 in hex."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def _crc(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _footer_bytes(data: memoryview) -> int:
    return int.from_bytes(data[-8:-4], "little") + 8 if len(data) >= 12 else len(data)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
