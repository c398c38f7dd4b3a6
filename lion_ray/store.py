"""The run folder: what is committed, what can be resumed, who may write.

Invariants:
- A run is its folder (contract 2): everything a resumed run needs is under `root`, a local path or an object-store URL.
- A stage is committed by its manifest, written last and whole. Without a manifest nothing in the stage is trusted
  except its parts, and a part is whole or absent: it is written aside and renamed (an object store's put is atomic).
- One attempt at a time: on a local file system a lock that dies with its process, everywhere an attempt file whose
  token is checked before each manifest. An attempt that finds another's token there stops.
- Only parquet, JSON and safetensors; nothing here is unpickled.

This module knows nothing of Ray, of models, or of what the stages mean.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from lion_ray.durable import make_folder, sync_path
from lion_ray.errors import InfrastructureError, RunConflictError

Manifest = dict[str, Any]
"""What a stage's manifest says: rows, parts, and whatever else is to be known of it without reading them."""
HEARTBEAT_S = 10.0
"""How often a live attempt says so, in seconds."""
STALE_S = 45.0
"""An attempt that has not said so for this long may be replaced (object stores only: they have no locks)."""
TORN_READS = 3
"""How often an object that is not JSON is read again."""


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it of a local path or a URL such as ``s3://bucket/prefix``."""
    if "://" in root:
        try:
            return fs.FileSystem.from_uri(root)
        except (pa.ArrowInvalid, OSError) as error:
            raise InfrastructureError(f"{root}: no such storage: {error}") from None
    return fs.LocalFileSystem(), str(Path(root).expanduser().absolute())


def _refused(target: str | Path, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"{target}: the storage refused the write ({error.strerror or error}); mend that and run the same command: it "
        "goes on"
    )


class RunStore:
    """The folder of one run. Pickles, so that actors can commit parts themselves."""

    def __init__(self, root: str, token: str | None = None) -> None:
        self.root = root
        self.token = token
        self._open()

    def _open(self) -> None:
        self._fs, self._path = filesystem(self.root)
        self.is_local = isinstance(self._fs, fs.LocalFileSystem)
        self._lock: IO[str] | None = None
        self._made: set[Path] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # -- files ---------------------------------------------------------------------------------------------------

    def path(self, name: str = "") -> str:
        """The full path or key of `name`, as this file system writes it."""
        return f"{self._path}/{name}" if name else self._path

    def address(self, name: str) -> str:
        """`name` for whoever opens storage by himself: a local path, or a URL with the root's own options."""
        if self.is_local:
            return self.path(name)
        place, mark, options = self.root.partition("?")
        return f"{place.rstrip('/')}/{name}{mark}{options}"

    def journal(self, configured: str | None) -> str:
        """Where a run keeps its calls: where its configuration says, else in its own folder."""
        return configured or self.address("journal")

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(self.path(name)).type != fs.FileType.NotFound

    def read_bytes(self, name: str) -> bytes:
        with self._fs.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            InfrastructureError: the storage refused; nothing of the file is visible.
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
                with self._fs.open_output_stream(target) as stream:
                    stream.write(data)
        except OSError as error:
            raise _refused(target, error) from None

    def _make(self, folder: Path) -> None:
        """Make a local folder that survives a power cut; it is flushed once for each process. Raises OSError."""
        if folder not in self._made or not folder.exists():
            make_folder(folder)
            self._made.add(folder)

    def read_json(self, name: str) -> Any:
        """The JSON in `name`, or None where there is no such file."""
        # An object that is replaced while it is read may come in pieces of both; a local file is renamed into place.
        for left in range(0 if self.is_local else TORN_READS, -1, -1):
            try:
                return json.loads(self.read_bytes(name))
            except FileNotFoundError:
                return None
            except ValueError as error:
                if not left:
                    raise InfrastructureError(f"{self.path(name)}: not JSON: {error}") from None
        raise AssertionError("unreachable")

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or only some of its columns."""
        with self._fs.open_input_file(self.path(name)) as source:
            # Not `pq.read_table`, whose data sets take a millisecond more for each file.
            return pq.ParquetFile(source).read(columns=None if columns is None else list(columns), use_threads=False)

    def delete(self, name: str) -> None:
        """Remove a file that may be there."""
        if self.exists(name):
            self._fs.delete_file(self.path(name))

    def names(self, folder: str) -> list[str]:
        """The visible names in `folder`, sorted; none where it does not exist."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        found = (info.base_name for info in self._fs.get_file_info(selector))
        return sorted(name for name in found if not name.startswith("."))

    def local_folder(self, name: str, cache: Path) -> Path:
        """`name` as a folder on this machine: itself where the store is local, else a copy under `cache`."""
        if self.is_local:
            return Path(self.path(name))
        target = cache / uuid.uuid5(uuid.NAMESPACE_URL, f"{self.root}/{name}").hex
        if not target.exists():
            aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            aside.mkdir(parents=True)  # an object store has no folders, and names none to be made
            fs.copy_files(self.path(name), str(aside), source_filesystem=self._fs)
            aside.rename(target)
        return target

    def copy_out(self, name: str, target: Path) -> None:
        """Copy a file to a path on this machine.

        Raises:
            InfrastructureError: the storage or the disk refused.
        """
        try:
            fs.copy_files(self.path(name), str(target), source_filesystem=self._fs)
        except OSError as error:
            raise InfrastructureError(f"{self.path(name)}: cannot be copied to {target}: {error}") from None

    def adopt_folder(self, source: Path, name: str) -> None:
        """Move a finished local folder into the run; a manifest must follow to make it count."""
        if self.is_local:
            target = Path(self.path(name))
            if target == source.absolute():
                return
            self._make(target.parent)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(source, target)
        else:
            fs.copy_files(str(source), self.path(name), destination_filesystem=self._fs)

    def stage(self, name: str) -> Stage:
        return Stage(self, name)

    # -- attempts ------------------------------------------------------------------------------------------------

    def claim(self) -> int:
        """Become this run's one attempt; returns its number, from 1.

        Raises:
            RunConflictError: another attempt is alive.
        """
        if self.is_local:
            try:
                self._make(Path(self._path))
            except OSError as error:
                raise _refused(self._path, error) from None
            lock = Path(self.path(".lock")).open("w")  # noqa: SIM115 - held until the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise RunConflictError(self._conflict()) from None
            self._lock = lock
        last = self.read_json("attempt.json")
        if last and not self.is_local and time.time() - last["alive"] < STALE_S and not last["ended"]:
            raise RunConflictError(self._conflict())
        self.token = uuid.uuid4().hex
        number = (last["attempt"] if last else 0) + 1
        self._write_attempt(number, ended=False)
        return number

    def heartbeat(self, *, ended: bool = False) -> None:
        """Say that this attempt is alive, or that it has ended.

        Raises:
            RunConflictError: another attempt has taken over.
        """
        self._write_attempt(self.check_fence()["attempt"], ended=ended)
        if ended and self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_fence(self) -> dict[str, Any]:
        """The attempt file, which must be ours."""
        attempt = self.read_json("attempt.json")
        if self.token is None or attempt is None or attempt["token"] != self.token:
            raise RunConflictError(self._conflict())
        return attempt

    def _write_attempt(self, number: int, *, ended: bool) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "alive": time.time(), "ended": ended}
        self.write_json("attempt.json", {"attempt": number, "token": self.token, **who})

    def _conflict(self) -> str:
        other = self.read_json("attempt.json") or {"host": "another machine", "pid": "?"}
        return (
            f"{self.root}: another attempt at this run is under way (host {other['host']}, process {other['pid']}); "
            "wait for it, stop it, or give this run another run_name"
        )


class Stage:
    """One stage of a run: numbered parts, a few files, and the manifest that commits them."""

    def __init__(self, store: RunStore, name: str) -> None:
        self.store = store
        self.name = name

    def manifest(self) -> dict[str, Any] | None:
        """What was committed, or None."""
        return self.store.read_json(f"{self.name}/manifest.json")

    def commit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Commit the stage; returns the manifest as it stands. Raises RunConflictError where another attempt runs."""
        self.store.check_fence()
        self.store.write_json(f"{self.name}/manifest.json", manifest)
        return manifest

    def part_name(self, index: int) -> str:
        return f"{self.name}/part-{index:05d}.parquet"

    def write_part(self, index: int, table: pa.Table) -> None:
        self.store.write_table(self.part_name(index), table)

    def read_part(self, index: int) -> pa.Table:
        return self.store.read_table(self.part_name(index))

    def part_indexes(self) -> set[int]:
        names = self.store.names(self.name)
        return {int(n[5:10]) for n in names if n.startswith("part-") and n.endswith(".parquet")}

    def read(self, parts: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Parts 0 to `parts` - 1, one after another; of them only `columns`, where given."""
        names = map(self.part_name, range(parts))
        tables = [self.store.read_table(name, columns) for name in names]
        # A resumed run's parts may be of two versions, of which one knew a column more.
        return pa.concat_tables(tables, promote_options="default")
