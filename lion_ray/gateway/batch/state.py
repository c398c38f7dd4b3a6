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
from typing import Any

import orjson

from lion_ray.core.addresses import below
from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.storage import told
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder

FOLDER = "batches"
SUFFIX = ".json"
VERSION = 1
"""Raise it where an older lion-ray would misread a record."""


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
    version: int = VERSION
    """Of this format."""


class BatchRecords:
    """The open records in a journal's folder. Blocking: call it from threads."""

    def __init__(self, root: str) -> None:
        """`root`: the journal's folder, or a URL that pyarrow's filesystems understand. Reads and makes nothing.

        Raises InfrastructureError where there is no such storage.
        """
        self._root = root
        self._folder = Folder.at(below(root, FOLDER))
        self._made = False

    def any(self) -> bool:
        """Whether there is a record of any API. Raises InfrastructureError where the folder cannot be listed."""
        try:
            return any(name.endswith(SUFFIX) for name in self._folder.list())
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batches in the journal {self._root} cannot be read: {told(cause)}"
            ) from cause

    def load(self, address: str) -> list[BatchRecord]:
        """The open records of one API, oldest first. Makes the folder where it is missing.

        Raises InfrastructureError where the folder cannot be used or a record cannot be read.
        """
        try:
            self._make()
            names = [name for name in self._folder.list() if name.endswith(SUFFIX)]
            records = [record for name in names if (record := self._read(name)) is not None]
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batches in the journal {self._root} cannot be read: {told(cause)}"
            ) from cause
        return sorted((r for r in records if r.address == address), key=lambda record: record.made_at)

    def reread(self, nonce: str) -> BatchRecord | None:
        """The record as it is now, as another process may have gone on with it; None where it is gone.

        Raises InfrastructureError where it cannot be read.
        """
        try:
            return self._read(nonce + SUFFIX)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(f"the batch record {self._path(nonce)} cannot be read: {told(cause)}") from cause

    def write(self, record: BatchRecord) -> None:
        """Make a record, or its new state, durable. Raises InfrastructureError where the storage refuses."""
        try:
            self._make()
            self._folder.write(record.nonce + SUFFIX, orjson.dumps(asdict(record)), durable=True)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batch record {self._path(record.nonce)} cannot be written: {told(cause)}"
            ) from cause

    def remove(self, nonce: str) -> None:
        """Close a record; one that another process closed is no error. Raises InfrastructureError."""
        try:
            self._folder.delete(nonce + SUFFIX)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batch record {self._path(nonce)} cannot be removed: {told(cause)}"
            ) from cause

    def _make(self) -> None:
        if not self._made:
            self._folder.make()
            self._made = True

    def _path(self, nonce: str) -> str:
        return self._folder.file(nonce + SUFFIX)

    def _read(self, name: str) -> BatchRecord | None:
        try:
            data = self._folder.read_all(name)
        except FileNotFoundError:
            return None
        try:
            found: Any = orjson.loads(data)
            if (version := found.get("version", 1)) > VERSION:
                raise ConfigError(
                    f"the batch record {self._folder.file(name)}: a newer lion-ray wrote it (version {version}, this "
                    f"knows {VERSION}); use that one, or another journal"
                )
            return _checked(BatchRecord(**found), name)
        except (ValueError, TypeError, AttributeError) as cause:
            raise InfrastructureError(
                f"the batch record {self._folder.file(name)} is damaged ({cause}): what it bought cannot be told. Move"
                " it away to go on; the calls in it are then bought again"
            ) from cause


def _checked(record: BatchRecord, name: str) -> BatchRecord:
    """The record itself. Raises TypeError or ValueError where a field is something else than it ever was."""
    if not isinstance(record.keys, list):
        raise TypeError("its keys are no list")
    texts = (record.nonce, record.address, record.endpoint, *record.keys)
    ids = (record.input_file_id, record.batch_id)
    if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, str | None) for one in ids):
        raise TypeError("it has something else than text where text was written")
    if not all(type(one) in (int, float) for one in (record.made_at, record.tried_at)):
        raise TypeError("its times are no numbers")
    if record.nonce + SUFFIX != name:
        # Its file is found by the nonce when it is written anew or removed.
        raise ValueError("it is another batch's")
    return record
