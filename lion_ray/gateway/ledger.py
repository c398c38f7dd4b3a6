"""Money: what calls cost, what may still be spent, and a cap that holds.

Invariants:
- The worst case of a call is reserved before it is sent, and it is settled on the dearest reading of the usage that the
  endpoint names (`usage`). So spent + reserved exceeds the budget only by what an endpoint bills beyond its limits.
- One answer beyond its reservation raises that of every later call of its endpoint (`Excess`): only calls that were
  out at the time can surprise. How many those are is `wave`'s to say.
- A call whose fate is unknown (it timed out, the connection broke) may have been billed: its worst case counts against
  the budget as if it were spent, and as `uncertain` for people.
- At the cap a call first waits for what others in flight give back; only when there is nothing to wait for is it
  refused, with a BudgetError.
- The whole run has one Budget; each proxy's Ledger leases parts of it, so a call costs no message. A proxy without
  calls holds no lease.

Amounts are US dollars. This module knows nothing of HTTP, of Ray or of files.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lion_ray.config import PricesConfig
from lion_ray.core.errors import BudgetError
from lion_ray.gateway.usage import Bounds, Settled

T = TypeVar("T")
MILLION = 1_000_000
LEASE_SHARE = 0.02
"""A lease is this share of what is left, so that several proxies come close to the cap together."""
ROUNDING = 1e-9


def cost(prices: PricesConfig, prompt: int, cached: int, completion: int, *, batch: bool = False) -> float:
    """What a call with this usage costs, in US dollars."""
    cached = min(cached, prompt)
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    dollars = ((prompt - cached) * prices.input + cached * cached_price + completion * prices.output) / MILLION
    return dollars * (prices.batch if batch else 1.0)


class _Beyond:
    """By how much one kind of tokens has exceeded what calls allowed."""

    def __init__(self) -> None:
        self.extra, self.ratio, self.seen = 0, 1.0, 0

    def raised(self, asked: int) -> int:
        more = asked + self.extra
        # Whether an excess grows with what is asked for is known as far as answers have shown it.
        return more if asked <= self.seen else max(more, math.ceil(asked * self.ratio))

    def learn(self, asked: int, most: int, used: int) -> None:
        if used == most:
            return  # as much as was reserved: what is settled on, too, where an answer names nothing
        self.seen = max(self.seen, asked)
        self.extra = max(self.extra, used - asked)
        self.ratio = max(self.ratio, used / max(1, asked))

    def join(self, other: _Beyond) -> None:
        self.seen, self.extra = max(self.seen, other.seen), max(self.extra, other.extra)
        self.ratio = max(self.ratio, other.ratio)


class Excess:
    """What an endpoint's answers have shown that a call can take beyond what it allows.

    For instance thoughts that `max_tokens` does not bound, or a prompt of the endpoint's own.
    """

    def __init__(self) -> None:
        self._prompt, self._completion = _Beyond(), _Beyond()

    def raised(self, asked: Bounds) -> Bounds:
        """What to reserve for a call that allows `asked`."""
        return Bounds(self._prompt.raised(asked.prompt), self._completion.raised(asked.completion))

    def learn(self, asked: Bounds, most: Bounds, used: Settled) -> bool:
        """An answer came to a call that allowed `asked` and had reserved `most`; whether that was too little."""
        self._prompt.learn(asked.prompt, most.prompt, used.prompt)
        self._completion.learn(asked.completion, most.completion, used.completion)
        return used.prompt > most.prompt or used.completion > most.completion

    def join(self, other: Excess) -> None:
        """Take in what another proxy of the endpoint has seen."""
        self._prompt.join(other._prompt)
        self._completion.join(other._completion)


@dataclass
class Budget:
    """The run's money, in one place. `cap` None: no limit, only sums."""

    cap: float | None
    spent: float = 0.0
    """What is paid, and what may be."""
    leases: dict[str, float] = field(default_factory=dict)

    def opened(self, proxy: str, spent_on_disk: float) -> None:
        """A proxy starts, or starts again: what it had leased is free, what the journal knows is spent."""
        self.leases[proxy] = 0.0
        self.spent = max(self.spent, spent_on_disk)

    def lease(self, proxy: str, wanted: float) -> float | None:
        """Lease at least `wanted`; 0.0 where others hold what is missing, None where nobody does."""
        if self.cap is None:
            return wanted
        left = self.cap - self.spent - sum(self.leases.values())
        if left + ROUNDING < wanted:
            return 0.0 if any(held > ROUNDING for name, held in self.leases.items() if name != proxy) else None
        granted = min(left, max(wanted, LEASE_SHARE * left))
        self.leases[proxy] = self.leases.get(proxy, 0.0) + granted
        return granted

    def report(self, proxy: str, spent: float, returned: float) -> None:
        """A proxy spent so much, and gives so much of its lease back: less than nothing where it spent beyond it."""
        self.spent += spent
        self.leases[proxy] = max(0.0, self.leases.get(proxy, 0.0) - spent - returned)


Lease = Callable[[float], Awaitable[float | None]]
Report = Callable[[float, float], Awaitable[None]]


class Ledger:
    """One proxy's money. Without prices every call is free; without a lease there is no cap."""

    def __init__(
        self,
        prices: PricesConfig | None = None,
        *,
        lease: Lease | None = None,
        report: Report | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.prices = prices
        self._lease, self._report, self._sleep = lease, report, sleep
        self._free = 0.0  # leased, not reserved
        self._unreported = 0.0
        self._over = 0.0  # spent beyond reservations, and not reported
        self._reserved = 0.0
        self.excess = Excess()
        self.spent = 0.0
        self.uncertain = 0.0
        """What calls of unknown fate may have cost, on top of `spent`."""
        self._settled = asyncio.Event()
        self._asking = asyncio.Lock()
        self._messages: dict[asyncio.Future[Any], None] = {}

    @property
    def capped(self) -> bool:
        """Whether a call may be refused for its price."""
        return self._lease is not None and self.prices is not None

    def worst(self, most: Bounds, *, batch: bool = False) -> float:
        """What to reserve for a call that may take `most`, in US dollars."""
        return self.price(Settled(most.prompt, 0, most.completion), batch=batch) or 0.0

    def price(self, used: Settled, *, batch: bool = False) -> float | None:
        """What a call cost, in US dollars; None where no price is known."""
        return None if self.prices is None else cost(self.prices, *used, batch=batch)

    async def reserve(self, amount: float) -> None:
        """Set `amount` aside. Waits while calls in flight may give something back.

        Raises:
            BudgetError: the budget has no room for it.
        """
        if self._lease is None or not amount:
            self._reserved += amount
            return
        async with self._asking:  # first come, first served
            while self._free + ROUNDING < amount:
                self._settled.clear()
                granted = await self._whole(self._lease(amount - self._free), self._unwanted)
                if granted:
                    self._free += granted
                elif self._settled.is_set():
                    continue  # something came back while we asked
                elif self._reserved > ROUNDING:
                    await self._settled.wait()
                    await self._tell(0.0)
                elif granted is None:
                    await self._tell(self._free)
                    raise BudgetError(f"the budget has no room for another call (it may cost ${amount:.4f} at most)")
                else:
                    await self._tell(self._free)
                    await self._sleep(0.5)  # another proxy's calls are in flight
            self._free -= amount
            self._reserved += amount

    async def settle(self, reserved: float, spent: float) -> None:
        """A reservation ends: `spent` is gone, and what is left of it is free again."""
        self._reserved -= reserved
        self.spent += spent
        self._unreported += spent
        self._free += max(0.0, reserved - spent)
        self._over += max(0.0, spent - reserved)
        self._settled.set()
        # Told in larger steps, as a message for every call would cost more time than the call; a surprise at once.
        if self._report is not None and (self._over or self._unreported > 0.005 + 0.001 * self.spent):
            await self._tell(0.0)

    def lose(self, reserved: float) -> None:
        """Nobody knows whether a call was billed: it counts as if it was."""
        self._reserved -= reserved
        self.uncertain += reserved
        self._unreported += reserved
        self._settled.set()

    async def rest(self) -> None:
        """No call is under way: what is leased is given back, or another proxy would wait for it for ever."""
        if self._free > ROUNDING or self._unreported or self._over:
            await self._tell(self._free)

    async def close(self) -> None:
        """Report what was spent and give the rest of the lease back."""
        await asyncio.gather(*self._messages, return_exceptions=True)
        await self._tell(self._free)

    async def _whole(self, message: Awaitable[T], late: Callable[[asyncio.Future[T]], None] | None = None) -> T:
        """A message to the budget, which comes to its end although whoever sent it is cancelled: what it grants or
        takes would be known to one side alone. `late` is then told of its end."""
        sent = asyncio.ensure_future(message)
        self._messages[sent] = None  # a task that nobody holds may be collected
        sent.add_done_callback(self._forget)
        try:
            return await asyncio.shield(sent)
        except asyncio.CancelledError:
            if late is not None:
                sent.add_done_callback(late)
            raise

    def _forget(self, message: asyncio.Future[Any]) -> None:
        self._messages.pop(message, None)

    def _unwanted(self, lease: asyncio.Future[float | None]) -> None:
        """A lease came whose call was cancelled meanwhile."""
        if lease.cancelled() or lease.exception() is not None or not (granted := lease.result()):
            return
        self._free += granted
        self._settled.set()
        if self._reserved <= ROUNDING and not self._asking.locked():
            resting = asyncio.ensure_future(self.rest())
            self._messages[resting] = None
            resting.add_done_callback(self._forget)

    async def _tell(self, returned: float) -> None:
        if self._report is None or self._lease is None:
            return
        spent, self._unreported = self._unreported, 0.0
        over, self._over = self._over, 0.0
        self._free -= returned
        await self._whole(self._report(spent, max(0.0, returned) - over))
