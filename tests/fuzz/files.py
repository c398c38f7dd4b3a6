"""Targets: rows that users import, and a run's own records and tables."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lion_ray.core.attempts import read_attempt
from lion_ray.core.errors import ConfigError, DamagedError, DataError
from lion_ray.core.sealed import from_json, from_parquet, seal, to_parquet
from lion_ray.core.shapes import ATTEMPT, CONFIG, MANIFEST, RUN
from lion_ray.core.store import RunStore
from lion_ray.data.pools import read_pool
from tests.fuzz.target import FOLDER, Draw, target

KINDS = ("rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz")
COLUMNS = ("instruction", "input", "reference", "output", "prompt", "question", "text", "id", "context", "messages")
TABLE = pa.table({"instruction": ["a", None], "input": ["", "b"], "id": [1, 2], "tags": [["x"], []]})


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _rows() -> Iterable[bytes]:
    line = b'{"instruction": "Add", "input": "1 2", "output": "3"}\n'
    yield b"\0\0" + line * 2
    yield b"\0\1[" + line + b"," + line + b"]"
    yield b"\1\0" + gzip.compress(line, mtime=0)
    yield b"\2\0" + line
    yield b"\3\0" + bytes(range(200))


@target("rows", DataError, seeds=_rows)
def rows(data: bytes) -> None:
    draw = Draw(data)
    mode, name = draw.below(4), draw.choice(KINDS)
    if mode == 3:
        made = [json.dumps(draw.json(COLUMNS, 3)) for _ in range(1 + draw.below(4))]
        content = (f"[{','.join(made)}]" if ".json" in name and ".jsonl" not in name else "\n".join(made)).encode()
    else:
        content = draw.rest()
    if mode in (2, 3) and name.endswith(".gz"):
        content = gzip.compress(content, 1, mtime=0)
    base = FOLDER.empty()
    (base / name).write_bytes(content)
    for on_bad_row in ("quarantine", "stop"):
        read_pool(name, base_dir=base, limit=None, on_bad_row=on_bad_row)


def _parquet_files() -> Iterable[bytes]:
    yield _parquet(TABLE)
    yield _parquet(TABLE, compression="none", use_dictionary=False, write_statistics=False)
    yield _parquet(TABLE.select(["instruction"]), compression="gzip", write_page_checksum=True)


@target("parquet-rows", DataError, seeds=_parquet_files)
def parquet_rows(data: bytes) -> None:
    base = FOLDER.empty()
    (base / "rows.parquet").write_bytes(data)
    read_pool("rows.parquet", base_dir=base, limit=None, on_bad_row="quarantine")


def _tables() -> Iterable[bytes]:
    for whole in (to_parquet(TABLE), *_parquet_files()):
        yield b"\0\0" + whole


@target("tables", DamagedError, seeds=_tables)
def tables(data: bytes) -> None:
    draw = Draw(data)
    columns = draw.choice((None, ["id"], ["id", "missing"]))
    optional = draw.below(2) == 1
    from_parquet(pa.py_buffer(draw.rest()), "part", columns, optional=optional)


_NAMES = (*RUN, *CONFIG, *ATTEMPT, *MANIFEST, "files", "data", "part-00000.parquet", "bytes", "sha256", "crc32")


def _records() -> Iterable[bytes]:
    run = {"format": 1, "config": {"iterations": 1, "data": {}, "run_name": "a"}, "versions": {}, "base_dir": "/"}
    yield b"\0\0" + json.dumps(seal(run)).encode()
    yield b"\0\1" + json.dumps(seal({"attempt": 1, "token": "t", "alive": 1.0, "ended": False, "beat": 1})).encode()
    yield b"\0\2" + json.dumps(seal({"rows": 1, "parts": 1, "quarantined": {}, "mean": {}})).encode()
    yield b"\1\0" + bytes(range(200))
    yield b"\2\2" + bytes(range(200))


@target("records", DamagedError, ConfigError, seeds=_records)
def records(data: bytes) -> None:
    """A run's description, its attempt file and a stage's manifest, with any content, sealed or not."""
    draw = Draw(data)
    mode, which = draw.below(3), draw.below(3)
    if mode:
        value = {draw.choice(_NAMES): draw.json(_NAMES, 4) for _ in range(draw.below(9))}
        content = json.dumps(seal(value) if mode == 2 else value).encode()
    else:
        content = draw.rest()
    root = FOLDER.empty()
    store = RunStore(str(root))
    name = ("run.json", "attempt.json", "pool-0/manifest.json")[which]
    (root / "pool-0").mkdir()
    (root / name).write_bytes(content)
    from_json(content, name)
    store.description()
    read_attempt(store)
    stage = store.stage("pool-0")
    stage.manifest()
    stage.sums()
