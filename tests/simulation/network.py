"""The endpoint behind a simulated network: its answers, its bills, and faults in transit.

Invariants:
- Whether a request is billed does not depend on what the client receives. The bill is in whole tokens.
- Each answer's text is unique and names its request.
- A bill is within the request's limits (its prompt's bytes and its `max_tokens`), and no text is free.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from lion_ray.gateway.reply import Reply, parse_reply
from lion_ray.gateway.wire import CONNECTION_LOST, TIMED_OUT, Transient, Unreachable, status_error

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

FATES = ("429", "500", "timed out", "lost", "garbled", "unreachable", "rejected")


@dataclass
class Weather:
    """The probability of each fault; zero after the last disaster, so that every run can end."""

    chances: dict[str, float]
    latency_s: float
    storm: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> Weather:
        storm = rng.choice((0.0, 0.05, 0.3))
        return cls({fate: storm * rng.random() for fate in FATES}, rng.choice((0.05, 0.3, 1.0)), storm)

    def strikes(self, rng: random.Random) -> bool:
        return rng.random() < self.storm

    def fate(self, rng: random.Random) -> str:
        draw = rng.random()
        for fate, chance in self.chances.items():
            draw -= chance / 2
            if draw < 0:
                return fate
        return "ok"


class SimTransport:
    """One process's connections (see `lion_ray.gateway.transport.Transport`)."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    async def chat(self, body: dict[str, Any]) -> Reply:
        world, rng = self._world, self._world.rng
        fate = world.weather.fate(rng)
        prompt = str(body["messages"][0]["content"])
        purchase = world.model.sent(self._process, prompt)
        world.say(f"{self._process.name} asks for {prompt!r}: {fate}")
        try:
            await asyncio.sleep(rng.random() * world.weather.latency_s)
            if fate == "unreachable":
                raise Unreachable("nobody listens")
            answer = None
            if fate in ("ok", "garbled") or (fate in ("timed out", "lost") and rng.random() < 0.5):
                usage = {
                    "prompt_tokens": rng.randint(1, len(prompt.encode())),
                    "completion_tokens": rng.randint(1, body["max_tokens"]),
                }
                answer = world.model.bill(purchase, **usage)
                data = orjson.dumps(
                    {
                        "model": "simulated",
                        "choices": [{"message": {"content": answer}, "finish_reason": "stop"}],
                        "usage": usage,
                    }
                )
            await asyncio.sleep(rng.random() * world.weather.latency_s)
            match fate:
                case "429":
                    raise status_error(429, {"retry-after": str(rng.choice((0, 1, 7)))}, "")
                case "500":
                    raise status_error(500, {}, "it broke")
                case "rejected":
                    raise status_error(400, {}, '{"error": {"message": "not this one"}}')
                case "timed out":
                    raise Transient(TIMED_OUT, "no whole answer")
                case "lost":
                    raise Transient(CONNECTION_LOST, "reset")
                case "garbled":
                    return parse_reply(data[: len(data) // 2])
            return parse_reply(data)
        finally:
            if self._process.alive:
                world.model.heard(purchase)

    async def close(self) -> None:
        """Nothing to release."""
