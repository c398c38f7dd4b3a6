"""How stages run: the bounded window, and what a part's summary says."""

from __future__ import annotations

import asyncio

import pytest

from lion_ray.actors.run_store import summary
from lion_ray.core.records import ANSWER, VERDICT, table
from lion_ray.pipeline.scheduling import Feed, Shard, in_turn, windowed
from lion_ray.pipeline.shard_stage import merge


def shards(count: int) -> list[Shard]:
    return [Shard("0", index) for index in range(count)]


async def test_a_window_bounds_what_is_under_way_and_starts_in_order() -> None:
    started: list[int] = []
    most = running = 0

    async def work(index: int, _: Shard) -> None:
        nonlocal most, running
        started.append(index)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await windowed(work, Feed.of(shards(10)), 3)
    assert started == list(range(10))
    assert most == 3


async def test_the_first_failure_ends_the_rest_and_is_the_one_that_is_told() -> None:
    ended: list[int] = []

    async def work(index: int, _: Shard) -> None:
        if index == 1:
            await asyncio.sleep(0)  # the others of the window have started
            raise ValueError("shard 1")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(index)

    with pytest.raises(ValueError, match="shard 1"):
        await windowed(work, Feed.of(shards(4)), 3)
    assert sorted(ended) == [0, 2], "what had started was cancelled; what had not never starts"


async def test_shards_that_come_later_are_waited_for() -> None:
    feed = Feed()
    seen: list[tuple[int, Shard]] = []
    moved = asyncio.Event()

    async def work(index: int, shard: Shard) -> None:
        seen.append((index, shard))
        moved.set()

    reading = asyncio.create_task(windowed(work, feed, 2))
    for count, shard in enumerate(shards(3), start=1):
        feed.put(shard)
        moved.clear()
        await moved.wait()
        assert seen == list(enumerate(shards(count)))
    assert not reading.done()
    feed.end()
    await reading
    assert await feed.next() is None
    assert len(feed) == 3


async def test_one_after_the_other_stops_at_the_first_failure() -> None:
    done: list[str] = []

    async def one(name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        done.append(name)

    with pytest.raises(ValueError, match="bad"):
        await in_turn(one("first"), one("bad"), one("never"))
    assert done == ["first"]


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
