"""How stages run: the bounded window, and what a part's summary says."""

from __future__ import annotations

import asyncio

import pytest

from lion_ray.records import ANSWER, VERDICT, table
from lion_ray.stages import merge, summary, windowed


async def test_a_window_bounds_what_is_under_way_and_starts_in_order() -> None:
    started: list[int] = []
    most = running = 0

    async def work(index: int) -> None:
        nonlocal most, running
        started.append(index)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await windowed(work, range(10), 3)
    assert started == list(range(10))
    assert most == 3


async def test_the_first_failure_ends_the_rest_and_is_the_one_that_is_told() -> None:
    ended: list[int] = []

    async def work(index: int) -> None:
        if index == 1:
            await asyncio.sleep(0)  # the others of the window have started
            raise ValueError("shard 1")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(index)

    with pytest.raises(ValueError, match="shard 1"):
        await windowed(work, range(4), 3)
    assert sorted(ended) == [0, 2], "what had started was cancelled; what had not never starts"


def answer(reason: str | None, finish: str | None = "stop") -> dict[str, object]:
    status = "quarantined" if reason else "ok"
    return {"id": "i", "text": "", "status": status, "reason": reason, "finish_reason": finish}


def test_reasons_are_counted_without_their_details() -> None:
    rows = [answer("timed out (after 3 s)"), answer("timed out (after 4 s)"), answer(None, "length"), answer(None)]
    rows[2] |= {"prompt_tokens": 5, "completion_tokens": 7, "call": "k"}
    found = summary(table(rows, ANSWER))
    assert found == {
        "rows": 4,
        "quarantined": {"timed out": 2},
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "calls": 1,
        "cut_off": 1,
    }


def test_summaries_add_up() -> None:
    one = summary(table([answer("a"), answer(None)], ANSWER))
    two = summary(table([answer("a"), answer("b")], ANSWER))
    total = merge([one, two])
    assert total["rows"] == 4
    assert total["quarantined"] == {"a": 2, "b": 1}


def test_a_verdicts_calls_are_counted() -> None:
    rows = [{"id": "i", "status": "ok", "calls": ["a", "b"]}, {"id": "j", "status": "ok", "calls": ["c", "d", "e"]}]
    assert summary(table(rows, VERDICT))["calls"] == 5
