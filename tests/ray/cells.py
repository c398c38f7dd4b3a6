"""Runs a file of cells as a notebook does: one after the other, in one namespace, in a process whose loop is running.

``python -m tests.ray.cells FILE``. Ends with 1 where a cell raises, or where the process is not as it was before:
its environment, its signal handlers.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any


def cells(text: str) -> list[str]:
    """The code between the marks; a cell of words is one of comments."""
    return [cell.partition("\n")[2] for cell in f"\n{text}".split("\n# %%")[1:]]


async def run(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path.read_text())):
        code = compile(cell, f"{path.name}, cell {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        # As IPython: in the thread of the loop, which is running.
        coroutine = eval(code, names)
        if inspect.iscoroutine(coroutine):
            await coroutine


def state() -> dict[str, Any]:
    """What a run must give back."""
    return dict(os.environ) | {one.name: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}


async def main() -> None:
    before = state()
    await run(Path(sys.argv[1]))
    after = state()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not changed, f"not given back: {changed}"
    print("as it was before")


if __name__ == "__main__":
    asyncio.run(main())
