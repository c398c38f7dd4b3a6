"""Progress in a plain log, and the bounded window that every stage goes through."""

from __future__ import annotations

import asyncio
import io

import pytest

from lion_ray.core.progress import Progress


def test_a_log_is_plain_lines_with_counts_and_time() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.stage("judging", 2, "shards") as stage:
        assert progress.snapshot()["stages"][0]["total"] == 2
        stage.advance(1, "64 rows")
        stage.advance(1)
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert first.endswith("judging: 2 shards")
    assert "judging: done, 2 shards in 0 s; 64 rows" in last
    assert "\x1b" not in stream.getvalue()
    assert progress.snapshot()["stages"] == []


def test_one_is_not_many() -> None:
    stream = io.StringIO()
    with Progress(stream).stage("x", 1, "shards") as stage:
        stage.advance(1)
    assert "1 shard " in stream.getvalue()


def test_markup_in_a_message_is_text() -> None:
    stream = io.StringIO()
    Progress(stream).say("[red]not red[/red]")
    assert "[red]not red[/red]" in stream.getvalue()


async def test_waiting_gives_the_result_or_the_error() -> None:
    progress = Progress(io.StringIO())

    async def good() -> int:
        return 7

    async def bad() -> int:
        raise ValueError("no")

    assert await progress.waiting(good(), "w") == 7
    with pytest.raises(ValueError, match="no"):
        await progress.waiting(bad(), "w")


async def test_waiting_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lion_ray.core.progress.QUIET_S", 0.01)
    stream = io.StringIO()
    gate = asyncio.Event()
    waiting = asyncio.create_task(Progress(stream).waiting(gate.wait(), "student engine 0: waiting for 1 GPU"))
    while "waiting for 1 GPU" not in stream.getvalue():  # noqa: ASYNC110 - a stream has no event
        await asyncio.sleep(0)
    gate.set()
    assert await waiting


async def test_only_what_holds_the_run_up_counts_as_waiting() -> None:
    progress = Progress(io.StringIO())
    gate = asyncio.Event()
    held = True
    waiting = asyncio.create_task(progress.waiting(gate.wait(), lambda: "a second engine", lambda: held))
    await asyncio.sleep(0)
    assert progress.waits == 1
    held = False  # the first engine is up: the second may take its time
    assert progress.waits == 0
    gate.set()
    await waiting
    with progress.stage("fine-tuning", 0, "steps") as stage:
        stage.waits_for = "1 × 1 GPU"
        assert progress.waits == 1
        assert stage.line() == "fine-tuning: waiting for 1 × 1 GPU (0 s)"
        stage.waits_for = ""
        assert progress.waits == 0
        assert stage.line() == "fine-tuning: 0 s"  # not "0 of 0 steps"
        stage.total = 4
        assert stage.line() == "fine-tuning: 0 of 4 steps"
