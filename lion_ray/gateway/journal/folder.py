"""A journal's folder: atomic file writes, on a local disk or an object store.

Invariants:
- `write` and `publish` make a complete file appear atomically. Until then it has a temporary name, ending in PART.
- On a local folder, the files of `publish` and of a durable `write` survive a power cut.
- A lock is an flock(2), released when its process ends. Without lock support, `try_lock` fails.

This module knows nothing of the files' content.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from lion_ray.core.addresses import check_storage, without_secrets
from lion_ray.core.durable import lock, make_folder, sync_path
from lion_ray.core.errors import InfrastructureError
from lion_ray.core.storage import STORAGE_ERRORS, patiently

PART = ".part"
_T = TypeVar("_T")
# Their puts are atomic; on other filesystems a file is visible while it is being written.
_WHOLE_PUTS = {"s3", "gcs", "abfs"}


class Folder:
    """A folder, given by a filesystem and a path in it. Its methods block, and raise the filesystem's errors."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        self.is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self._fs = filesystem

    @classmethod
    def at(cls, root: str, filesystem: pafs.FileSystem | None = None) -> Folder:
        """The folder of a local path or of a URL that pyarrow's filesystems support; it need not exist.

        With `filesystem`, `root` is a path in it. Raises InfrastructureError if there is no such storage.
        """
        try:
            if filesystem is None and "://" in root:
                filesystem, root = pafs.FileSystem.from_uri(check_storage(root))
            elif filesystem is None:
                filesystem, root = pafs.LocalFileSystem(), str(Path(root).expanduser().absolute())
        except (*STORAGE_ERRORS, ValueError) as cause:
            where = without_secrets(root)
            raise InfrastructureError(
                f"the journal {where} cannot be opened: {' '.join(str(cause).split())}"
            ) from cause
        return cls(filesystem, root)

    def below(self, name: str) -> Folder:
        """The subfolder of this name; it need not exist."""
        return Folder(self._fs, self.file(name))

    def exists(self) -> bool:
        return self._fs.get_file_info(self.path).type == pafs.FileType.Directory

    def make(self) -> None:
        """Make the folder and its parents durably."""
        if not self.is_local:
            self._patiently(lambda: self._fs.create_dir(self.path, recursive=True))
            return
        folder = Path(self.path)
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            # Detected before the first call is paid for.
            raise PermissionError("the folder is not writable")

    def file(self, name: str) -> str:
        """A file's path in the filesystem."""
        return f"{self.path.rstrip('/')}/{name}"

    def list(self) -> dict[str, pafs.FileInfo]:
        """The files by name; a folder that does not exist has none."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        listed = self._patiently(lambda: self._fs.get_file_info(selector))
        return {info.base_name: info for info in listed if info.is_file}

    def names(self) -> Iterable[str]:
        """The files' names; empty if the folder does not exist."""
        return self.sizes()

    def read_all(self, name: str) -> bytes:
        """A file's bytes."""
        if self.is_local:
            # Three times as fast as through the filesystem; there may be a hundred thousand files.
            with io.FileIO(self.file(name)) as file:
                return file.readall()
        return self.read(name, 0, 2**62)

    def sizes(self) -> dict[str, int]:
        """The files' sizes in bytes by name, following links; empty if the folder does not exist."""
        if not self.is_local:
            return {name: info.size for name, info in self.list().items()}
        found = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file():
                            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        return found

    def open(self, name: str) -> pa.NativeFile:
        return self._patiently(lambda: self._fs.open_input_file(self.file(name)))

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes; fewer at the end of the file."""

        def read() -> bytes:
            with self._fs.open_input_file(self.file(name)) as file:
                return bytes(file.read_at(max(0, min(length, file.size() - offset)), offset))

        return self._patiently(read)

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file atomically, replacing one of that name."""
        if self._fs.type_name in _WHOLE_PUTS:
            self._patiently(lambda: self._put(name, data))
        else:
            aside, _ = self.write_aside(name, (data,), durable=durable)
            self.publish(aside, name, durable=durable)

    def _put(self, name: str, data: bytes) -> None:
        with self._fs.open_output_stream(self.file(name)) as stream:
            stream.write(data)

    def _patiently(self, work: Callable[[], _T]) -> _T:
        return patiently(work, local=self.is_local)

    def write_aside(self, name: str, parts: Iterable[bytes], *, durable: bool = True) -> tuple[str, int]:
        """Write a temporary file that will become `name`; returns its temporary name and its size in bytes."""
        aside = f".{name}.{secrets.token_hex(4)}{PART}"
        size = 0
        try:
            with self._fs.open_output_stream(self.file(aside)) as stream:
                for part in parts:
                    stream.write(part)
                    size += len(part)
            if durable and self.is_local:
                sync_path(Path(self.file(aside)))
        except BaseException:
            with contextlib.suppress(*STORAGE_ERRORS):
                self.delete(aside)
            raise
        return aside, size

    def publish(self, aside: str, name: str, *, durable: bool = True) -> None:
        """Rename a temporary file to its final name."""
        self._fs.move(self.file(aside), self.file(name))
        if durable and self.is_local:
            self.sync()

    def sync(self) -> None:
        """Flush the entries of a local folder."""
        sync_path(Path(self.path))

    def flush(self, name: str) -> None:
        """Flush a local file's content to the disk."""
        if self.is_local:
            sync_path(Path(self.file(name)))

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.delete_file(self.file(name)))

    def try_lock(self, name: str, *, create: bool = False) -> int | None:
        """Lock a local file; returns a descriptor that holds the lock until closed, or None if it is locked already."""
        descriptor = os.open(self.file(name), os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        if lock(descriptor):
            return descriptor
        os.close(descriptor)
        return None
