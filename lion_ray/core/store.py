"""The run folder: what is committed, what can be resumed, and which attempt may write.

Invariants:
- A run is its folder (contract of that name): everything a resumed run needs is under `root`, a local path or an
  object-store URL.
- A stage is committed by its manifest, written last and atomically. Without a manifest only the stage's parts are
  trusted. A part is complete or absent: it is written to a temporary file and renamed (an object store's put is
  atomic).
- One attempt writes at a time (`attempts`); its token is checked before each manifest.
- Only Parquet, JSON and safetensors; nothing here is unpickled.
- Parts, manifests and the run's own records are sealed (`sealed`), and a manifest holds the SHA-256 of each file of its
  stage: a damaged file raises an error and is never misread.

This module knows nothing of Ray, of models, or of what the stages mean.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from lion_ray.core import layout
from lion_ray.core.addresses import below
from lion_ray.core.attempts import Fence, read_attempt
from lion_ray.core.copies import copied
from lion_ray.core.durable import make_folder, sync_path
from lion_ray.core.errors import ConfigError, DamagedError, InfrastructureError, one_line
from lion_ray.core.sealed import Record, from_json, from_parquet, seal, sha256, to_parquet
from lion_ray.core.shapes import CONFIG, RUN, check
from lion_ray.core.stage_folder import SUMS, Manifest, Stage
from lion_ray.core.storage import STORAGE_ERRORS, filesystem, patiently, refused

FORMAT = 1
"""Version of a run's folder; increase it if an older lion-ray would misread the folder. Older formats stay readable."""
_T = TypeVar("_T")
TORN_READS = 3
"""How often a read of an object that is not valid JSON is retried."""


__all__ = ["FORMAT", "Manifest", "RunStore", "Stage", "filesystem"]


class RunStore:
    """The folder of one run. Pickles, so that actors can commit parts themselves."""

    def __init__(self, root: str, token: str | None = None) -> None:
        self.root = root
        self.token = token
        self._open()

    def _open(self) -> None:
        self._fs, self._path = filesystem(self.root)
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)
        self._made: set[Path] = set()
        self._fence = Fence(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # -- files ---------------------------------------------------------------------------------------------------

    def path(self, name: str = "") -> str:
        """The full path or key of `name`, as this file system writes it."""
        return f"{self._path}/{name}" if name else self._path

    def address(self, name: str) -> str:
        """`name` as an address that other code can open: a local path, or a URL with the root's options."""
        if self.is_local:
            return self.path(name)
        return below(self.root, name)

    def journal(self, configured: str | None) -> str:
        """The address of a run's journal: the configured one, or a folder in the run."""
        return configured or self.address(layout.JOURNAL)

    def exists(self, name: str) -> bool:
        with self._reading(name):
            return bool(self._patiently(lambda: self._fs.get_file_info(self.path(name))).type != fs.FileType.NotFound)

    def read_bytes(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
            InfrastructureError: the storage refused.
        """
        return self._buffer(name).to_pybytes()

    def _buffer(self, name: str) -> pa.Buffer:
        def read() -> pa.Buffer:
            with self._fs.open_input_file(self.path(name)) as stream:
                return stream.read_buffer()

        with self._reading(name):
            return self._patiently(read)

    def _patiently(self, work: Callable[[], _T]) -> _T:
        return patiently(work, local=self.is_local)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except STORAGE_ERRORS as error:
            raise refused(self.path(name), error, "to read it") from None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically.

        Raises:
            InfrastructureError: the storage refused; no part of the file is visible.
        """
        target = self.path(name)
        try:
            if self.is_local:
                path = Path(target)
                self._make(path.parent)
                aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
                try:
                    with aside.open("wb") as stream:
                        stream.write(data)
                        stream.flush()
                        os.fsync(stream.fileno())
                    aside.replace(path)
                finally:
                    aside.unlink(missing_ok=True)
                sync_path(path.parent)
            else:
                self._patiently(lambda: self._put(target, data))
        except STORAGE_ERRORS as error:
            raise refused(target, error) from None

    def _put(self, target: str, data: bytes) -> None:
        with self._fs.open_output_stream(target) as stream:
            stream.write(data)

    def make(self, folder: Path) -> None:
        """Make a local folder durably. Raises InfrastructureError if the disk refuses."""
        try:
            self._make(folder)
        except OSError as error:
            raise refused(folder, error) from None

    def _make(self, folder: Path) -> None:
        """Make a local folder durably; it is flushed once per process. Raises OSError."""
        if folder not in self._made or not folder.exists():
            make_folder(folder)
            self._made.add(folder)

    def flush_names(self, folder: str) -> None:
        """Make the names in a local folder durable. Raises InfrastructureError if the disk refuses."""
        path = Path(self.path(folder))
        if self.is_local and path.is_dir():
            try:
                sync_path(path)
            except OSError as error:
                raise refused(path, error) from None

    def read_json(self, name: str) -> Any:
        """The JSON in `name`, its objects as Records. Returns None if there is no such file.

        Raises:
            DamagedError: it is not JSON, or differs from what was written.
        """
        return next(iter(self._json(name)), None)

    def read_record(self, name: str) -> Record | None:
        """Like `read_json`, for a file that holds an object."""
        for value in self._json(name):
            if not isinstance(value, Record):
                raise DamagedError(self.path(name), "it does not hold a JSON object")
            return value
        return None

    def _json(self, name: str) -> list[Any]:
        """The file's value in a list; an empty list if there is no file."""
        # Reading an object while it is replaced may return pieces of both versions; local files are replaced by rename.
        for left in range(0 if self.is_local else TORN_READS, -1, -1):
            try:
                return [from_json(self.read_bytes(name), self.path(name))]
            except FileNotFoundError:
                return []
            except DamagedError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def description(self) -> Record | None:
        """The content of run.json. Returns None if there is no run yet.

        Raises:
            DamagedError: the file differs from what was written.
            ConfigError: a newer lion-ray wrote this folder.
        """
        found = self.read_record(layout.RUN)
        if found is None:
            return None
        check(found, RUN)
        if (number := found.get("format", 1)) > FORMAT:
            raise ConfigError(
                f"{found.path}: a newer lion-ray wrote it (format {number}; this version knows {FORMAT}); use that "
                "version"
            )
        check(found["config"], CONFIG)
        return found

    def described(self) -> Record:
        """Like `description`, but raises ConfigError if there is no run."""
        found = self.description()
        if found is None:
            raise ConfigError(f"{self.root}: no run there (looked for {layout.RUN})")
        return found

    def write_record(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON object with its seal."""
        self.write_json(name, seal(value))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_bytes(name, to_parquet(table))

    def read_table(self, name: str, columns: Sequence[str] | None = None, *, optional: bool = False) -> pa.Table:
        """A table, or only `columns`; with `optional`, those of them that it has.

        Raises:
            DamagedError: the file differs from what was written, or is missing.
        """
        try:
            # The whole file, because the checksum covers it; a part is no larger than a shard.
            data = self._buffer(name)
        except FileNotFoundError:
            raise DamagedError(self.path(name), "it is missing") from None
        return from_parquet(data, self.path(name), columns, optional=optional)

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        with self._reading(name), suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.delete_file(self.path(name)))

    def delete_folder(self, name: str) -> None:
        """Remove a folder and its content if it exists."""
        with self._reading(name), suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.delete_dir(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """The visible names in `folder`, sorted; empty if it does not exist."""
        return sorted(name for name, _ in self.entries(folder) if not name.startswith("."))

    def entries(self, folder: str) -> list[tuple[str, bool]]:
        """Every name in `folder`, and whether it is a folder; empty if `folder` does not exist."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        with self._reading(folder):
            found = self._patiently(lambda: self._fs.get_file_info(selector))
            return sorted((i.base_name, i.type == fs.FileType.Directory) for i in found)

    def sum_of(self, name: str) -> dict[str, Any]:
        """A file's size and SHA-256, as manifests hold them. Raises FileNotFoundError, InfrastructureError."""

        def read() -> tuple[int, str]:
            with self._fs.open_input_stream(self.path(name)) as stream:
                return sha256(stream)

        with self._reading(name):
            size, digest = self._patiently(read)
        return {"bytes": size, "sha256": digest}

    def local_folder(self, name: str, cache: Path, made: Path | None = None) -> Path:
        """`name` as a folder on this machine: the folder itself if the store is local, else a copy under `cache`.

        `made`: a folder with the same content, which is moved there instead of downloading it.
        """
        if self.is_local:
            return Path(self.path(name))
        selector = fs.FileSelector(self.path(name), recursive=True)
        with self._reading(name):
            found = self._patiently(lambda: self._fs.get_file_info(selector))
            files = [one for one in found if one.type == fs.FileType.File]
            sizes = {one.path.removeprefix(f"{self.path(name)}/"): int(one.size) for one in files}
            # A folder without recorded hashes is identified by its files' modification times.
            content: dict[str, object] = {"sizes": sizes}
            if (sums := self.read_record(f"{name}{SUMS}")) is not None:
                content["sums"] = dict(sums)
            else:
                content["of"] = [self.root, name, {one.path: one.mtime_ns for one in files}]

            def fetch(folder: Path) -> None:
                if made is not None:
                    for path in made.iterdir():
                        shutil.move(path, folder / path.name)
                    return
                self._patiently(lambda: fs.copy_files(self.path(name), str(folder), source_filesystem=self._fs))

            return copied(content, sizes, cache, fetch)

    def copy_out(self, name: str, target: Path) -> None:
        """Copy a file to a path on this machine.

        Raises:
            InfrastructureError: the storage or the disk refused.
        """
        try:
            self._patiently(lambda: fs.copy_files(self.path(name), str(target), source_filesystem=self._fs))
        except OSError as error:
            raise InfrastructureError(f"{self.path(name)}: cannot be copied to {target}: {one_line(error)}") from None

    def adopt_folder(self, source: Path, name: str) -> None:
        """Move a finished local folder into the run; it counts once a manifest with its files' hashes is committed."""
        sums = {}
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            with path.open("rb") as stream:
                size, digest = sha256(stream)
            sums[f"{Path(name).name}/{path.relative_to(source).as_posix()}"] = {"bytes": size, "sha256": digest}
        if self.is_local:
            target = Path(self.path(name))
            if target != source.absolute():
                self.make(target.parent)
                if target.exists():
                    shutil.rmtree(target)
                shutil.move(source, target)
        else:
            try:
                self._patiently(lambda: fs.copy_files(str(source), self.path(name), destination_filesystem=self._fs))
            except STORAGE_ERRORS as error:
                raise refused(self.path(name), error) from None
        self.write_record(f"{name}{SUMS}", sums)

    def stage(self, name: str) -> Stage:
        return Stage(self, name)

    # -- attempts ------------------------------------------------------------------------------------------------

    def claim(self, say: Callable[[str], None] = lambda _: None) -> int:
        """Become this run's one attempt; returns its number, from 1. See `attempts.Fence.claim`."""
        return self._fence.claim(say)

    def heartbeat(self, *, ended: bool = False) -> None:
        """Write a heartbeat, or record that this attempt has ended. Raises RunConflictError."""
        self._fence.heartbeat(ended=ended)

    def check_fence(self) -> Record:
        """Returns the attempt file. Raises RunConflictError if another attempt owns it."""
        return self._fence.check()

    def attempt(self) -> Record | None:
        """The last attempt's file. Returns None before the first attempt."""
        return read_attempt(self)
