"""The reservation of one attempt at a call: made before it is sent, and settled, released or kept afterwards.

Invariants:
- The reservation is the attempt's worst-case cost by all answers so far (`ledger.Excess`). `fits` says whether that is
  still true; an attempt that no longer fits is not sent.
- Under a cap few attempts are in flight until an endpoint has shown what it bills (`wave`).
- The possible cost of an attempt of unknown outcome is recorded durably, or nothing more is sent.

This module knows nothing of how an attempt is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from lion_ray.config import EndpointConfig
from lion_ray.gateway.calls import Call
from lion_ray.gateway.ledger import Ledger
from lion_ray.gateway.reply import Reply
from lion_ray.gateway.stats import Event
from lion_ray.gateway.usage import Bounds, bounds
from lion_ray.gateway.wave import Wave


class Reserved(NamedTuple):
    """The reservation for an attempt."""

    asked: Bounds
    """What the call allows, in tokens."""
    most: Bounds
    """What it may use by the experience of earlier calls, in tokens."""
    usd: float
    """The cost of `most`, in US dollars."""
    batch: bool


class Paid(NamedTuple):
    """The usage and cost of an answer; tokens are 0 if the endpoint reported none."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    usd: float | None
    """None if no price is known."""


class Purse:
    """The reservations of all attempts at one endpoint."""

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        ledger: Ledger,
        on_event: Callable[[Event], None],
        say: Callable[[str], object],
    ) -> None:
        self.name, self.ledger = name, ledger
        self._bills_lost = config.assume_billed != "never"
        self._on_event, self._say = on_event, say
        self._wave = Wave(proxies=config.proxies, narrow=ledger.capped)

    async def take(self, call: Call, size: int, *, batch: bool = False) -> Reserved:
        """Reserve an attempt's worst-case cost; `size`: of its prompt, in bytes.

        Waits while too many attempts are in flight, and while calls in flight may release money. Raises BudgetError.
        """
        asked = bounds(size, len(call.messages), call.max_tokens)
        if not batch:
            await self._wave.enter()
        try:
            while True:
                most = self.ledger.excess.raised(asked)
                reserved = Reserved(asked, most, self.ledger.worst(most, batch=batch), batch)
                await self.ledger.reserve(reserved.usd)
                if self.fits(reserved):
                    return reserved
                # Release all of it: calls that keep a part while they wait for more could deadlock.
                await self.ledger.settle(reserved.usd, 0.0)
        except BaseException:
            if not batch:
                self._wave.leave()
            raise

    def fits(self, reserved: Reserved) -> bool:
        """Whether the reservation still covers the attempt's worst case."""
        return self.ledger.excess.raised(reserved.asked) == reserved.most

    async def settle(self, reserved: Reserved, paid: float = 0.0) -> None:
        """End a reservation: the attempt cost `paid` US dollars (0 if it was not sent), and the rest is released."""
        if not reserved.batch:
            self._wave.leave()
        await self.ledger.settle(reserved.usd, paid)

    async def lose(self, reserved: Reserved, keep: Callable[[float], Awaitable[None]]) -> None:
        """End the reservation of an attempt of unknown outcome; `keep` durably records its possible cost in US dollars.

        Raises InfrastructureError if that cannot be recorded.
        """
        if not self._bills_lost or not reserved.usd:
            await self.settle(reserved)
            return
        self.ledger.lose(reserved.usd)
        try:
            await keep(reserved.usd)
        finally:
            # Only now, so that no other attempt is sent before this one is recorded.
            if not reserved.batch:
                self._wave.leave()

    def paid(self, key: str, call: Call, reply: Reply, reserved: Reserved) -> Paid:
        """An answer's usage and cost, by the most expensive reading of its usage; raises later reservations."""
        usage = reply.usage
        used = usage.settled(reserved.asked, reserved.most, len(reply.text.encode()))
        before = self.ledger.excess.raised(reserved.asked)
        surprised = self.ledger.excess.learn(reserved.asked, reserved.most, used)
        self._wave.answered(surprised=surprised)
        after = self.ledger.excess.raised(reserved.asked)
        if after != before and self.ledger.prices is not None:
            self._on_event(Event("surprised", key, call.role))
            self._say(
                f"an answer used {used.prompt:,} prompt and {used.completion:,} completion tokens, but at most "
                f"{reserved.asked.prompt:,} and {reserved.asked.completion:,} were expected; from now on such a call "
                f"reserves ${self.ledger.worst(after):,.4f}"
            )
        return Paid(
            # 0 if not reported: the settlement is an upper bound, not a known count.
            prompt_tokens=used.prompt if usage.prompt is not None else 0,
            completion_tokens=used.completion if (usage.completion, usage.total) != (None, None) else 0,
            cached_tokens=used.cached,
            usd=self.ledger.price(used, batch=reserved.batch),
        )
