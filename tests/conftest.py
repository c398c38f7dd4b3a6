"""What every layer shares: which tests run, signals as a person's shell gives them, and what this machine lacks.

A test marked `long` runs with ``--long`` alone (`make test-all`); CONTRIBUTING.md says which they are, and why.
"""

from __future__ import annotations

import signal
from collections import Counter

import pytest

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked 'long' too (make test-all)")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what a script puts behind it (`make test &`) with Ctrl-C ignored, and so would be every command
    # that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[LEFT_OUT] = 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.long:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)


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
