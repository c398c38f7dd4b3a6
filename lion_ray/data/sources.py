"""Reads the rows of a file or a dataset one by one, each with its place in the source.

Invariants:
- A row that cannot be decoded is still a row, with its problem. It is an exception only if the start of the next row
  cannot be found or the source cannot be opened: one line that says where, what and what to do.
- Text is not changed. Lines of a .jsonl file end with \\n only.
- Rows are decoded lazily; nothing after the last row requested can fail.

This module does not know what makes a row a good instruction (see `formats`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lion_ray.core.errors import ConfigError, DataError, InfrastructureError, one_line
from lion_ray.core.file_kinds import HEAD, why_unreadable
from lion_ray.data.formats import CONVERSATION_KEYS, INSTRUCTION_KEYS, KEYS
from lion_ray.data.lines import PACKED, content, lines

LONGEST_CELL = 2**31 - 1
"""In characters; the csv module's own limit is 131,072."""


class _Doubled(dict[str, Any]):
    """An object with a duplicate key; which value is meant cannot be known."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    # A duplicate key in a nested object is an error too.
    below = next((value.key for value in found.values() if isinstance(value, _Doubled)), "")
    if len(found) == len(pairs) and not below:
        return found
    doubled = _Doubled(found)
    names = [name for name, _ in pairs]
    doubled.key = below or next(name for name in names if names.count(name) > 1)
    return doubled


def _row(where: str, value: Any, text: str) -> SourceRow:
    if isinstance(value, _Doubled):
        return SourceRow(where, None, text, f"duplicate key '{value.key}'")
    return SourceRow(where, value, text)


# strict=False: control characters inside strings, such as a raw \x0b, are ordinary text.
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object)
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of a source."""

    where: str
    """``file:line``, or ``source: row N`` (counted from 1) if the source has no lines."""
    value: Any
    """The decoded row; the caller checks that it is an object."""
    text: str | None = None
    """The row's text in the file; None if the file is not text."""
    problem: str | None = None
    """Why the row could not be decoded."""
    ignored: tuple[str, ...] = ()
    """Columns that were not read."""

    def as_text(self) -> str:
        """The row's text in the file, or the row as JSON."""
        return json.dumps(self.value, ensure_ascii=False, default=str) if self.text is None else self.text


def rows_of(source: str, base_dir: Path) -> Iterator[SourceRow]:
    """The rows of a file (.json, .jsonl, .csv, .tsv, .txt, .parquet), or of ``hf:NAME[:CONFIGURATION][:SPLIT]``.

    A row of a Parquet file or a dataset holds only the known columns (`formats.KEYS`).
    """
    if source.startswith("hf:"):
        return _dataset_rows(source, base_dir)
    path = base_dir / source
    name = path.name.lower()
    if path.is_dir():
        raise ConfigError(f"{source}: is a folder; name a file in it, or write hf:{source} for a `datasets` folder")
    packed = name.endswith(PACKED)
    suffix = Path(name).with_suffix("").suffix if packed else Path(name).suffix
    if suffix not in _READERS or (packed and suffix == ".parquet"):
        raise ConfigError(
            f"{source}: unknown file type; give .json, .jsonl, .csv, .tsv or .txt (each also with .gz or .zst), "
            ".parquet, or hf:NAME[:SPLIT]"
        )
    if not path.exists():
        raise ConfigError(f"{source}: no such file in {base_dir}; check the path")
    return _READERS[suffix](source, path)


def _text_rows(source: str, path: Path) -> Iterator[SourceRow]:
    """Each line that is not blank is an instruction."""
    for number, line in enumerate(lines(source, path), start=1):
        if line.strip():
            line = line.removesuffix(b"\n")
            where = f"{source}:{number}"
            try:
                yield SourceRow(where, {"instruction": line.decode()}, line.decode().strip())
            except UnicodeDecodeError:
                yield SourceRow(where, None, line.decode("utf-8", "replace").strip(), "not UTF-8")


def _table_rows(source: str, path: Path, delimiter: str = ",") -> Iterator[SourceRow]:
    """Rows of a CSV table with column names in its first line (RFC 4180). A key with an empty cell is absent."""
    csv.field_size_limit(LONGEST_CELL)
    # Lines of a table may also end with \r, which a quoted cell keeps.
    texts = (text for line in lines(source, path) for text in io.StringIO(line.decode(), newline=""))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise DataError(f"{source}:1: duplicate column '{twice}'; rename one of the two")
        columns = set(_known_columns(source, names))
        ignored = tuple(name for name in names if name not in columns)
        for cells in reader:
            where = f"{source}:{reader.line_num}"
            if not any(cells):
                continue
            if len(cells) > len(names):
                yield SourceRow(where, None, delimiter.join(cells), f"{len(cells)} cells for {len(names)} columns")
                continue
            value = {name: cell for name, cell in zip(names, cells, strict=False) if name in columns and cell.strip()}
            yield SourceRow(where, value, ignored=ignored)
    except UnicodeDecodeError:
        raise DataError(f"{source}: not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{source}:{reader.line_num}: not a valid table ({one_line(error)}); correct it") from None


def _jsonl_rows(source: str, path: Path) -> Iterator[SourceRow]:
    ahead = (stripped for line in lines(source, path) if (stripped := line.strip()))
    first = next(ahead)
    if first[:1] == b"[" and (not _is_json(first) or next(ahead, None) is None):
        return (yield from _json_rows(source, path))  # a list, despite the file's name
    if first == b"{":
        raise DataError(
            f"{source}: an object spans several lines; write each row on one line, or all rows as a list in a .json"
        )
    # Lines end with \n only: str.splitlines would also split at \x0b, \x85 or U+2028 inside a row.
    for number, line in enumerate(lines(source, path), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        text = line.decode("utf-8", "replace").strip()
        try:
            value = _DECODER.decode(line.removesuffix(b"\n").decode())
        except UnicodeDecodeError:
            yield SourceRow(where, None, text, "not UTF-8")
        except json.JSONDecodeError as error:
            yield SourceRow(where, None, text, f"not JSON ({error.msg} at column {error.colno})")
        except (ValueError, RecursionError) as error:
            yield SourceRow(where, None, text, f"not JSON ({one_line(error)})")
        else:
            yield _row(where, value, text)


def _is_json(line: bytes) -> bool:
    try:
        _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _json_rows(source: str, path: Path) -> Iterator[SourceRow]:
    return _listed_rows(source, content(source, path))


def _listed_rows(source: str, whole: bytes) -> Iterator[SourceRow]:
    """The elements of a list, decoded one by one to know each one's line. Raises DataError for a syntax error."""

    def broken(position: int, what: str) -> DataError:
        return DataError(f"{source}:{text.count(chr(10), 0, position) + 1}: {what}; correct the file")

    try:
        text = whole.decode()
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        raise DataError(f"{source}:{line}: not UTF-8; save the file as UTF-8") from None
    position = _after_space(text, 0)
    if text[position] != "[":
        raise broken(position, "not a list of objects (a file with one object per line is named .jsonl)")
    position = _after_space(text, position + 1)
    line, counted = 1, 0
    more = not text.startswith("]", position)
    while more:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.pos, f"not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise broken(position, f"not JSON ({one_line(error)})") from None
        line, counted = line + text.count("\n", counted, position), position
        yield _row(f"{source}:{line}", value, text[position:end])
        position = _after_space(text, end)
        more = text.startswith(",", position)
        position = _after_space(text, position + 1) if more else position
    if not text.startswith("]", position):
        raise broken(position, "not JSON (',' or ']' expected)")
    if (rest := _after_space(text, position + 1)) < len(text):
        raise broken(rest, "not JSON (something follows the list)")


def _after_space(text: str, position: int) -> int:
    space = _JSON_SPACE.match(text, position)
    return space.end() if space else position


def _parquet_rows(source: str, path: Path) -> Iterator[SourceRow]:
    with path.open("rb") as opened:
        if (what := why_unreadable(opened.read(HEAD), binary=True)) is not None:
            raise DataError(f"{source}: {what}")
    try:
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            columns = _known_columns(source, names)
            ignored = tuple(name for name in names if name not in columns)
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(f"{source}: row {number}", batch, index, ignored)
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        raise DataError(f"{source}: cannot be read as Parquet ({one_line(error)}); check the file") from None


def _parquet_row(where: str, batch: pa.RecordBatch, index: int, ignored: tuple[str, ...]) -> SourceRow:
    try:
        value = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        return SourceRow(where, value, ignored=ignored)
    except UnicodeDecodeError:
        return SourceRow(where, None, "", "not UTF-8")


def _dataset_rows(source: str, base_dir: Path) -> Iterator[SourceRow]:
    name, parts = _named(source.removeprefix("hf:"), base_dir)
    if len(parts) > 2 or "" in parts:
        raise ConfigError(f"{source}: not hf:NAME[:CONFIGURATION][:SPLIT]; correct it")
    # Imported here because the import takes seconds and only this kind of source needs it.
    import datasets

    folder = base_dir / name
    split = parts[-1] if parts else "train"
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(folder)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            address = str(folder) if folder.is_dir() else name
            configuration, split = _configuration(source, address, parts)
            data = datasets.load_dataset(address, configuration, split=split)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ConfigError(f"{source}: no such dataset or split '{split}' ({one_line(error)}); check the name") from None
    except OSError as error:
        raise InfrastructureError(f"{source}: the dataset cannot be fetched ({one_line(error)}); try again") from None
    except datasets.exceptions.DatasetsError as error:
        raise DataError(f"{source}: the dataset cannot be read ({one_line(error)}); check its files") from None
    columns = _known_columns(source, data.column_names)
    ignored = tuple(name for name in data.column_names if name not in columns)
    for number, value in enumerate(data.select_columns(columns), start=1):
        yield SourceRow(f"{source}: row {number}", value, ignored=ignored)


def _named(name: str, base_dir: Path) -> tuple[str, list[str]]:
    """A dataset's name, and the parts after its colons. A folder's own name may hold colons."""
    parts = name.split(":")
    for end in range(len(parts), 1, -1):
        if (base_dir / ":".join(parts[:end])).is_dir():
            return ":".join(parts[:end]), parts[end:]
    return parts[0], parts[1:]


def _configuration(source: str, address: str, parts: list[str]) -> tuple[str | None, str]:
    """The configuration (None: the only one, or the default) and the split to load.

    Raises ConfigError, with the known names, if the dataset has several configurations and none is chosen.
    """
    import datasets

    if len(parts) == 2:
        return parts[0], parts[1]
    known = datasets.get_dataset_config_names(address)
    split = parts[0] if parts else "train"
    if len(known) < 2 or "default" in known:
        return (parts[0], "train") if parts and parts[0] in known and parts[0] != "default" else (None, split)
    if parts and parts[0] in known:
        return parts[0], "train"
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    raise ConfigError(
        f"{source}: has several configurations ({shown}); name one, as hf:NAME:{known[0]} or hf:NAME:{known[0]}:{split}"
    )


def _known_columns(source: str, names: list[str]) -> list[str]:
    if not any(name in names for name in (*INSTRUCTION_KEYS, *CONVERSATION_KEYS)):
        raise DataError(f"{source}: no column 'instruction' (it has {', '.join(names)}); rename the one that holds it")
    return [name for name in KEYS if name in names]


_READERS: dict[str, Callable[[str, Path], Iterator[SourceRow]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _table_rows,
    ".tsv": partial(_table_rows, delimiter="\t"),
    ".txt": _text_rows,
    ".parquet": _parquet_rows,
}
