"""What is known of batches under way, on disk: a process that was killed finds there what it had bought.

Invariants:
- A record is durable before its batch can exist at the endpoint, and stays until nothing of the batch is needed.
- A record is one file that is replaced whole: a reader sees the old one or the new one, never a torn one.
- A record that cannot be read stops the queue, as buying what it named would be buying twice.

A batch is named by a nonce that the endpoint keeps in the batch's metadata, as its own id is only known once it was
created. This module knows the folder and nothing of the API.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import pyarrow as pa
from pyarrow import fs as pafs

from lion_ray.durable import sync_path
from lion_ray.errors import InfrastructureError

FOLDER = "batches"
SUFFIX = ".json"
_STORAGE_ERRORS = (OSError, pa.ArrowException)


@dataclass
class BatchRecord:
    """One batch: what is in it, and how far its purchase came."""

    nonce: str
    address: str
    """The API that has it. Not the endpoint's name: that may differ between runs that share a journal."""
    endpoint: str
    """The endpoint's name in the config, for people."""
    keys: list[str]
    """In the order of the file's lines."""
    made_at: float
    tried_at: float
    """When the API was last about to be asked to create it, in seconds since 1970."""
    input_file_id: str | None = None
    """None: nothing was uploaded, so no batch can exist."""
    batch_id: str | None = None
    """None: it may have been created, but nobody read the answer."""


class BatchRecords:
    """The open records in a journal's folder. Blocking: call it from threads."""

    def __init__(self, root: str) -> None:
        """`root`: the journal's folder, or a URL that pyarrow's filesystems understand. Reads and makes nothing."""
        self._root = root
        self._fs: pafs.FileSystem | None = None
        self._folder = ""

    def load(self, address: str) -> list[BatchRecord]:
        """The open records of one API, oldest first. Makes the folder where it is missing.

        Raises InfrastructureError where the folder cannot be used or a record cannot be read.
        """
        try:
            fs = self._open()
            infos = fs.get_file_info(pafs.FileSelector(self._folder))
            paths = [info.path for info in infos if info.is_file and info.path.endswith(SUFFIX)]
            records = [record for path in paths if (record := self._read(fs, path)) is not None]
        except (*_STORAGE_ERRORS, ValueError) as cause:
            raise InfrastructureError(f"the batches in the journal {self._root} cannot be read: {cause}") from cause
        return sorted((r for r in records if r.address == address), key=lambda record: record.made_at)

    def reread(self, nonce: str) -> BatchRecord | None:
        """The record as it is now, as another process may have gone on with it; None where it is gone.

        Raises InfrastructureError where it cannot be read.
        """
        try:
            return self._read(self._open(), self._path(nonce))
        except _STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the batch record {self._path(nonce)} cannot be read: {cause}") from cause

    def write(self, record: BatchRecord) -> None:
        """Make a record, or its new state, durable. Raises InfrastructureError where the storage refuses."""
        path = self._path(record.nonce)
        try:
            fs = self._open()
            local = isinstance(fs, pafs.LocalFileSystem)
            # An object store shows an object only once it is whole; a folder needs a rename for that.
            written = path + ".part" if local else path
            with fs.open_output_stream(written) as stream:
                stream.write(orjson.dumps(asdict(record)))
            if local:
                sync_path(Path(written))
                fs.move(written, path)
                sync_path(Path(self._folder))
        except _STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the batch record {path} cannot be written: {cause}") from cause

    def remove(self, nonce: str) -> None:
        """Close a record; one that another process closed is no error. Raises InfrastructureError."""
        path = self._path(nonce)
        try:
            fs = self._open()
            if fs.get_file_info(path).type != pafs.FileType.NotFound:
                fs.delete_file(path)
        except FileNotFoundError:
            return
        except _STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the batch record {path} cannot be removed: {cause}") from cause

    def _open(self) -> pafs.FileSystem:
        if self._fs is not None:
            return self._fs
        if "://" in self._root:
            fs, root = pafs.FileSystem.from_uri(self._root)
        else:
            fs, root = pafs.LocalFileSystem(), str(Path(self._root).expanduser().absolute())
        self._folder = f"{root.rstrip('/')}/{FOLDER}"
        if isinstance(fs, pafs.LocalFileSystem):
            _make_durable(Path(self._folder))
        else:
            fs.create_dir(self._folder, recursive=True)
        self._fs = fs
        return fs

    def _path(self, nonce: str) -> str:
        return f"{self._folder}/{nonce}{SUFFIX}"

    @staticmethod
    def _read(fs: pafs.FileSystem, path: str) -> BatchRecord | None:
        try:
            with fs.open_input_file(path) as file:
                data = file.read()
        except FileNotFoundError:
            return None
        try:
            return BatchRecord(**orjson.loads(data))
        except (ValueError, TypeError) as cause:
            raise InfrastructureError(
                f"the batch record {path} is damaged ({cause}): what it bought cannot be told. Move it away to go on;"
                " the calls in it are then bought again"
            ) from cause


def _make_durable(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_path(path.parent)
