"""A client-side handle of an endpoint's proxies. It finds them by name, so that Ray can restart either side.

Invariant: the same call always goes to the same proxy, so that two proxies never buy it twice.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

import ray

from lion_ray.gateway.calls import Call, Outcome


def proxy_names(run: str, endpoint: str, count: int) -> tuple[str, ...]:
    """The actors' names of an endpoint's proxies."""
    return tuple(f"{run}/endpoint-{endpoint}-{number}" for number in range(count))


class EndpointHandle:
    """All proxies of one endpoint."""

    def __init__(self, names: Sequence[str]) -> None:
        self._proxies: list[Any] = [ray.get_actor(name) for name in names]

    async def complete(self, calls: Sequence[Call], *, patient: bool = True) -> list[Outcome]:
        """Every call's outcome, in order, with one message to each proxy involved. Raises what a proxy raises."""
        parts: dict[int, list[int]] = {}
        for index, call in enumerate(calls):
            parts.setdefault(_place(call) % len(self._proxies), []).append(index)
        outcomes: list[Outcome | None] = [None] * len(calls)

        async def ask(number: int, indexes: list[int]) -> None:
            answers = await self._proxies[number].complete.remote([calls[i] for i in indexes], patient)
            for index, answer in zip(indexes, answers, strict=True):
                outcomes[index] = answer

        await asyncio.gather(*(ask(number, indexes) for number, indexes in parts.items()))
        return [outcome for outcome in outcomes if outcome is not None]


def _place(call: Call) -> int:
    text = "\0".join(message["content"] for message in call.messages)
    return zlib.crc32(text.encode("utf-8", "surrogatepass"), call.ordinal)
