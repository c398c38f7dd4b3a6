"""Ends child processes whose parent was killed.

A killed process cannot stop its children, and neither vLLM's engine core nor its API server notices that its parent is
gone: they would hold memory and GPUs for ever. A guard is a small process that holds the read end of a pipe. Its parent
writes the process ids to watch. The pipe closes when the parent ends in any way, and the guard then kills the watched
processes that still run.

Invariants:
- It kills only the watched processes and their descendants, and only if the watched start time still matches.
- It imports only the standard library, so it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

END_WAIT_S = 30.0
"""How long `Guard.close` waits for the killed processes: one in uninterruptible sleep may never end."""


def start_time(pid: int) -> str | None:
    """When process `pid` started, in the kernel's ticks. Returns None if it has ended. See proc(5), field 22 of stat.

    A zombie has ended: it holds only its entry, until its parent waits for it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else fields[19]


def command_line(pid: int) -> bytes:
    """The command line of process `pid`, separated by NUL; empty if the process has ended. See proc(5)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Guard:
    """The parent's side: registers the processes that must not outlive this one."""

    def __init__(self) -> None:
        self._watched: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C or a killed process group must not take the guard first
            text=True,
        )
        # The guard has forked and is no longer a child, so killing this process's children does not kill it.
        self._process.wait()

    def watch(self, *pids: int) -> None:
        """Watch these processes too; an id that is watched already is skipped."""
        assert self._process.stdin is not None
        for pid in set(pids) - self._watched:
            if started := start_time(pid):
                self._watched.add(pid)
                self._process.stdin.write(f"{pid} {started}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Kill the watched processes that still run, and wait until they have ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()  # ends with the guard
        self._process.stdout.close()


def descendants(pid: int) -> list[int]:
    """The process ids of `pid`'s children, their children, and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def main() -> None:
    if os.fork():
        os._exit(0)
    watched = [line.split() for line in sys.stdin]
    killed: dict[int, str | None] = {}
    for pid, started in watched:
        for victim in [*descendants(int(pid)), int(pid)] if start_time(int(pid)) == started else []:
            killed[victim] = start_time(victim)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    # A killed process first frees its memory, which takes seconds if there is much of it.
    deadline = time.monotonic() + END_WAIT_S
    while any(began and start_time(pid) == began for pid, began in killed.items()) and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
