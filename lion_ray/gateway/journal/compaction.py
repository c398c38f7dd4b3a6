"""Merging a journal's segments: fewer files, no damaged lines, no second copies, and the same money.

Invariants:
- Of intact lines only duplicates are dropped: a line that this version does not understand is copied unchanged, and a
  merged segment of another version is left alone.
- A key's first record stays the first: only neighbours by name are merged, at the place of the first. A live writer's
  later records come after them.
- A merged segment is written to a temporary file, flushed, given its sidecar and then its name; only then are the
  segments that it replaces deleted. It lists them, and readers skip the listed ones: a crash at any point loses nothing
  and counts nothing twice, and the next compaction continues from there.
- On a local folder one compaction runs at a time, and a segment with a live writer (which holds its lock) is skipped.
- On an object store an object never changes, so any may be merged. Two concurrent compactions may both merge an object:
  its records are duplicated until the next one, but its cost counts once, because sums are kept by source.

This module knows nothing of open journals: their readers detect changes by themselves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from lion_ray.core.errors import InfrastructureError
from lion_ray.core.storage import explain
from lion_ray.gateway.journal.folder import PART, STORAGE_ERRORS, Folder
from lion_ray.gateway.journal.record import Head, Header, decode_record, encode_header
from lion_ray.gateway.journal.segments import (
    SIDECAR,
    SUFFIX,
    Segment,
    decode_line,
    encode_sidecar,
    is_merged,
    lines,
    load,
    merged_name,
)
from lion_ray.gateway.journal.spending import union

LOCK = "compaction.lock"
MERGED_BYTES = 2**30
"""Smaller segments are merged up to this size."""
MOST_LOCKED = 500
"""The most local segments merged at once: each needs a file descriptor that holds its lock."""
STALE_S = 24 * 3600.0
"""A temporary file of this age was left by a process that died."""
_WRITE_BYTES = 2**20


@dataclass(slots=True)
class Compacted:
    """The result of a compaction."""

    segments_before: int = 0
    segments_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    damaged: int = 0
    """Damaged and torn lines that were dropped."""
    copies: int = 0
    """Duplicate records of a key that were dropped. Their cost stays in the sums."""
    live: int = 0
    """Segments left alone because their writer is alive."""
    foreign: int = 0
    """Lines of another version or another tool, kept unchanged."""
    opaque: int = 0
    """Segments left alone because another version merged them."""


def compact(folder: Folder, *, merged_bytes: int = MERGED_BYTES) -> Compacted:
    """Merge all segments without a live writer (blocking).

    Raises InfrastructureError if the storage refuses or another compaction is running. Nothing is lost then.
    """
    try:
        lock = folder.try_lock(LOCK, create=True) if folder.is_local else None
        if folder.is_local and lock is None:
            raise InfrastructureError(f"the journal {folder.path} is being compacted by another process")
        try:
            return _compact(folder, merged_bytes)
        finally:
            if lock is not None:
                os.close(lock)
    except STORAGE_ERRORS as cause:
        raise InfrastructureError(f"the journal {folder.path} cannot be compacted: {explain(cause)}") from cause


def merge_own(folder: Folder, names: Sequence[str]) -> None:
    """Merge a writer's own objects, which are neighbours. Raises the storage's errors."""
    listed = folder.list()
    # Missing objects have been merged by another process.
    present = [name for name in sorted(names) if name in listed]
    if len(present) > 1:
        _merge(folder, [load(folder, name, listed[name].size, sidecar=False) for name in present], Compacted())


def _compact(folder: Folder, merged_bytes: int) -> Compacted:
    listed = folder.list()
    sizes = {name: info.size for name, info in sorted(listed.items()) if name.endswith(SUFFIX)}
    report = Compacted(len(sizes), bytes_before=sum(sizes.values()))
    _finish_earlier(folder, listed, sizes)
    group: list[Segment] = []
    with contextlib.ExitStack() as locks:

        def merge() -> None:
            _merge_group(folder, group, report)
            group.clear()
            locks.close()

        for name, size in sizes.items():
            large = sum(segment.size for segment in group) + size > merged_bytes
            if group and (large or (folder.is_local and len(group) >= MOST_LOCKED)):
                merge()
            if folder.is_local:
                lock = folder.try_lock(name)
                if lock is None:
                    report.live += 1
                    merge()
                    continue
                locks.callback(os.close, lock)
                # Its writer may have added to it before it was locked.
                size = os.fstat(lock).st_size
            segment = load(folder, name, size, sidecar=name + SIDECAR in listed)
            report.foreign += segment.foreign
            if segment.opaque:
                report.opaque += 1
                merge()
                continue
            group.append(segment)
        merge()
    left = [info.size for name, info in folder.list().items() if name.endswith(SUFFIX)]
    report.segments_after, report.bytes_after = len(left), sum(left)
    return report


def _finish_earlier(folder: Folder, listed: dict[str, pafs.FileInfo], sizes: dict[str, int]) -> None:
    """Delete what interrupted compactions left: replaced segments, orphaned sidecars, temporary files."""
    for merged in [name for name in sizes if is_merged(name)]:
        if merged not in sizes:
            continue
        segment = load(folder, merged, sizes[merged], sidecar=merged + SIDECAR in listed)
        replaced = sorted(segment.supersedes & sizes.keys())
        if replaced and folder.is_local:
            # The process that renamed it died or failed, perhaps before the name was flushed.
            folder.flush(merged)
            folder.sync()
        for name in replaced:
            _delete(folder, name)
            del sizes[name]
    for name, info in listed.items():
        if name.endswith(SUFFIX + SIDECAR) and name.removesuffix(SIDECAR) not in sizes:
            folder.delete(name)
        elif name.endswith(PART):
            # Under the lock, a temporary merged segment belongs to no live process.
            meant = name.removeprefix(".").removesuffix(PART).rpartition(".")[0]
            ours = folder.is_local and is_merged(meant.removesuffix(SIDECAR))
            if ours or (info.mtime_ns is not None and time.time() - info.mtime_ns / 1e9 > STALE_S):
                folder.delete(name)


def _merge_group(folder: Folder, group: Sequence[Segment], report: Compacted) -> None:
    """Merge neighbours into one; a single segment is rewritten only if something is dropped from it."""
    if len(group) > 1:
        _merge(folder, group, report)
    for segment in group if len(group) == 1 else ():
        if segment.torn or None in (decode_line(line) for _, line in lines(folder, segment.name, 0, segment.size)):
            _merge(folder, group, report)
        elif folder.is_local or is_merged(segment.name):
            _complete_sidecar(folder, segment)


def _complete_sidecar(folder: Folder, segment: Segment) -> None:
    """Write a segment's sidecar if it is missing or wrong."""
    data = encode_sidecar(segment)
    try:
        known = folder.read(segment.name + SIDECAR, 0, len(data) + 1)
    except FileNotFoundError:
        known = b""
    if known != data:
        folder.write(segment.name + SIDECAR, data)


def _merge(folder: Folder, group: Sequence[Segment], report: Compacted) -> None:
    merged = Segment(merged_name(group[0].name), replaces=frozenset(segment.name for segment in group))
    # Merged segments last: they may know the cost of a line that has been damaged since.
    by_age = sorted(group, key=lambda segment: bool(segment.replaces))
    merged.sums = {segment.name: {} for segment in group if not segment.replaces}
    merged.sums |= union(segment.sums for segment in by_age)
    aside, merged.size = folder.write_aside(merged.name, _merged_lines(folder, group, merged, report))
    merged.scanned = merged.size
    try:
        folder.write(merged.name + SIDECAR, encode_sidecar(merged))
        folder.publish(aside, merged.name)
    except BaseException:
        with contextlib.suppress(*STORAGE_ERRORS):
            folder.delete(aside)
        raise
    for segment in group:
        _delete(folder, segment.name)


def _merged_lines(folder: Folder, group: Sequence[Segment], merged: Segment, report: Compacted) -> Iterator[bytes]:
    """The bytes of a merged segment; adds its records to `merged` meanwhile."""
    header = encode_header(merged.replaces, merged.sums)
    gathered, waiting, offset = [header], 0, len(header)
    seen: set[bytes] = set()
    for segment in group:
        for at, line in lines(folder, segment.name, 0, segment.size):
            head = decode_line(line)
            if isinstance(head, Header) and at == 0:
                continue  # the new header covers it
            if head is None:
                report.damaged += 1
            elif not isinstance(head, Head):
                merged.foreign += 1
                merged.newer = max(merged.newer, segment.newer)
                gathered += (line, b"\n")
                offset += len(line) + 1
                waiting += len(line) + 1
            elif head.digest in seen:
                report.copies += 1
            else:
                if decode_record(line) is not None:  # otherwise the next copy is used
                    seen.add(head.digest)
                merged.add(head, offset, len(line))
                gathered += (line, b"\n")
                offset += len(line) + 1
                waiting += len(line) + 1
            if waiting >= _WRITE_BYTES:
                yield b"".join(gathered)
                gathered, waiting = [], 0
        report.damaged += segment.torn
    yield b"".join(gathered)


def _delete(folder: Folder, name: str) -> None:
    folder.delete(name)
    folder.delete(name + SIDECAR)
