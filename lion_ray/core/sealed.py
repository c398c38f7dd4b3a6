"""Files that prove themselves: Parquet and JSON with a checksum over all of them, and hashes of files.

Invariants:
- A sealed Parquet file is an ordinary one. Its pages carry Parquet's own CRC-32, and its footer an entry with the
  CRC-32 of the whole file (taken with zeros in that place): no bit of it can change unnoticed.
- A sealed JSON object has one field more, the CRC-32 of the others in one canonical form.
- What has no seal (files of older versions, or of other tools) is read as it is; pages are checked where they can be.
- Checksums find accidents; they keep no forger out.

This module knows nothing of where files are.
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
    """A JSON object of a file. Asking it for a field that is not there names the file."""

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
    """The table in a Parquet file, or only some of its columns; where they are `optional`, those that it has.

    Raises:
        DamagedError: it is not what was written, or no Parquet, or lacks a column.
    """
    whole = memoryview(data)
    # The footer is the last thing in the file, and what an older version wrote has no mark there.
    tail = bytes(whole[max(0, len(whole) - _footer_bytes(whole)) :])
    at = tail.rfind(_MARK)
    if at >= 0:
        at += len(whole) - len(tail) + len(_MARK)
        found = zlib.crc32(whole[at + 8 :], zlib.crc32(_EMPTY, zlib.crc32(whole[:at])))
        if b"%08x" % found != bytes(whole[at : at + 8]):
            raise DamagedError(path, "its checksum does not fit")
    try:
        # Not `pq.read_table`, whose data sets take a millisecond more for each file.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        raise DamagedError(path, f"no Parquet that can be read ({_line(error)})") from None
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
    """What a JSON file holds, its objects as Records and without the seal.

    Raises:
        DamagedError: it is not JSON, or not what was written.
    """

    def record(pairs: list[tuple[str, Any]]) -> Record:
        made = Record(pairs)
        made.path = path
        return made

    try:
        value = json.loads(data, object_pairs_hook=record)
        if isinstance(value, Record) and isinstance(value.get(SEAL), str) and value.pop(SEAL) != _crc(value):
            raise DamagedError(path, "its checksum does not fit")
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"not JSON: {_line(error)}") from None
    return value


def sha256(stream: IO[bytes]) -> tuple[int, str]:
    """A file's bytes and their SHA-256, in hex."""
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
