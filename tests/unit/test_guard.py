"""A killed parent takes its children with it; a guard touches nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from lion_ray.core.process_guard import Guard, descendants, start_time

PARENT = """
import subprocess, sys, time
from lion_ray.core.process_guard import Guard
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
guard = Guard()
guard.watch(child.pid)
print(child.pid, flush=True)
sys.stdin.read()
"""


def gone(pid: int) -> bool:
    return start_time(pid) is None


def wait_until_gone(pid: int) -> None:
    while not gone(pid):
        os.sched_yield()


def test_a_child_does_not_outlive_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        # The child holds a pipe from its parent: stop it from leaving by itself, so that only a kill can end it.
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        wait_until_gone(child)


def test_only_the_same_process_is_killed() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    guard = Guard()
    assert guard._process.stdin is not None
    guard._process.stdin.write(f"{sleeper.pid} 12345\n")  # another process that once had this id
    guard.close()
    assert sleeper.poll() is None
    sleeper.communicate()


def test_closing_ends_what_is_watched_and_what_that_started() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while not descendants(child.pid):
        os.sched_yield()
    (grandchild,) = descendants(child.pid)
    guard = Guard()
    guard.watch(child.pid)
    guard.close()
    assert gone(child.pid)
    assert gone(grandchild)
    assert child.wait() == -signal.SIGKILL


def test_start_time_of_nobody() -> None:
    assert start_time(2**22 + 1) is None
