"""Requests and a change of the weights take turns."""

from __future__ import annotations

import asyncio

import pytest

from lion_ray.core.errors import EngineError
from lion_ray.inference.gate import Gate


async def test_a_change_waits_for_requests_and_new_requests_wait_for_it() -> None:
    gate, log, first_may_end = Gate(), list[str](), asyncio.Event()

    async def first() -> None:
        async with gate.request():
            log.append("first in")
            await first_may_end.wait()
        log.append("first out")

    async def change() -> None:
        async with gate.change():
            log.append("change begins")
            await asyncio.sleep(0)
            log.append("change ends")

    async def later() -> None:
        async with gate.request():
            log.append("later in")

    running = [asyncio.create_task(first())]
    await asyncio.sleep(0)
    running += [asyncio.create_task(change()), asyncio.create_task(later())]
    for _ in range(5):
        await asyncio.sleep(0)
    assert log == ["first in"], "the change waits, and so does what came after it"
    first_may_end.set()
    await asyncio.gather(*running)
    assert log == ["first in", "first out", "change begins", "change ends", "later in"]


async def test_after_a_failed_change_requests_fail() -> None:
    gate, fails = Gate(), asyncio.Event()

    async def change() -> None:
        async with gate.change():
            await fails.wait()
            raise OSError("disk")

    changing = asyncio.create_task(change())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(_request(gate))
    await asyncio.sleep(0)
    fails.set()
    with pytest.raises(OSError, match="disk"):
        await changing
    with pytest.raises(EngineError, match="cannot be trusted: disk"):
        await waiting
    with pytest.raises(EngineError, match="cannot be trusted"):
        await _request(gate)


async def test_a_change_that_is_given_up_before_it_began_changes_nothing() -> None:
    gate = Gate()
    async with gate.request():
        change = asyncio.create_task(_change(gate))
        await asyncio.sleep(0)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
    async with gate.request():
        pass


async def _request(gate: Gate) -> None:
    async with gate.request():
        pass


async def _change(gate: Gate) -> None:
    async with gate.change():
        pass
