"""The money of one call's attempt: taken before it is sent, and settled, given back or held afterwards.

Invariants:
- What is taken is the worst that the attempt may cost by all that answers have shown until then (`ledger.Excess`), and
  `fits` says whether that is still so: an attempt that does not fit any more is not sent.
- Under a cap few attempts are out until an endpoint has shown what it bills (`wave`).
- An attempt whose fate is unknown is held durably, or nothing more is sent.

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
    """What is set aside for an attempt."""

    asked: Bounds
    """What the call allows, in tokens."""
    most: Bounds
    """What it may take, by what others have taken."""
    usd: float
    """That in US dollars."""
    batch: bool


class Paid(NamedTuple):
    """What an answer took: tokens are 0 where the endpoint named none."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    usd: float | None
    """None where no price is known."""


class Purse:
    """The money of all attempts at one endpoint."""

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
        """Set aside the worst that an attempt may cost; `size`: of its prompt, in bytes.

        Waits while too many are out, and while calls in flight may give something back. Raises BudgetError.
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
                # All of it, as calls that each keep a part and wait for more could wait for each other.
                await self.ledger.settle(reserved.usd, 0.0)
        except BaseException:
            if not batch:
                self._wave.leave()
            raise

    def fits(self, reserved: Reserved) -> bool:
        """Whether nothing has shown since it was taken that the attempt may cost more."""
        return self.ledger.excess.raised(reserved.asked) == reserved.most

    async def settle(self, reserved: Reserved, paid: float = 0.0) -> None:
        """The attempt is over, or was never sent: it cost `paid` US dollars, and the rest is free again."""
        if not reserved.batch:
            self._wave.leave()
        await self.ledger.settle(reserved.usd, paid)

    async def lose(self, reserved: Reserved, keep: Callable[[float], Awaitable[None]]) -> None:
        """Nobody knows whether the attempt was billed; `keep` makes durable how many US dollars that may have been.

        Raises InfrastructureError where that cannot be kept.
        """
        if not self._bills_lost or not reserved.usd:
            await self.settle(reserved)
            return
        self.ledger.lose(reserved.usd)
        try:
            await keep(reserved.usd)
        finally:
            # Not before: while it may not be kept, no other is to go in its place.
            if not reserved.batch:
                self._wave.leave()

    def paid(self, key: str, call: Call, reply: Reply, reserved: Reserved) -> Paid:
        """What an answer took, by the dearest reading of what it says; later calls reserve as much."""
        usage = reply.usage
        used = usage.settled(reserved.asked, reserved.most, len(reply.text.encode()))
        before = self.ledger.excess.raised(reserved.asked)
        surprised = self.ledger.excess.learn(reserved.asked, reserved.most, used)
        self._wave.answered(surprised=surprised)
        after = self.ledger.excess.raised(reserved.asked)
        if after != before and self.ledger.prices is not None:
            self._on_event(Event("surprised", key, call.role))
            self._say(
                f"an answer took {used.prompt:,} and {used.completion:,} tokens, where at most "
                f"{reserved.asked.prompt:,} and {reserved.asked.completion:,} were expected; from now on a call like "
                f"it is reserved ${self.ledger.worst(after):,.4f}"
            )
        return Paid(
            # What was not named is settled on, and not known.
            prompt_tokens=used.prompt if usage.prompt is not None else 0,
            completion_tokens=used.completion if (usage.completion, usage.total) != (None, None) else 0,
            cached_tokens=used.cached,
            usd=self.ledger.price(used, batch=reserved.batch),
        )
