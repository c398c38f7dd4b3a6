"""Ends child processes whose parent was killed.

A process that is killed cannot stop its children, and neither vLLM's engine core nor its API server notices that
its parent is gone: they would hold memory and GPUs for ever. A guard is a tiny process that holds the read end of a
pipe; its parent writes the process ids to watch, and when the pipe closes, because the parent ended in whatever way,
the guard kills those that still live.

Invariants:
- It kills only processes it was told of, and only while they are still the same process (their start time agrees).
- It imports nothing but the standard library, so it starts in milliseconds.
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
"""How long `Guard.close` waits for what it killed: a process in uninterruptible sleep may never end."""


def start_time(pid: int) -> str | None:
    """When process `pid` started, in the kernel's ticks; None where it has ended. See proc(5), field 22 of stat.

    A zombie has ended: it holds nothing but its entry, which stays as long as its parent does not ask for it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else fields[19]


def command_line(pid: int) -> bytes:
    """The command line of process `pid`, its words apart by NUL; empty where it is gone. See proc(5)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Guard:
    """The parent's side: tell it which processes must not outlive this one."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C or a killed process group must not take the guard first
            text=True,
        )
        # It has forked: the one left is nobody's child, so that whoever kills this process's children misses it.
        self._process.wait()

    def watch(self, *pids: int) -> None:
        """Watch these processes too; an id that is watched already is passed over."""
        assert self._process.stdin is not None
        for pid in set(pids) - self._told:
            if started := start_time(pid):
                self._told.add(pid)
                self._process.stdin.write(f"{pid} {started}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Kill what is watched and still lives, now, and wait until it has ended."""
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
    # A process that is killed still gives its memory back, which takes seconds where there is much of it.
    patience = time.monotonic() + END_WAIT_S
    while any(began and start_time(pid) == began for pid, began in killed.items()) and time.monotonic() < patience:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
