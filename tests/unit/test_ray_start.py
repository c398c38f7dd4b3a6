"""A Ray that does not come up is tried once more, without what the first try left behind, and told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from lion_ray.core.errors import InfrastructureError
from lion_ray.core.process_guard import descendants
from lion_ray.pipeline.ray_cluster import end_what_was_started, twice

TIMED_OUT = Exception(
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)
"""As ray 2.60 says it (_private/node.py)."""
OTHERS = [
    RuntimeError("Failed to start GCS.  Last 0 lines of error files:\n\n.Please check /tmp/ray/gcs_server.out"),
    TimeoutError("Timed out after 30 seconds while waiting for node to startup. Did not find socket name x"),
    Exception("\nThe last 20 lines of dashboard.log (it contains the error message from the dashboard): \nno"),
    OSError(28, "No space left on device"),
    Exception(""),
]


class Start:
    """Starts, when it has failed often enough."""

    def __init__(self, *failures: BaseException) -> None:
        self._failures = list(failures)
        self.log: list[str] = []

    def __call__(self) -> str:
        self.log.append("start")
        if self._failures:
            raise self._failures.pop(0)
        return "context"

    def run(self) -> str:
        return twice(self, clean_up=lambda: self.log.append("clean up"), say=self.log.append)


def test_a_ray_that_comes_up_is_started_once() -> None:
    start = Start()
    assert start.run() == "context"
    assert start.log == ["start"]


@pytest.mark.parametrize("failure", [TIMED_OUT, *OTHERS], ids=lambda failure: type(failure).__name__)
def test_it_is_tried_once_more_and_that_is_told(failure: Exception) -> None:
    start = Start(failure)
    assert start.run() == "context"
    assert [start.log[i] for i in (0, 1, 3)] == ["start", "clean up", "start"]
    assert start.log[2].startswith("Ray did not start (")
    assert start.log[2].endswith("); trying once more")
    assert "\n" not in start.log[2]


@pytest.mark.parametrize("failure", [TIMED_OUT, *OTHERS], ids=lambda failure: type(failure).__name__)
def test_the_second_time_it_is_one_line_and_the_same_command_goes_on(
    failure: Exception,
) -> None:
    start = Start(failure, failure)
    with pytest.raises(InfrastructureError) as caught:
        start.run()
    assert [entry for entry in start.log if entry in ("start", "clean up")] == ["start", "clean up"] * 2
    assert "\n" not in str(caught.value)
    assert "run the same command" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_busy_machine_is_told_as_one() -> None:
    with pytest.raises(InfrastructureError, match=r"within its timeout of 30 s: something else keeps the cores busy"):
        Start(TIMED_OUT, TIMED_OUT).run()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_whoever_stops_it_is_not_asked_again(kind: Callable[[], BaseException]) -> None:
    start = Start(kind())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        start.run()
    assert start.log == ["start"]


def test_what_the_first_try_left_is_ended_and_nothing_else() -> None:
    waits = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]
    # A child with a child of its own, which it outlives.
    deep = [sys.executable, "-c", f"import signal, subprocess; subprocess.run({waits!r}); signal.pause()"]
    mine = subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    before = set(descendants(os.getpid()))
    left = subprocess.Popen(deep, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        for process in (mine, left):
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
        end_what_was_started(before)
        assert left.wait() == -9
        assert mine.poll() is None
        assert left.stdout is not None
        assert left.stdout.read() == b"", "its child has ended too: nobody holds the other end"
    finally:
        mine.communicate(b"")
        left.communicate()
