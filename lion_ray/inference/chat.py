"""Chat with a run's student in a terminal: one engine, streamed answers."""

from __future__ import annotations

import asyncio
import os
import sys

from lion_ray.core.store import RunStore
from lion_ray.core.terminal import tell
from lion_ray.models.checkpoints import Student, find_student


def chat(store: RunStore, *, message: str | None, iteration: int | None) -> None:
    """Answer `message`, or each line typed until the end of the input.

    Raises:
        ConfigError: the run has no such checkpoint.
    """
    student = find_student(store, iteration)
    tell(f"starting the student of {student.version} (Ctrl-D ends)", file=sys.stderr)
    asyncio.run(_chat(student, message))


async def _chat(found: Student, message: str | None) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from lion_ray.inference.engine import Engine

    config = found.config
    student = config.student.model_copy(update={"min_engines": 1, "max_engines": 1, "enforce_eager": True})
    engine = Engine(student, base_dir=found.base_dir, seed=config.seed)
    try:
        await engine.start(found.folder, found.version)
        while True:
            text = message if message is not None else await asyncio.to_thread(_read_line)
            if text is None:
                return
            if text.strip():
                async for piece in engine.stream(text, student.max_tokens):
                    tell(piece, end="")
                tell("")
            if message is not None:
                return
    finally:
        await asyncio.to_thread(engine.shutdown)


def _read_line() -> str | None:
    """One line from the user; None at the end of the input."""
    try:
        return input("you> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
