"""Many rows' token ids, made once on a machine, in parallel, and kept as a memory-mapped Arrow file.

Invariants:
- The samples are those of `data.encode`, in its order, with the same digest. The file only saves time: its name is a
  hash of all that decides its content, so another fit's file is never taken, and without one it is made anew.
- A file appears complete or not at all. Of a machine's processes one makes it and the others wait.
- Token ids stay in the file: a process holds only the samples of its current step.

A few rows are encoded in memory, without a file. This module does not know models or devices.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast, overload

import pyarrow as pa
from filelock import FileLock

from lion_ray.core.errors import LionError
from lion_ray.core.terminal import tell
from lion_ray.imitation.training.data import AnyRow, Sample, as_row, digest, encode
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.machine import cores
from lion_ray.models.prompter import Prompter
from lion_ray.models.resolve import cache_folder

MANY = 20_000
"""From so many rows on a file is worth its making."""
CHUNK = 2_000
"""Rows that a process encodes at a time."""
OLD_S = 7 * 24 * 3600.0
"""Files that no fit has used for so long, in seconds, are removed."""
_FORMAT = 1
_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "prompt": pa.int32(),
        "ids": pa.list_(pa.int32()),
        "spans": pa.list_(pa.int32()),
        "rejected": pa.list_(pa.int32()),
        "rejected_prompt": pa.int32(),
    }
)
_TOKENIZER = ("*token*", "chat_template*", "*.jinja", "*vocab*", "merges*", "*.model", "config.json")
"""The files from which transformers makes a tokenizer."""
_DROPPED, _DIGEST = b"dropped", b"digest"


class Stored(Sequence[Sample]):
    """The samples of a file, each made when it is asked for; `dropped` as of `data.encode`, `digest` as of `data`."""

    def __init__(self, path: Path, rows: Sequence[AnyRow]) -> None:
        """`rows` are those that were encoded: columns for the objective come from them.

        Raises pyarrow's errors or KeyError if the file is not complete.
        """
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = reader.schema.metadata or {}
        self.digest = about[_DIGEST].decode()
        self.dropped: dict[str, int] = json.loads(about[_DROPPED])
        self._rows = rows
        self._parts = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = [0, *accumulate(part.num_rows for part in self._parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._starts, index) - 1
        batch, place = self._parts[part], index - self._starts[part]
        return _sample(batch, place, as_row(self._rows[batch["row"][place].as_py()]).columns)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def pairs(self) -> int:
        return sum(part.num_rows - part["rejected"].null_count for part in self._parts)

    def extremes(self) -> list[Sample]:
        """The longest sample, the longest worse answer's, and the two shortest samples."""
        every = [length for part in self._parts for length in _lengths(part["ids"])]
        worse = [length for part in self._parts for length in _lengths(part["rejected"])]
        places = range(len(every))
        found = heapq.nsmallest(2, places, key=every.__getitem__)
        found += {max(places, key=every.__getitem__), max(places, key=worse.__getitem__)}.difference(found)
        return [self[place] for place in found]


def _sample(batch: pa.RecordBatch, place: int, columns: Mapping[str, Any]) -> Sample:
    def ids(name: str) -> list[int]:
        # as_py would make an object of Arrow's for each token first.
        return cast("list[int]", batch[name][place].values.to_numpy(zero_copy_only=False).tolist())

    compared = batch["rejected"][place].is_valid
    worse = Sample(ids("rejected"), batch["rejected_prompt"][place].as_py()) if compared else None
    spans = ids("spans")
    return Sample(
        ids("ids"), batch["prompt"][place].as_py(), columns, tuple(zip(spans[::2], spans[1::2], strict=True)), worse
    )


def _lengths(lists: Any) -> list[int]:
    return [length or 0 for length in pa.compute.list_value_length(lists).to_pylist()]


def tokenise(rows: Sequence[AnyRow], prompter: Prompter, spec: TrainSpec) -> tuple[Sequence[Sample], dict[str, int]]:
    """The samples of the rows that a fit learns from, and the number of dropped rows by reason (`data.encode`)."""
    if len(rows) < MANY:
        return encode(rows, prompter, spec.max_length, spec.truncated, spec.loss_on)
    folder = cache_folder() / "tokens"
    path = folder / f"{_key(rows, spec)}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_old(folder)
        with FileLock(f"{path}.lock"):
            stored = _opened(path, rows)
            if stored is None:
                _make(path, rows, prompter, spec)
                stored = Stored(path, rows)
    except OSError as error:  # no room, a folder that cannot be written: the fit does not depend on it
        tell(f"lion-ray training: token ids are made in memory: {error}", file=sys.stderr)
        return encode(rows, prompter, spec.max_length, spec.truncated, spec.loss_on)
    return stored, stored.dropped


def extremes(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples among which are the longest ones and the two shortest; all, if they are in memory."""
    return samples.extremes() if isinstance(samples, Stored) and len(samples) else samples


def count_pairs(samples: Sequence[Sample]) -> int:
    return samples.pairs if isinstance(samples, Stored) else sum(one.rejected is not None for one in samples)


def digest_of(samples: Sequence[Sample]) -> str:
    """`data.digest`, which is in the file."""
    return samples.digest if isinstance(samples, Stored) else digest(samples)


def _opened(path: Path, rows: Sequence[AnyRow]) -> Stored | None:
    try:
        found = Stored(path, rows)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    with suppress(OSError):
        os.utime(path)
    return found


def _remove_old(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > OLD_S:
                path.unlink()


def _key(rows: Sequence[AnyRow], spec: TrainSpec) -> str:
    """A hash of what decides the token ids: rows, tokenizer, prompt and settings, and the code's versions."""
    import tokenizers
    import transformers

    state = hashlib.sha256()
    settings = (spec.prompt, spec.max_length, spec.truncated, spec.loss_on)
    state.update(json.dumps([_FORMAT, transformers.__version__, tokenizers.__version__, settings]).encode())
    files = {path for pattern in _TOKENIZER for path in Path(spec.model_dir).glob(pattern) if path.is_file()}
    template = Path(spec.base_dir) / spec.prompt
    for path in sorted(files | ({template} if template.is_file() else set())):
        state.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    for row in map(as_row, rows):
        state.update(json.dumps(row._replace(columns={}), ensure_ascii=True, default=str).encode())
    return state.hexdigest()[:32]


def _make(path: Path, rows: Sequence[AnyRow], prompter: Prompter, spec: TrainSpec) -> None:
    """Write the file: encode the rows' chunks in processes, in the rows' order."""
    began = time.monotonic()
    partial = path.with_suffix(f".{os.getpid()}.partial")
    batches: list[pa.RecordBatch] = []
    dropped: Counter[str] = Counter()
    for batch, reasons in _encoded(rows, prompter, spec):
        batches.append(batch)
        dropped.update(reasons)
    tell(f"lion-ray training: {len(rows)} rows tokenised in {time.monotonic() - began:.0f} s", file=sys.stderr)
    state = digest(one for batch in batches for one in _samples(batch))
    schema = _SCHEMA.with_metadata({_DROPPED: json.dumps(dropped), _DIGEST: state})
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _samples(batch: pa.RecordBatch) -> Iterator[Sample]:
    return (_sample(batch, place, {}) for place in range(batch.num_rows))


Encoded = tuple[pa.RecordBatch, dict[str, int]]
"""A chunk's samples, and the number of its dropped rows by reason."""


def _encoded(rows: Sequence[AnyRow], prompter: Prompter, spec: TrainSpec) -> Iterator[Encoded]:
    bounds = list(pairwise([*range(0, len(rows), CHUNK), len(rows)]))
    processes = min(cores(), len(bounds))
    if processes < 2:
        yield from (_encode_chunk(rows[begin:end], begin, prompter, spec) for begin, end in bounds)
        return
    helpers = [_Helper(spec) for _ in range(processes)]
    free: SimpleQueue[_Helper] = SimpleQueue()
    for helper in helpers:
        free.put(helper)

    def encoded(begin: int, end: int) -> Encoded:
        helper = free.get()
        try:
            return helper.encode(rows[begin:end], begin)
        finally:
            free.put(helper)

    try:
        with ThreadPoolExecutor(processes) as pool:
            waiting: list[Future[Encoded]] = []
            try:
                for begin, end in bounds:
                    waiting.append(pool.submit(encoded, begin, end))
                    if len(waiting) > 2 * processes:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for helper in helpers:
                    helper.process.kill()
                raise
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    """A process that encodes chunks. Not a fork, as this process has threads and maybe a CUDA context; nor one of
    multiprocessing's, which would run the user's main module again."""

    def __init__(self, spec: TrainSpec) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", f"from {__name__} import help_encode; help_encode()"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environment, "CUDA_VISIBLE_DEVICES": ""}
        )
        self._send(spec)

    def encode(self, rows: Sequence[AnyRow], begin: int) -> Encoded:
        """Raises what encoding raised, or OSError if the process died."""
        self._send((rows, begin))
        assert self.process.stdout is not None
        try:
            found = pickle.load(self.process.stdout)
        except EOFError:
            raise OSError("a process that made them ended") from None
        if isinstance(found, Exception):
            raise found
        return cast("Encoded", found)

    def end(self) -> None:
        with suppress(OSError):
            self.process.communicate()

    def _send(self, what: object) -> None:
        assert self.process.stdin is not None
        pickle.dump(what, self.process.stdin)
        self.process.stdin.flush()


def help_encode() -> None:
    """What a `_Helper`'s process does: chunks come on standard input, their samples go to standard output."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print must not get among the answers
        spec: TrainSpec = pickle.load(sys.stdin.buffer)
        prompter = Prompter.load(spec.model_dir, spec.prompt, spec.base_dir)
        while True:
            try:
                rows, begin = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            found: Encoded | Exception
            try:
                found = _encode_chunk(rows, begin, prompter, spec)
            except Exception as error:  # noqa: BLE001 - raised where the chunk came from
                found = error if isinstance(error, LionError) else RuntimeError(f"{type(error).__name__}: {error}")
            pickle.dump(found, answers)
            answers.flush()


def _encode_chunk(rows: Sequence[AnyRow], begin: int, prompter: Prompter, spec: TrainSpec) -> Encoded:
    numbers, samples = [], []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows, begin):
        found, reasons = encode([row], prompter, spec.max_length, spec.truncated, spec.loss_on)
        numbers += [number] * len(found)
        samples += found
        dropped.update(reasons)
    worse = [one.rejected for one in samples]
    columns = [
        numbers,
        [one.prompt for one in samples],
        [one.ids for one in samples],
        [[place for span in one.spans for place in span] for one in samples],
        [one and one.ids for one in worse],
        [one and one.prompt for one in worse],
    ]
    arrays = [pa.array(values, kind.type) for values, kind in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA), dict(dropped)
