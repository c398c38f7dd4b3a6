"""Records of open batches on disk, so that a restarted process finds the batches that it bought.

Invariants:
- A record is durable before its batch can exist at the endpoint, and stays until the batch is no longer needed.
- A record is one file that is replaced atomically: a reader never sees a torn one.
- A record that cannot be read stops the queue, because its calls would be bought twice.

A batch is identified by a nonce in its metadata at the endpoint, because its own id is known only after its creation.
This module knows the folder and nothing of the API.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from lion_ray.core.addresses import below
from lion_ray.core.errors import ConfigError, InfrastructureError, one_line
from lion_ray.core.storage import explain
from lion_ray.gateway.journal.folder import STORAGE_ERRORS, Folder

FOLDER = "batches"
SUFFIX = ".json"
VERSION = 1
"""Increase it if an older lion-ray would misread a record."""


@dataclass
class BatchRecord:
    """One batch: its calls, and the state of its purchase."""

    nonce: str
    address: str
    """The API's address. Not the endpoint's name, which may differ between runs that share a journal."""
    endpoint: str
    """The endpoint's name in the configuration, for people."""
    keys: list[str]
    """In the order of the file's lines."""
    made_at: float
    tried_at: float
    """When its file's upload or its creation was last requested, in seconds since 1970; set before the request."""
    input_file_id: str | None = None
    """None: the file is not uploaded yet, so no batch can exist."""
    batch_id: str | None = None
    """None: it may have been created, but the answer was not received."""
    version: int = VERSION
    """The version of this format."""


class BatchRecords:
    """The open records in a journal's folder. Blocking: call it from threads."""

    def __init__(self, root: str) -> None:
        """`root`: the journal's folder, or a URL that pyarrow's filesystems support. Reads and creates nothing.

        Raises InfrastructureError if there is no such storage.
        """
        self._root = root
        self._folder = Folder.at(below(root, FOLDER))
        self._made = False

    def any(self) -> bool:
        """Whether there is a record of any API. Raises InfrastructureError if the folder cannot be listed."""
        try:
            return any(name.endswith(SUFFIX) for name in self._folder.list())
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batches in the journal {self._root} cannot be read: {explain(cause)}"
            ) from cause

    def load(self, address: str) -> list[BatchRecord]:
        """The open records of one API, oldest first. Creates a missing folder.

        Raises InfrastructureError if the folder cannot be used or a record cannot be read, ConfigError if a newer
        version wrote one.
        """
        try:
            self._make()
            names = [name for name in self._folder.list() if name.endswith(SUFFIX)]
            records = [record for name in names if (record := self._read(name)) is not None]
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batches in the journal {self._root} cannot be read: {explain(cause)}"
            ) from cause
        return sorted((r for r in records if r.address == address), key=lambda record: record.made_at)

    def reread(self, nonce: str) -> BatchRecord | None:
        """The current record, which another process may have changed. Returns None if it was removed.

        Raises InfrastructureError if it cannot be read, ConfigError if a newer version wrote it.
        """
        try:
            return self._read(nonce + SUFFIX)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batch record {self._path(nonce)} cannot be read: {explain(cause)}"
            ) from cause

    def write(self, record: BatchRecord) -> None:
        """Write a record durably. Raises InfrastructureError if the storage refuses."""
        try:
            self._make()
            self._folder.write(record.nonce + SUFFIX, orjson.dumps(asdict(record)), durable=True)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batch record {self._path(record.nonce)} cannot be written: {explain(cause)}"
            ) from cause

    def remove(self, nonce: str) -> None:
        """Remove a record, if it still exists. Raises InfrastructureError."""
        try:
            self._folder.delete(nonce + SUFFIX)
        except STORAGE_ERRORS as cause:
            raise InfrastructureError(
                f"the batch record {self._path(nonce)} cannot be removed: {explain(cause)}"
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
                    f"the batch record {self._folder.file(name)}: a newer lion-ray wrote it (version {version}; this "
                    f"version knows {VERSION}); use that version, or another journal"
                )
            return _checked(BatchRecord(**found), name)
        except (ValueError, TypeError, AttributeError) as cause:
            raise InfrastructureError(
                f"the batch record {self._folder.file(name)} is damaged ({one_line(cause)}): its purchases are "
                "unknown. Move it away to continue; the calls in it are then bought again"
            ) from cause


def _checked(record: BatchRecord, name: str) -> BatchRecord:
    """Returns the record. Raises TypeError or ValueError if a field is invalid."""
    if not isinstance(record.keys, list):
        raise TypeError("its keys are not a list")
    texts = (record.nonce, record.address, record.endpoint, *record.keys)
    ids = (record.input_file_id, record.batch_id)
    if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, str | None) for one in ids):
        raise TypeError("one of its text fields is not text")
    if not all(type(one) in (int, float) for one in (record.made_at, record.tried_at)):
        raise TypeError("its times are not numbers")
    if record.nonce + SUFFIX != name:
        # Its file is later rewritten or removed by the nonce.
        raise ValueError("it belongs to another batch")
    return record
