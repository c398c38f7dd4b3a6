"""Money: what calls cost, what may still be spent, and a cap that holds.

Invariants:
- The worst case of a call is reserved before it is sent; it is settled on the usage that the endpoint names, or on the
  worst case where it names none. So spent + reserved never exceeds the budget.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lion_ray.config import PricesConfig
from lion_ray.errors import BudgetError

MILLION = 1_000_000
MESSAGE_OVERHEAD_TOKENS = 16
"""What a chat template adds to a message at most, about."""
LEASE_SHARE = 0.02
"""A lease is this share of what is left, so that several proxies come close to the cap together."""
ROUNDING = 1e-9


def cost(prices: PricesConfig, prompt: int, cached: int, completion: int, *, batch: bool = False) -> float:
    """What a call with this usage costs, in US dollars."""
    cached = min(cached, prompt)
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    dollars = ((prompt - cached) * prices.input + cached * cached_price + completion * prices.output) / MILLION
    return dollars * (prices.batch if batch else 1.0)


def worst_case(prices: PricesConfig, text_bytes: int, messages: int, max_tokens: int, *, batch: bool = False) -> float:
    """What a call can cost at most: tokens of byte-pair encodings hold a byte at least."""
    return cost(prices, text_bytes + MESSAGE_OVERHEAD_TOKENS * messages, 0, max_tokens, batch=batch)


@dataclass
class Budget:
    """The run's money, in one place. `cap` None: no limit, only sums."""

    cap: float | None
    spent: float = 0.0
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
        """A proxy spent so much of its lease, and gives so much of it back."""
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
        self._reserved = 0.0
        self.spent = 0.0
        self.uncertain = 0.0
        self._settled = asyncio.Event()
        self._asking = asyncio.Lock()

    def worst(self, text_bytes: int, messages: int, max_tokens: int, *, batch: bool = False) -> float:
        """What to reserve for a call."""
        if self.prices is None:
            return 0.0
        return worst_case(self.prices, text_bytes, messages, max_tokens, batch=batch)

    def price(self, prompt: int, cached: int, completion: int, worst: float, *, batch: bool = False) -> float | None:
        """What a call cost; its worst case where the endpoint named no usage, None where no price is known."""
        if self.prices is None:
            return None
        if not prompt and not completion:
            return worst
        return cost(self.prices, prompt, cached, completion, batch=batch)

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
                granted = await self._lease(amount - self._free)
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
        """A reservation ends: `spent` of it is gone, the rest is free again."""
        self._reserved -= reserved
        self.spent += spent
        self._unreported += spent
        self._free += reserved - spent
        self._settled.set()
        # Told in larger steps: a message for every call would cost more time than the call.
        if self._report is not None and self._unreported > 0.005 + 0.001 * self.spent:
            await self._tell(0.0)

    def lose(self, reserved: float) -> None:
        """Nobody knows whether a call was billed: it counts as if it was."""
        self._reserved -= reserved
        self.uncertain += reserved
        self._unreported += reserved
        self._settled.set()

    async def rest(self) -> None:
        """No call is under way: what is leased is given back, or another proxy would wait for it for ever."""
        if self._free > ROUNDING or self._unreported:
            await self._tell(self._free)

    async def close(self) -> None:
        """Report what was spent and give the rest of the lease back."""
        await self._tell(self._free)

    async def _tell(self, returned: float) -> None:
        if self._report is None or self._lease is None:
            return
        spent, self._unreported = self._unreported, 0.0
        self._free -= returned
        await self._report(spent, max(0.0, returned))
