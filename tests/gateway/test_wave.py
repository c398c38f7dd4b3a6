"""How many calls may be out at an endpoint whose bills are not known yet."""

from __future__ import annotations

import asyncio

from lion_ray.gateway.wave import FIRST_WAVE, Wave


class Calls:
    """Calls that go through a wave and stay out until they are told to come home."""

    def __init__(self, wave: Wave, count: int) -> None:
        self.wave = wave
        self.out: list[asyncio.Event] = []
        self.tasks = [asyncio.create_task(self._one()) for _ in range(count)]

    async def _one(self) -> None:
        await self.wave.enter()
        home = asyncio.Event()
        self.out.append(home)
        try:
            await home.wait()
        finally:
            self.wave.leave()

    async def come_home(self, count: int, *, surprised: bool = False) -> None:
        home, self.out = self.out[:count], self.out[count:]
        for one in home:
            self.wave.answered(surprised=surprised)
            one.set()
        await settle()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_each_answer_lets_one_more_go_at_a_time() -> None:
    calls = Calls(Wave(), 100)
    await settle()
    assert len(calls.out) == FIRST_WAVE
    for answers in (1, 3, 5):
        before = len(calls.out)
        await calls.come_home(answers)
        assert len(calls.out) == before + answers
    await calls.end()


async def test_a_surprise_sets_it_back_to_one_and_stops_nobody() -> None:
    calls = Calls(Wave(), 100)
    await settle()
    await calls.come_home(4)
    assert len(calls.out) == 8
    await calls.come_home(1, surprised=True)
    assert len(calls.out) == 7, "who is out stays out, and nobody goes"
    await calls.come_home(7, surprised=True)
    assert len(calls.out) == 1
    await calls.come_home(1)
    assert len(calls.out) == 2
    await calls.end()


async def test_proxies_share_it_and_without_a_cap_there_is_none() -> None:
    for wave, out in ((Wave(proxies=2), 2), (Wave(proxies=99), 1), (Wave(narrow=False), 50)):
        calls = Calls(wave, 50)
        await settle()
        assert len(calls.out) == out
        await calls.end()


async def test_who_gives_up_waiting_takes_nobody_s_turn() -> None:
    calls = Calls(Wave(), FIRST_WAVE + 2)
    await settle()
    first, second = calls.tasks[FIRST_WAVE:]
    calls.out.pop(0).set()  # no answer: a call that failed
    await asyncio.sleep(0)
    first.cancel()
    await settle()
    assert first.cancelled() or first.done()
    assert len(calls.out) == FIRST_WAVE
    assert not second.done()
    await calls.end()
