"""Opens a text file, compressed or not, and reads it line by line or whole.

Invariants:
- `lines` holds one line in memory, not the file. Lines end with \\n only.
- An empty file, or one whose first bytes show that its format is not what its name says, is a DataError before its
  first line. A file that breaks off is one where it does.

This module does not know what a line holds (see `sources`).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from lion_ray.core.errors import DataError, one_line
from lion_ray.core.file_kinds import HEAD, why_unreadable

PACKED = (".gz", ".zst")
"""The endings of compressed files."""
_BOM = b"\xef\xbb\xbf"
_BUFFER = 2**20
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)


def content(source: str, path: Path) -> bytes:
    """The whole file. Raises DataError as `lines`."""
    try:
        with _opened(path) as file:
            return _start(source, file) + file.read()
    except _BROKEN as error:
        raise _unreadable(source, error) from None


def lines(source: str, path: Path) -> Iterator[bytes]:
    """The lines with their \\n, blank ones too.

    Raises:
        DataError: the file cannot be read, is empty, or is of another format.
    """
    try:
        with _opened(path) as file:
            yield from io.BytesIO(_start(source, file) + file.readline())
            yield from file
    except _BROKEN as error:
        raise _unreadable(source, error) from None


def _opened(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return io.BufferedReader(cast(Any, gzip.open(path, "rb")), _BUFFER)
    if name.endswith(".zst"):
        return io.BufferedReader(cast(Any, pa.input_stream(str(path), compression="zstd")), _BUFFER)
    return path.open("rb", buffering=_BUFFER)


def _start(source: str, file: IO[bytes]) -> bytes:
    """The file's first HEAD bytes and what follows up to a text, without the byte order mark."""
    pieces = [file.read(len(_BOM) + HEAD).removeprefix(_BOM)]
    while not pieces[-1].strip() and (more := file.read(_BUFFER)):
        pieces.append(more)
    if not pieces[-1].strip():
        raise DataError(f"{source}: is empty; give rows with an 'instruction'")
    start = b"".join(pieces)
    if (what := why_unreadable(start[:HEAD])) is not None:
        raise DataError(f"{source}: {what}")
    return start


def _unreadable(source: str, error: BaseException) -> DataError:
    return DataError(f"{source}: cannot be read ({one_line(error)}); check the file")
