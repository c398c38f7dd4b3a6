"""What every layer shares: which tests run and where, signals as a person's shell gives them, what this machine lacks.

A test marked `long` runs with ``--long`` alone (`make test-all`); CONTRIBUTING.md says which they are, and why.

`make test` runs two processes (pytest-xdist). Whatever starts Ray runs in one of them, one after the other and first:
two Rays at once would meet at their ports. It mostly waits for processes to start, and the other process has the rest
to do meanwhile, file by file: the engines' tests first.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

pytest.register_assert_rewrite("lion_ray.testing")
LEFT_OUT = pytest.StashKey[int]()
FIRST = ("ray", "engine")
"""The folders whose tests take longest, in the order in which they are begun."""
SHARED = ("test_simulated_seeds.py", "test_fuzz_targets.py")
"""Files whose cases have nothing in common: they fill up whichever process has time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked 'long' too (make test-all)")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what a script puts behind it (`make test &`) with Ctrl-C ignored, and so would be every command
    # that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[LEFT_OUT] = 0


class OneRay(LoadScopeScheduling):
    """File by file, but all of Ray's to one process, and what is SHARED to both.

    (xdist's groups do not reach it with this pytest.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if "ray" in Path(file).parts[:-1]:
            return "ray"
        return nodeid if Path(file).name in SHARED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    return OneRay(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.long:
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workerinput"):
        order = {folder: number for number, folder in enumerate(FIRST)}
        items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
        config.workeroutput["left_out"] = config.stash[LEFT_OUT]  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of xdist has ended: it alone knows what it left out."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was not seen here, and what it takes to see it."""
    lacks: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple):
            lacks[report.longrepr[2].removeprefix("Skipped: ")] += 1
    left_out = config.stash[LEFT_OUT]
    if not lacks and not left_out:
        return
    terminalreporter.section("not seen on this machine")
    for reason, tests in sorted(lacks.items()):
        terminalreporter.line(f"{tests:4}  skipped: {reason}")
    if left_out:
        terminalreporter.line(f"{left_out:4}  long, left out: `make test-all`, or pytest --long, runs them")
