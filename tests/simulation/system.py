"""The simulated operating system: system calls that can fail or be a process's last, time, and random numbers.

While a world is `installed`, the standard library's functions below act for the process that is being stepped, and as
ever for anybody else. So the code under test runs unchanged, down to its own system calls:
- `os.open`, `os.write`, `os.fsync`, `os.replace`, `os.unlink` and the journal's moves and deletions are moments at
  which a process can be ended or the power go; writes can be short or fail, flushes can fail.
- `time.time`, `time.time_ns`, `secrets.token_hex`, `uuid.uuid4` come from the seed; a folder's names come in order, and
  a process's number and its host's name are always the same: how long they are decides what a torn file holds.
- A temporary file is in memory; pyarrow's local filesystem is one whose calls are such moments too.
- A thread pool's job runs at once.
"""

from __future__ import annotations

import concurrent.futures
import errno
import io
import os
import secrets
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from pyarrow import fs as pafs

from tests.simulation.disk import REAL_CLOSE, REAL_OPEN


class Ended(BaseException):
    """Raised in a process that was killed: from here on, nothing it does has an effect."""


class Machine(Protocol):
    """The interface of the world that the calls below need."""

    rng: Any
    now: float

    def owns(self, path: Any) -> bool:
        """Whether this path is on the simulated disk."""

    def system_call(self, name: str) -> None:
        """A process is about to make a system call, or has made it. Raises Ended if the process is killed here."""

    def fails(self, name: str) -> bool:
        """Whether this call fails."""

    def opened(self, file: Any) -> None:
        """A process opened a descriptor (int) or a file object, which is closed when the process ends."""

    def closes(self, descriptor: int) -> bool:
        """A process closes a descriptor. Returns False if the process was killed, which closed it already."""

    def flush(self, descriptor: int) -> None:
        """Make the content of a descriptor's file durable."""


class NobodysMachine:
    """The machine of ended processes while they are cleaned up: nothing they do has an effect."""

    rng = None
    now = 0.0

    def owns(self, path: Any) -> bool:
        return True

    def system_call(self, name: str) -> None:
        raise Ended

    def fails(self, name: str) -> bool:
        raise Ended

    def opened(self, file: Any) -> None:
        raise Ended

    def closes(self, descriptor: int) -> bool:
        return False

    def flush(self, descriptor: int) -> None:
        raise Ended


class _Acting(threading.local):
    """The machine whose process runs in this thread. Other threads, such as another test's, use the real calls."""

    machine: Machine | None = None


_acting = _Acting()


def act_for(world: Machine | None) -> None:
    """Simulate calls in this thread for this world's process; None: use the real calls."""
    _acting.machine = world


_elsewhere: set[int] = set()
"""Descriptors of folders above the disk, whose number is not part of the simulation."""


class SimFileSystem(pafs.LocalFileSystem):
    """The local file system, at whose calls a process can be killed."""

    def get_file_info(self, found: Any) -> Any:
        infos = super().get_file_info(found)
        return sorted(infos, key=lambda one: one.path) if isinstance(found, pafs.FileSelector) else infos

    def move(self, src: str, dest: str) -> None:
        _moment("move")
        super().move(src, dest)
        _moment("moved")

    def delete_file(self, path: str) -> None:
        _moment("delete")
        super().delete_file(path)
        _moment("deleted")

    def open_output_stream(self, path: str, *args: Any, **options: Any) -> Any:
        _moment("create")
        if (machine := _acting.machine) is not None and machine.fails("create"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().open_output_stream(path, *args, **options)


class _Scratch(io.BytesIO):
    """An unnamed temporary file: nothing of it outlives its process."""

    def write(self, data: Any) -> int:
        if (machine := _acting.machine) is not None and machine.fails("write to a temporary file"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def _moment(name: str) -> None:
    if (machine := _acting.machine) is not None:
        machine.system_call(name)


@contextmanager
def installed() -> Iterator[None]:
    """Replace the real calls by the simulated ones."""
    real: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, make: Callable[[Any], Any]) -> None:
        before = getattr(where, name)
        real.append((where, name, before))
        setattr(where, name, make(before))

    put(os, "open", _opening)
    put(os, "close", _closing)
    put(os, "write", _writing)
    put(os, "fsync", _flushing)
    put(os, "replace", _around("replace"))
    put(os, "rename", _around("rename"))
    put(os, "unlink", _around("unlink"))
    put(io, "open", _noting)
    put(os, "scandir", _listing)
    put(os, "getpid", lambda real: lambda: real() if _acting.machine is None else PID)
    put(socket, "gethostname", lambda real: lambda: real() if _acting.machine is None else HOST)
    put(time, "time", lambda real: lambda: real() if (m := _acting.machine) is None else EPOCH_S + m.now)
    put(
        time, "time_ns", lambda real: lambda: real() if (m := _acting.machine) is None else int((EPOCH_S + m.now) * 1e9)
    )
    put(tempfile, "TemporaryFile", lambda real: lambda: real() if _acting.machine is None else _Scratch())
    put(pafs, "LocalFileSystem", lambda real: SimFileSystem)
    put(secrets, "token_hex", _token)
    put(uuid, "uuid4", _uuid)
    put(concurrent.futures.ThreadPoolExecutor, "submit", _submitting)
    try:
        yield
    finally:
        for where, name, before in reversed(real):
            setattr(where, name, before)


EPOCH_S = 4_000_000_000.0
"""Later than any real time, so that files' real times are always in the past."""
PID, HOST = 4711, "simulated"


def _opening(real: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if (machine := _acting.machine) is None:
            return real(path, flags, *args, **options)
        if not machine.owns(path):
            descriptor = real(path, flags, *args, **options)
            _elsewhere.add(descriptor)
            return descriptor
        machine.system_call("open")
        descriptor = real(path, flags, *args, **options)
        machine.opened(descriptor)
        return descriptor

    return call


def _closing(real: Callable[[int], None]) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        _elsewhere.discard(descriptor)
        if (machine := _acting.machine) is None or machine.closes(descriptor):
            real(descriptor)

    return call


class _Names:
    """The result of `os.scandir` sorted by name, because the real order depends on the file system."""

    def __init__(self, found: Iterable[os.DirEntry[Any]]) -> None:
        self._found = iter(sorted(found, key=lambda one: one.name))

    def __enter__(self) -> _Names:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[os.DirEntry[Any]]:
        return self._found

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._found)

    def close(self) -> None:
        """Everything is read already."""


def _listing(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any = ".") -> Any:
        if _acting.machine is None:
            return real(path)
        with real(path) as found:
            return _Names(found)

    return call


def _writing(real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    def call(descriptor: int, data: Any) -> int:
        if (machine := _acting.machine) is None:
            return real(descriptor, data)
        machine.system_call("write")
        if machine.fails("write"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(data) > 1 and machine.rng.random() < 0.1:
            data = data[: machine.rng.randint(1, len(data))]
        written = real(descriptor, data)
        machine.system_call("wrote")
        return written

    return call


def _flushing(real: Callable[[int], None]) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        if (machine := _acting.machine) is None:
            real(descriptor)
            return
        if descriptor in _elsewhere:
            return
        machine.system_call("fsync")
        if machine.fails("fsync"):
            raise OSError(errno.EIO, "Input/output error")
        machine.flush(descriptor)
        machine.system_call("fsynced")

    return call


def _around(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            _moment(name)
            result = real(*args, **options)
            _moment(f"{name}d")
            return result

        return call

    return make


def _noting(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if (machine := _acting.machine) is None:
            return real(*args, **options)
        machine.system_call("open")
        file = real(*args, **options)
        machine.opened(file)
        return file

    return call


def _token(real: Callable[..., str]) -> Callable[..., str]:
    def call(nbytes: int | None = None) -> str:
        if (machine := _acting.machine) is None:
            return real(nbytes)
        token: str = machine.rng.randbytes(nbytes or 32).hex()
        return token

    return call


def _uuid(real: Callable[[], uuid.UUID]) -> Callable[[], uuid.UUID]:
    return lambda: real() if (m := _acting.machine) is None else uuid.UUID(bytes=m.rng.randbytes(16), version=4)


def _submitting(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(pool: Any, work: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        if _acting.machine is None:
            return real(pool, work, *args, **options)
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(work(*args, **options))
        except BaseException as error:  # noqa: BLE001 - passed to the code that reads the result
            future.set_exception(error)
        return future

    return call


__all__ = ["REAL_CLOSE", "REAL_OPEN", "Ended", "Machine", "NobodysMachine", "SimFileSystem", "act_for", "installed"]
